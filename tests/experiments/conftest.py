"""Data that several tests of the experiments read."""

import pytest

from experiments import data


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS data directory of this test run's own."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits(data_dir):
    return data.load("digits", data_dir)
