import dataclasses

import pytest

from experiments.config import Config
from experiments.evidence import exactness, exactness_table


@pytest.fixture(scope="module")
def rows(digits, data_dir, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("exactness"))
    config = Config(
        data_dir=data_dir, width=4, methods=("none",), float_epochs=1, epochs=1, workdir=workdir
    )
    student = exactness.trained_student(config, digits, 128, 64)
    test = tuple(part[:20] for part in digits.test)
    return exactness.compare(student, dataclasses.replace(config), test)


def test_both_files_are_their_twins(rows):
    assert [row["weights"] for row in rows] == ["int8", "int4"]
    for row in rows:
        counts = {(c["left"], c["right"]): c for c in row["outputs"]}
        assert counts["twin_double", "reference"]["differing"] == 0
        assert counts["twin", "xnnpack"]["codes"] == 200
    assert rows[0]["failures"] == []


def test_table_shows_counts(rows):
    text = exactness_table.table(rows)
    assert "0 of 200; same class 100.00%" in text and "Packed INT4" in text
