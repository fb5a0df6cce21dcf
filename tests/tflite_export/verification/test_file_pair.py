import dataclasses

import numpy as np
import pytest

from tests.tflite_export import small_network
from tflite_export.flatbuffer import file_summary, writer
from tflite_export.lowering import io_types
from tflite_export.verification import file_pair

NETWORK = small_network.residual_network()


def written(tmp_path, name, network=NETWORK):
    path = tmp_path / name
    writer.write(network, path)
    return path


def compare(left, right, *args, **arguments):
    return file_pair.compare_files(
        left, right, *args, **{"verbose": 0, "tensor_images": 8, **arguments}
    )


def changed(name, data):
    tensor = dataclasses.replace(NETWORK.tensors[name], data=data)
    return dataclasses.replace(NETWORK, tensors={**NETWORK.tensors, name: tensor})


def test_a_file_equals_itself(tmp_path):
    report = compare(
        written(tmp_path, "a.tflite"),
        written(tmp_path, "b.tflite"),
        kernels=("xnnpack", "reference"),
    )
    assert report.passed and report.images == file_pair.RANDOM_IMAGES
    assert ("left xnnpack", "right xnnpack") in report.agreeing()
    assert ("left reference", "right reference") in report.agreeing()
    assert "bit for bit" in report.notes[0]


def test_the_first_tensor_that_differs_is_named(tmp_path):
    codes = NETWORK.tensors["project/weights"].data.copy()
    codes[2] = -codes[2]
    report = compare(
        written(tmp_path, "a.tflite"),
        written(tmp_path, "b.tflite", changed("project/weights", codes)),
    )
    assert not report.passed
    assert report.failures[0].tensor == "project" and "budget 0" in report.failures[0].message
    assert report.first_diverging("left", "right") == "project"
    assert "project/weights: data differs in" in report.notes[0]
    relaxed = compare(
        tmp_path / "a.tflite", tmp_path / "b.tflite", max_lsb=None, min_top1_agreement=0.0
    )
    assert relaxed.passed and relaxed.outputs[0].differing == report.outputs[0].differing > 0


def test_outputs_of_other_types_are_compared_by_value(tmp_path):
    left = written(tmp_path, "a.tflite")
    images = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)).astype(np.float32)
    for output_type in ("uint8", "float32"):
        right = written(
            tmp_path, f"{output_type}.tflite", io_types.with_io(NETWORK, "float32", output_type)
        )
        assert compare(left, right, images).passed
        assert compare(right, left, images).passed


def test_labels_give_accuracies(tmp_path):
    path = written(tmp_path, "a.tflite")
    images = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)).astype(np.float32)
    report = compare(path, path, (images, np.zeros(20, int)))
    assert report.accuracy["left"] == report.accuracy["right"]


def test_files_that_do_not_pair_are_refused(tmp_path):
    left = written(tmp_path, "a.tflite")
    with pytest.raises(ValueError, match="outputs of the files have different shapes"):
        compare(left, written(tmp_path, "b.tflite", small_network.residual_network(classes=4)))
    floats = written(tmp_path, "f.tflite", io_types.with_io(NETWORK, "float32", "float32"))
    with pytest.raises(ValueError, match="quantized in neither file"):
        compare(floats, floats)
    (tmp_path / "bad.tflite").write_bytes(b"PK\x03\x04rest of it")
    with pytest.raises(ValueError, match="not a TFLite file"):
        compare(left, tmp_path / "bad.tflite")


def test_inspection_counts_by_hand(tmp_path):
    summary = file_summary.inspect_file(written(tmp_path, "a.tflite"))
    # stem 8*8*8 outputs x 27, depthwise x 9, pointwise x 8, dense 10 outputs x 8
    assert summary.macs == 512 * (27 + 9 + 8) + 80
    # ADD: stem, project and its output of 512 bytes each; the padded 10*10*8 and its 512 source
    # come to less.
    assert summary.arena_bytes == 3 * 512
    assert summary.weight_bits["stem/weights"] == 4
    weights = 8 * 27 + 9 * 8 + 64 + 80
    biases, constants = 4 * (8 + 8 + 8 + 10), 4 * (8 + 2)
    assert summary.constant_bytes == weights + biases + constants
    assert summary.to_dict()["bytes"] == (tmp_path / "a.tflite").stat().st_size
    assert (
        "DEPTHWISE_CONV_2D" in summary.text()
        and "value = 0.00392157 * (code + 128)" in summary.text()
    )
