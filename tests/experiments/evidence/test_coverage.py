"""keras.applications through the whole path. A few cheap models run always; the smallest of each
family, and all, are slow."""

import json

from absl import flags
from absl.testing import flagsaver
import numpy as np
import pytest

from experiments.evidence import coverage, coverage_case
from tf_fpq.keras_compat import keras

# Depthwise convolutions and ReLU6; grouped convolutions, operators and a Rescaling; a Keras 3
# model.
ALWAYS = [("tf_keras", "MobileNet")]
FAMILIES = [(source, name) for source in coverage_case.SOURCES for name in coverage_case.SMALLEST]


@pytest.fixture(autouse=True)
def parsed_flags():
    flags.FLAGS.mark_as_parsed()


def assert_passes(source, name):
    rows = list(coverage_case.run(name, source))
    row = rows[-1]
    assert row["status"] == "passed", f"{row['stage']}: {row['reason']}"
    assert set(row["seconds"]) == set(coverage_case.STAGES)
    assert (
        row["output_codes"] == coverage_case.CLASSES * coverage_case.IMAGES * 2
    )  # twin pairs: XNNPACK, reference
    return row


@pytest.mark.parametrize(("source", "name"), ALWAYS)
def test_cheap_models(source, name):
    row = assert_passes(source, name)
    assert (row["tfmot"] == "ok") == (row["name"] == "MobileNet" and source == "tf_keras")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "name"), [case for case in FAMILIES if case not in ALWAYS])
def test_the_smallest_of_each_family(source, name):
    if name not in coverage_case.builders(source):
        pytest.skip(f"{source} has no {name}")
    assert_passes(source, name)


@pytest.mark.slow
@pytest.mark.parametrize("source", coverage_case.SOURCES)
def test_all(source, tmp_path):
    with flagsaver.flagsaver(json=str(tmp_path / "rows.jsonl"), source=[source]):
        coverage.main(["coverage"])
    rows = coverage.read(tmp_path / "rows.jsonl")
    assert len(rows) == len(coverage_case.builders(source))
    assert [row["name"] for row in rows if row["status"] != "passed"] == []


def test_the_builders_are_those_of_the_installed_keras():
    assert len(coverage_case.builders("tf_keras")) == 71
    assert set(coverage_case.SMALLEST) <= set(coverage_case.builders("tf_keras"))
    assert len(coverage_case.builders("keras")) >= 40


def test_statistics_are_those_of_inference():
    image = keras.Input((3,))
    norm = keras.layers.BatchNormalization()
    dropout = keras.layers.Dropout(0.9)
    model = keras.Model(image, norm(dropout(image)))
    images = np.random.default_rng(0).uniform(1, 2, (64, 3)).astype(np.float32)
    coverage_case.settle(model, images)
    np.testing.assert_allclose(norm.moving_mean, images.mean(0), rtol=1e-5)
    assert (norm.momentum, dropout.rate) == (0.99, 0.9)


def test_a_model_that_takes_too_long_or_too_much_is_a_row():
    row = coverage.isolated("MobileNet", "tf_keras", memory_gib=8, timeout_s=0.1)
    assert (row["status"], row["reason"]) == ("stopped", "took longer than 0.1 s")
    row = coverage.isolated("MobileNet", "tf_keras", memory_gib=0.001, timeout_s=60)
    assert (row["status"], row["reason"]) == ("stopped", "took more than 0.001 GiB")


def test_a_crash_is_a_row():
    row = coverage.isolated("NoSuchModel", "tf_keras", memory_gib=8, timeout_s=60)
    assert row["status"] == "crashed" and "NoSuchModel" in row["reason"]


def rows():
    base = {
        "source": "tf_keras",
        "stage": "verify",
        "reason": "",
        "seconds": {"build": 1.0, "tfmot": 9.0},
        "tfmot": "ok",
    }
    return [
        {**base, "name": "A", "status": "failed", "reason": "a | b"},
        {**base, "name": "B", "status": "passed", "tfmot": "ValueError: no", "commit": "c0ffee"},
        {**base, "name": "A", "status": "passed"},
    ]


def test_what_is_in_the_file_is_not_run_again_and_later_rows_win(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    assert {row["name"]: row["status"] for row in coverage.read(path)} == {
        "A": "passed",
        "B": "passed",
    }
    table = tmp_path / "table.md"
    with flagsaver.flagsaver(json=str(path), markdown=str(table), source=["tf_keras"], names=[""]):
        coverage.main(["coverage"])
    text = table.read_text()
    assert (
        "tf_keras: 2 of 71 run: 2 pass; tfmot quantizes 1" in text
        and "Commits of the rows: c0ffee, no commit." in text
    )
    assert "| A | tf_keras | passed | 1 |" in text


def test_a_pipe_does_not_break_the_table():
    assert "a \\| b" in coverage_case.table(rows()[:1])
