"""What a record's typed accessors give, and refuse."""

import numpy as np
import pytest

from tflite_export.deployed import Tensor

SCALES = np.array([0.5, 0.25], np.float32)


@pytest.mark.parametrize("scale", [np.array(0.5, np.float32), np.array([0.5], np.float32)])
def test_one_scale_is_a_float32_whatever_the_shape_of_the_array(scale):
    found = Tensor("x", (1, 4), "int8", scale).one_scale
    assert type(found) is np.float32 and found == 0.5


@pytest.mark.parametrize("scale", [None, SCALES])
def test_a_tensor_without_one_scale_is_named(scale):
    with pytest.raises(ValueError, match="Tensor 'x' must have one scale. Received: scale="):
        _ = Tensor("x", (1, 4), "int8", scale).one_scale


def test_zero_points_that_differ_are_not_one():
    assert Tensor("x", (1, 4), "int8", SCALES, -7).one_zero_point == -7
    with pytest.raises(ValueError, match="Tensor 'x' must have one zero point. Received: "):
        _ = Tensor("x", (1, 4), "int8", SCALES, np.array([1, 2])).one_zero_point


def test_an_activation_has_no_constant():
    data = np.array([1, 2], np.int8)
    assert Tensor("w", (2,), "int8", data=data).constant is data
    with pytest.raises(ValueError, match="Tensor 'x' must be constant"):
        _ = Tensor("x", (2,), "int8").constant
