"""The page of the comparison with tfmot, and the comparison itself on a small network."""

import dataclasses
import json

from absl import flags
import numpy as np
import pytest

from experiments.config import Config
from experiments.evidence import beside_tfmot, beside_tfmot_table
from tests.tflite_export import small_student
import tflite_export


def row(seed, differing, **changes):
    side = {
        "images": 10,
        "codes": 100,
        "differing": 0,
        "max_lsb": 0,
        "top1_agreement": 1.0,
        "keras_accuracy": 0.9,
        "tflite_accuracy": 0.9,
        "bytes": 2000,
        "latency_ms": [0.5, 0.25, 0.5],
        "twin_differing": 0,
        "unrounded_differing": 5,
    }
    theirs = {
        k: v for k, v in side.items() if k not in ("twin_differing", "unrounded_differing")
    } | {
        "differing": differing,
        "max_lsb": 3,
        "tflite_accuracy": 0.8,
        "latency_ms": [1.0, 0.25, 1.5],
    }
    settings = dict.fromkeys(beside_tfmot.SETTINGS, 1)
    return {
        "network": "resnet8",
        "seed": seed,
        **settings,
        "float_accuracy": 0.95,
        "ours": side,
        "tfmot": theirs,
        "commit": "abc",
        **changes,
    }


def test_means_and_runs_by_hand():
    text = beside_tfmot_table.table([row(0, 10), row(1, 20)])
    ours, theirs = (line for line in text.splitlines() if line.startswith("| resnet8 | 1 | tf"))
    assert (
        "| 2 | 100.000% ± 0.00 | 95.000% ± 0.00 | 0 | 0 of 200 | 95.000% ± 0.00 |" in ours
        and ours.endswith("| 2,000 | 0.500 ± 0.00 | 1 |")
    )
    # 90 and 80 of 100; a drop of 10 points; the median of 2, 1, 3.
    assert "| 2 | 85.000% ± 7.07 | - | 3 | none |" in theirs and "| 10.000 ± 0.00 |" in theirs
    assert theirs.endswith("| 1.000 ± 0.00 | 2.000 ± 0.00 |")
    assert (
        "| resnet8 | 1 | 1 | tfmot + TFLiteConverter | 80 of 100 (80.000%) | 3 | 90.00% | 80.00% |"
        " 10.00 |" in text
    )
    assert text.count("commit abc") == 1
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 2


def test_a_refusal_is_a_row():
    refused = row(0, 0, tfmot={"refused": "RuntimeError: Layer x is not supported"})
    text = beside_tfmot_table.table([refused])
    assert text.count("refused: RuntimeError: Layer x is not supported") == 2
    assert "tfmot refused" in beside_tfmot_table.summary(refused)
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 2


def test_the_page_is_written_from_the_rows_and_done_ones_are_not_repeated(tmp_path, monkeypatch):
    config = Config(dataset="digits", model="resnet8", seed=0)
    done = {**row(0, 10), **beside_tfmot._named(config)}
    path, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    path.write_text(json.dumps(done) + "\n")
    measured = []
    monkeypatch.setattr(beside_tfmot, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(
        beside_tfmot, "_config", lambda network, seed: dataclasses.replace(config, seed=seed)
    )

    def measure(config):
        measured.append(config.seed)
        return {**row(0, 30), **beside_tfmot._named(config)}

    monkeypatch.setattr(beside_tfmot, "measure", measure)
    values = {
        "json": str(path),
        "markdown": str(page),
        "networks": ["resnet8"],
        "seeds": ["0", "1"],
    }
    for name, value in values.items():
        define = flags.DEFINE_list if isinstance(value, list) else flags.DEFINE_string
        define(name, value, "", flag_values=beside_tfmot.FLAGS)
    beside_tfmot.FLAGS.mark_as_parsed()
    beside_tfmot.main(["program"])
    assert measured == [1] and len(path.read_text().splitlines()) == 2
    assert page.read_text().startswith("# Beside tfmot") and "70 of 100" in page.read_text()


def test_codes_are_counted_on_the_files_grid(tmp_path, monkeypatch):
    """A file of another student differs; its own has the codes that verification counts."""
    student = small_student.make_student()
    path = tmp_path / "x.tflite"
    exported = tflite_export.export(student, path)
    images, labels = small_student.images(40), np.arange(40) % 5

    class Images:
        test = (images, labels)

    monkeypatch.setattr(beside_tfmot, "BATCH", 16)
    found = beside_tfmot.compare(student, path, Images)
    report = tflite_export.verify(
        student, exported, (images, labels), kernels=("xnnpack",), min_top1_agreement=0, verbose=0
    )
    counted = report.output("student", "xnnpack")
    assert (
        (found["codes"], found["differing"])
        == (counted.codes, counted.differing)
        == (200, counted.differing)
    )
    assert found["top1_agreement"] == counted.top1 and found["bytes"] == path.stat().st_size
    assert (found["keras_accuracy"], found["tflite_accuracy"]) == pytest.approx(
        (report.accuracy["student"], report.accuracy["xnnpack"])
    )
    bias = student.get_layer("logits").layer.bias
    bias.assign(bias + 1.0)
    assert beside_tfmot.compare(student, path, Images)["differing"] > 100


@pytest.mark.slow
def test_the_whole_on_small_data(digits, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(beside_tfmot, "LATENCY_TURNS", 1)
    config = Config(
        data_dir=data_dir,
        width=4,
        weight_bits=8,
        activation_bits=8,
        methods=("none",),
        float_epochs=1,
        epochs=1,
        train_examples=256,
    )
    found = beside_tfmot.measure(config)
    assert found["ours"]["twin_differing"] == 0 and "refused" not in found["tfmot"]
    for side in ("ours", "tfmot"):
        assert (
            found[side]["codes"] == 10 * len(digits.test_labels)
            and len(found[side]["latency_ms"]) == 1
        )
    assert found["ours"]["differing"] < found["tfmot"]["differing"]
    assert found["ours"]["differing"] <= found["ours"]["unrounded_differing"]
    text = json.dumps(found)
    assert str(data_dir) not in text and "/tmp" not in text
    assert "tfmot + TFLiteConverter" in beside_tfmot_table.table([found])
