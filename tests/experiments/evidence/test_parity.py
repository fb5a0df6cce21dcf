"""Keras 3 applications against their conversions: one always, all of them slow; and the table."""

import json

from absl import flags
from absl.testing import flagsaver
import keras
import pytest

from experiments.evidence import coverage, coverage_case, parity_case


@pytest.fixture(autouse=True)
def parsed_flags():
    flags.FLAGS.mark_as_parsed()


def test_a_small_model_is_the_same_in_both():
    row = list(parity_case.run("MobileNet"))[-1]
    assert row["status"] == "passed", row
    for way in parity_case.WAYS:
        assert row[way]["layers_ok"] == row[way]["layers"] > 80
        assert row[way]["float64"] < 1e-12
        # Equal to the bit where TensorFlow's kernels are not oneDNN's.
        assert row[way]["layer_absolute"] <= 1e-5 * max(1.0, row[way]["layer_largest"])
        assert row[way]["layer_largest"] > 0.1
    assert row["drawn"]["logits_largest"] > 0.1  # no vanished signal
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == ("float32", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", coverage_case.builders("keras"))
def test_all(name):
    row = list(parity_case.run(name))[-1]
    assert row["status"] == "passed", row


def test_a_builder_that_fails_is_a_row(monkeypatch):
    def builder(**arguments):
        raise ValueError("no | model")

    monkeypatch.setattr(coverage_case, "builders", lambda source: {"Broken": builder})
    row = list(parity_case.run("Broken"))[-1]
    assert (row["status"], row["reason"]) == ("failed", "ValueError: no | model")
    assert "| Broken |" in parity_case.table([row]) and "no \\| model" in parity_case.table([row])


def test_the_table_is_written_without_running_anything(tmp_path):
    found = {
        "logits_ok": True,
        "logits_absolute": 2e-6,
        "logits_largest": 4.0,
        "layer_absolute": 1e-7,
        "layer_largest": 0.5,
        "layers": 9,
        "float64": 3e-15,
    }
    row = {
        "name": "A",
        "source": "keras",
        "status": "passed",
        **dict.fromkeys(parity_case.WAYS, found),
    }
    path, table = tmp_path / "rows.jsonl", tmp_path / "table.md"
    path.write_text(json.dumps(row) + "\n")
    with flagsaver.flagsaver(json=str(path), markdown=str(table), names=[""], parity=True):
        coverage.main(["coverage"])
    assert f"| A | 9 |{' 5.0e-07 | 3.0e-15 | 1.0e-07 |' * 3} passed |" in table.read_text()
