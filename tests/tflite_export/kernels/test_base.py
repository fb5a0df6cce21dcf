"""What the kernels share: checks of an operator's tensors, in whole messages."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export import deployed
from tflite_export.kernels import base

Tensor = deployed.Tensor
TENSORS = {
    "x": cases.activation("x", (1, 4), 0.5, 3),
    "k": cases.constant("k", np.arange(4, dtype=np.int8), 0.25, zero_point=-1),
    "y": cases.activation("y", (1, 4), 0.4, -10),
}
ADD = deployed.Operator("ADD", ("x", "k"), ("y",), {"activation": "RELU_N1_TO_1"})


def test_an_operator_is_named_by_its_first_output():
    operator = deployed.Operator("SPLIT", ("x",), ("first", "second"))
    with pytest.raises(ValueError, match="^SPLIT -> 'first': reason$"):
        base.fail(operator, "reason")


def test_options_and_tensors_of_an_operator():
    assert base.options(ADD) == {"activation": "RELU_N1_TO_1"}
    assert base.options(deployed.Operator("ADD", ("x", "k"), ("y",))) == {"activation": "NONE"}
    assert base.input_tensors(ADD, TENSORS) == [TENSORS["x"], TENSORS["k"]]
    assert base.output_tensor(ADD, TENSORS) is TENSORS["y"]


def test_a_constant_input_is_there_and_constant():
    assert base.constant(ADD, TENSORS, 1, "weights") is TENSORS["k"].data
    for index, message in (
        (0, "weights must be constant. Received: 'x' without data."),
        (2, "needs a constant input 2 (weights). Received: inputs=('x', 'k')."),
    ):
        with pytest.raises(ValueError) as error:
            base.constant(ADD, TENSORS, index, "weights")
        assert str(error.value) == f"ADD -> 'y': {message}"


@pytest.mark.parametrize("scale", [None, np.float32([0.1, 0.2]), np.zeros(0, np.float32)])
def test_a_tensor_of_one_grid_has_one_scale(scale):
    with pytest.raises(ValueError) as error:
        base.scalar_scale(ADD, Tensor("t", (1, 2), "int8", scale))
    assert str(error.value) == f"ADD -> 'y': tensor 't' must have one scale. Received: {scale=!s}."
    found = base.scalar_scale(ADD, Tensor("t", (1, 2), "int8", np.float32([0.1])))
    assert found == np.float32(0.1) and found.dtype == np.float32


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "uint8"},
        {"zero_point": 2},
        {"zero_point": 4},
        {"scale": np.float32(0.4)},
        {"scale": np.float32(0.6)},
    ],
)
def test_the_first_tensor_of_another_grid_is_named(other):
    x = TENSORS["x"]
    y = Tensor(**{**vars(x), "name": "other", **other})
    base.require_same_grid(ADD, x, Tensor(**{**vars(x), "name": "same"}))
    with pytest.raises(ValueError) as error:
        base.require_same_grid(ADD, x, x, y, TENSORS["k"])
    assert str(error.value) == (
        "ADD -> 'y': needs one scale and zero point on both sides; requantize first. Received: 'x'"
        f" (int8, 0.5, 3) and 'other' ({y.dtype}, {y.scale}, {y.zero_point})."
    )


def test_tensors_without_a_grid_share_none_and_one_alone_is_refused():
    floats = [Tensor(name, (1, 2), "float32") for name in "ab"]
    base.require_same_grid(ADD, *floats)
    scaled = Tensor("c", (1, 2), "float32", np.float32(0.5))
    for pair in ((floats[0], scaled), (scaled, floats[0])):
        with pytest.raises(ValueError, match=r"tensor 'a' must have one scale\."):
            base.require_same_grid(ADD, *pair)


def test_bounds_are_those_of_the_fused_activation_on_the_outputs_grid():
    # 1 is 2.5 steps.
    assert base.bounds(ADD, TENSORS, "single") == (-12, -8)
    assert base.bounds(ADD, TENSORS, "double") == (-13, -7)
    for operator in (
        deployed.Operator("ADD", ("x", "k"), ("y",)),
        deployed.Operator("MAXIMUM", ("x", "k"), ("y",)),
    ):
        assert base.bounds(operator, TENSORS, "single") == (-128, 127)


def test_constants_stand_in_their_places_among_the_given_codes():
    codes = tf.constant([[7, 8, 9, 10]])
    for inputs, places in ((("x", "k", "x"), (0, 1, 0)), (("k", "x"), (1, 0))):
        operator = deployed.Operator("ADD", inputs, ("y",))
        given = (codes,) * places.count(0)
        found = base.operands(operator, TENSORS, given)
        expected = [[[7, 8, 9, 10]], [0, 1, 2, 3]]
        assert [part.numpy().tolist() for part in found] == [expected[place] for place in places]
        assert all(part.dtype == tf.int32 for part in found)
