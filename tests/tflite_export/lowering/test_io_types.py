"""int8, uint8 and float32 borders around one and the same network."""

import numpy as np
import pytest

from tests.tflite_export import small_network
from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.flatbuffer import reader
from tflite_export.lowering import io_types
from tflite_export.twin import integer_twin as twin_lib

MODEL = small_network.residual_network()


def test_int8_changes_nothing():
    assert reader.differences(MODEL, io_types.with_io(MODEL, "int8", "int8")) == []


@pytest.mark.parametrize("input_type", io_types.IO_TYPES)
@pytest.mark.parametrize("output_type", io_types.IO_TYPES)
def test_every_border_is_exact(input_type, output_type):
    """Twin = interpreter, in both roundings, and the inner tensors keep their names."""
    model = io_types.with_io(MODEL, input_type, output_type)
    assert set(MODEL.tensors) <= set(model.tensors)
    inputs = cases.random_codes(np.random.default_rng(0), model, 16)
    if input_type == "float32":
        inputs = {name: np.abs(value) / 9 for name, value in inputs.items()}
    cases.assert_exact(model, inputs)


def test_borders_do_not_change_the_network():
    images = np.random.default_rng(1).random((32, 8, 8, 3), np.float32)
    inner = twin_lib.IntegerTwin(MODEL)(images).numpy()
    for input_type, output_type in (("uint8", "uint8"), ("uint8", "float32")):
        np.testing.assert_array_equal(
            twin_lib.IntegerTwin(io_types.with_io(MODEL, input_type, output_type))(images), inner
        )
    # A float32 input is rounded from x * (1 / s) instead of x / s, which may move an input code by
    # one.
    outer = twin_lib.IntegerTwin(io_types.with_io(MODEL, "float32", "float32"))(images).numpy()
    assert np.mean(outer != inner) < 0.02


def test_names_and_grids():
    model = io_types.with_io(MODEL, "uint8", "float32")
    assert (model.inputs, model.outputs) == (("image_uint8",), ("probabilities_float32",))
    assert model.tensors["image_uint8"].zero_point == MODEL.tensors["image"].zero_point + 128
    assert [model.operators[0].kind, model.operators[-1].kind] == ["QUANTIZE", "DEQUANTIZE"]


def test_refusals():
    with pytest.raises(ValueError, match="input_type must be one of.*int16"):
        io_types.with_io(MODEL, "int16")
    with pytest.raises(ValueError, match="output_type='float16'"):
        io_types.with_io(MODEL, "int8", "float16")
    with pytest.raises(ValueError, match="must be int8"):
        io_types.with_io(io_types.with_io(MODEL, "float32"), "uint8")
