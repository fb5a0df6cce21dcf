import dataclasses
import errno
import os
import resource

import numpy as np
import pytest

from tests.tflite_export import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import exported_model
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert

IMAGES = small_student.images(24)


def test_the_file_holds_the_deployed_records_bit_for_bit(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    assert reader.differences(exported.deployed, tflite_export.read(exported.path)) == []
    assert exported.bytes == os.path.getsize(exported.path)
    assert exported.name == "small"
    assert {t.dtype for t in exported.deployed.tensors.values()} == {"int8", "int32"}


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_trained_codes_are_exported_codes_at_every_width(tmp_path, weight_bits):
    """Times the power of two that fills the container, at a scale as much smaller."""
    student = small_student.make_student(weight_bits, 8)
    exported = tflite_export.export(student, tmp_path / "x.tflite")
    layer = student.get_layer("project")
    ((_, weight, quantizer, variables),) = layer.quantized_weights()
    trained = quantizer.codes(weight, variables).numpy().transpose(3, 0, 1, 2)
    stored = tflite_export.quant_params(exported.path)["project_kernel"]
    power = 2 ** (8 - weight_bits)
    np.testing.assert_array_equal(stored.data, trained * power)
    batch_norm = student.get_layer("project_bn")
    factor = np.abs(batch_norm.gamma) / np.sqrt(batch_norm.moving_variance + batch_norm.epsilon)
    step_size = quantizer.grid(variables)[0].numpy().reshape(-1)
    np.testing.assert_allclose(stored.scale * power, step_size * factor, rtol=1e-6)
    assert np.abs(trained).max() == 2 ** (weight_bits - 1) - 1
    assert (stored.axis, stored.zero_point, stored.scale.shape) == (0, 0, (6,))


def test_the_twin_evaluates_as_the_file_scores(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    runner = litert.Interpreter(exported.path)
    codes = runner.run(IMAGES)[exported.deployed.outputs[0]]
    grid = exported.deployed.tensors[exported.deployed.outputs[0]]
    values = litert.dequantize(codes, float(grid.scale), grid.zero_point)
    np.testing.assert_array_equal(exported.twin(IMAGES).numpy(), values)
    assert exported.twin is exported.twin


@pytest.mark.parametrize("input_type", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("output_type", ["int8", "uint8", "float32"])
def test_border_types_give_the_same_values(tmp_path, input_type, output_type):
    exported = tflite_export.export(
        small_student.student(),
        tmp_path / "x.tflite",
        input_type=input_type,
        output_type=output_type,
    )
    runner = litert.Interpreter(exported.path)
    assert (runner.inputs[0]["dtype"], runner.outputs[0]["dtype"]) == (
        np.dtype(input_type),
        np.dtype(output_type),
    )
    (found,) = runner.run(IMAGES).values()
    if output_type != "float32":
        found = litert.dequantize(found, *runner.outputs[0]["quantization"])
    np.testing.assert_array_equal(found, exported.twin(IMAGES).numpy())


def test_int4_packs_what_fits_and_keeps_the_codes(tmp_path):
    student = small_student.student()
    small = tflite_export.export(student, tmp_path / "4.tflite", weights="int4")
    found = tflite_export.quant_params(small.path)
    # 4-bit convolutions are packed, the 8-bit Dense layer and the depthwise kernel, which LiteRT
    # cannot run so, are not.
    assert {n: t.dtype for n, t in found.items() if n.endswith("_kernel")} == {
        "stem_kernel": "int4",
        "project_kernel": "int4",
        "depthwise_kernel": "int8",
        "logits_kernel": "int8",
    }
    whole = tflite_export.export(student, tmp_path / "8.tflite")
    for name in ("stem_kernel", "project_kernel"):
        packed, wide = found[name], whole.deployed.tensors[name]
        np.testing.assert_array_equal(packed.data.astype(int) * 16, wide.data)
        np.testing.assert_array_equal(packed.scale, wide.scale * 16)
    assert exported_model.unpacked_weights(small.deployed) == ["depthwise_kernel"] + [
        "logits_kernel"
    ]


def test_int4_without_a_weight_that_fits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No weight of 'small' fits INT4"):
        tflite_export.export(
            small_student.make_student(8, 8), tmp_path / "x.tflite", weights="int4"
        )
    assert not list(tmp_path.iterdir())


def test_a_file_opens_again_as_the_export_it_was(tmp_path):
    first = tflite_export.export(
        small_student.student(), tmp_path / "x.tflite", input_type="float32", weights="int4"
    )
    again = tflite_export.open_exported(small_student.student(), first.path)
    assert reader.differences(first.deployed, again.deployed) == []
    fields = [f.name for f in dataclasses.fields(first) if f.name != "deployed"]
    assert [getattr(first, f) for f in fields] == [getattr(again, f) for f in fields]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_type": "int16"},
            "input_type must be one of int8, uint8, float32. Received: input_type='int16'",
        ),
        ({"output_type": "double"}, "output_type must be one of"),
        ({"weights": "int2"}, "weights must be 'int8' or 'int4'. Received: weights='int2'"),
    ],
)
def test_unknown_types_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.export(small_student.student(), tmp_path / "x.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_no_student_is_refused(tmp_path):
    path = tmp_path / "x.tflite"
    with pytest.raises(TypeError, match="must be a model from tf_fpq.quantize_model"):
        tflite_export.export("student.keras", path)
    with pytest.raises(ValueError, match="quantize_model"):
        tflite_export.export(small_student.float_model(), path)

    class Trainer(keras.Model):
        student = small_student.student()

    with pytest.raises(ValueError, match="export its `.student` instead"):
        tflite_export.export(Trainer(), path)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="must be a functional model"):
        tflite_export.export(Subclassed(), path)
    rules = [tf_fpq.QuantRule("stem", weight_bits=4, activation_bits=8)]
    half = tf_fpq.quantize_model(small_student.float_model(), rules)
    with pytest.raises(ValueError, match="no rule matched it"):
        tflite_export.export(half, path)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Cannot write the .tflite file"):
        tflite_export.export(small_student.student(), tmp_path / "missing" / "x.tflite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="Cannot write the .tflite file"):
        tflite_export.export(small_student.student(), tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_an_interruption_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"the old file")

    def interrupted(*_):
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="Cannot write the .tflite file"):
        tflite_export.export(small_student.student(), path)
    assert path.read_bytes() == b"the old file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tflite"]


def test_a_write_that_ends_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"the old file")
    student = small_student.student()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk, the first bytes go through and the rest does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="Cannot write the .tflite file .File too large"):
            tflite_export.export(student, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"the old file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tflite"]


def test_printing_an_export_is_one_line(tmp_path):
    path = tmp_path / "x.tflite"
    exported = tflite_export.export(small_student.student(), path, output_type="float32")
    count = len(exported.deployed.operators)
    assert repr(exported) == (
        f"ExportedModel({str(path)!r}, 'small': {count} operators, {exported.bytes:,} bytes, int8"
        " weights, int8 to float32)"
    )
