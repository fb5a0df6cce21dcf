"""Which sums are exact, what padding is, and how windows and strides are brought to TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export import deployed
from tflite_export.kernels import accumulate

OPERATOR = deployed.Operator("CONV_2D", ("x", "w"), ("y",))
LIMIT = 2**31


@pytest.mark.parametrize(
    ("dtype", "zero", "expected"),
    [
        ("int8", 0, 128),
        ("int8", -1, 128),
        ("int8", -128, 255),
        ("int8", 127, 255),
        ("uint8", 10, 245),
        ("uint8", 200, 200),
    ],
)
def test_the_largest_offset_is_that_of_the_end_further_away(dtype, zero, expected):
    tensor = cases.activation("x", (1,), zero_point=zero, dtype=dtype)
    assert accumulate.largest_offset(tensor) == expected


def _bound(weights, bias, offset, axes):
    """The largest sum, which is named where it is too large."""
    bias = np.asarray(bias, np.int64) * 2**16
    with pytest.raises(ValueError) as error:
        accumulate.accumulator_type(OPERATOR, np.array(weights, np.int8), bias, offset << 16, axes)
    start = "CONV_2D -> 'y': its int32 accumulator can overflow: largest possible sum "
    message = str(error.value)
    assert message.startswith(start) and message.endswith(" >= 2^31.")
    return int(message[len(start) : -len(" >= 2^31.")]) / 2**16


def test_the_largest_sum_is_of_magnitudes_over_the_channel_that_has_it():
    weights = [[100, -100], [-128, 0]]
    assert _bound(weights, 0, 400, (1,)) == 200 * 400
    assert _bound(weights, [5, -40000], 400, (1,)) == 128 * 400 + 40000
    assert _bound(weights, [5, -40000], 400, (0,)) == 228 * 400 + 5
    assert _bound(np.transpose([weights]), 0, 400, (0, 2)) == 200 * 400


def test_sums_below_2_to_the_24_are_exact_in_float32_and_from_2_to_the_31_on_in_nothing():
    for offset, expected in (
        (2**24 - 1, tf.float32),
        (2**24, tf.float64),
        (LIMIT - 1, tf.float64),
    ):
        found = accumulate.accumulator_type(OPERATOR, np.array([[1]], np.int8), 0, offset, (1,))
        assert found == expected
    with pytest.raises(ValueError, match=f"largest possible sum {LIMIT} >= 2"):
        accumulate.accumulator_type(OPERATOR, np.array([[1]], np.int8), 0, LIMIT, (1,))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding", "expected"),
    [
        (5, 3, 1, 1, "SAME", (1, 1, 5)),
        (5, 2, 1, 1, "SAME", (0, 1, 5)),
        (8, 5, 2, 1, "SAME", (1, 2, 4)),
        (10, 3, 3, 1, "SAME", (1, 1, 4)),
        (9, 3, 1, 2, "SAME", (2, 2, 9)),
        (7, 1, 3, 1, "SAME", (0, 0, 3)),
        (8, 1, 3, 1, "SAME", (0, -1, 3)),
        (9, 1, 3, 1, "SAME", (0, -2, 3)),
        (9, 3, 2, 2, "VALID", (0, 0, 3)),
        (10, 3, 2, 2, "VALID", (0, -1, 3)),
        (5, 5, 1, 1, "VALID", (0, 0, 1)),
        (7, 3, 5, 1, "VALID", (0, -4, 1)),
    ],
)
def test_padding_of_an_axis(size, kernel, stride, dilation, padding, expected):
    assert accumulate.pad_amounts(size, kernel, stride, dilation, padding) == expected


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "dilations", "padding", "pads", "kept", "effective"),
    [
        ((1, 5, 6, 2), (3, 2), (1, 1), (1, 1), "SAME", ((1, 1), (0, 1)), (5, 6), (1, 1)),
        ((1, 5, 6, 2), (2, 3), (2, 3), (1, 1), "SAME", ((0, 1), (0, 0)), (5, 6), (2, 3)),
        ((1, 9, 4, 1), (3, 2), (1, 1), (2, 3), "SAME", ((2, 2), (1, 2)), (9, 4), (1, 1)),
        ((1, 8, 9, 1), (1, 1), (3, 3), (1, 1), "SAME", ((0, 0), (0, 0)), (7, 7), (3, 3)),
        # One output position in an axis: its stride is 1.
        ((1, 10, 3, 1), (3, 2), (2, 2), (1, 1), "VALID", ((0, 0), (0, 0)), (9, 2), (2, 1)),
        ((1, 3, 10, 1), (2, 3), (2, 2), (1, 1), "VALID", ((0, 0), (0, 0)), (2, 9), (1, 2)),
    ],
)
def test_a_window_is_padded_with_zeros_and_cut_where_it_is_never_read(
    shape, kernel, strides, dilations, padding, pads, kept, effective
):
    place, found = accumulate.window(shape, kernel, strides, dilations, padding)
    x = np.arange(1.0, 1 + 2 * np.prod(shape)).reshape(2, *shape[1:])
    expected = np.pad(x[:, : kept[0], : kept[1]], ((0, 0), *pads, (0, 0)))
    np.testing.assert_array_equal(place(tf.constant(x)), expected)
    assert found == effective


def _depthwise(x, kernel, strides, dilations):
    """By loops."""
    reach = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilations, strict=True)]
    rows, columns = (
        range(0, x.shape[axis + 1] - reach[axis] + 1, strides[axis]) for axis in range(2)
    )
    result = np.zeros((len(x), len(rows), len(columns), *kernel.shape[2:]))
    for (i, row), (j, column) in ((a, b) for a in enumerate(rows) for b in enumerate(columns)):
        part = x[:, row : row + reach[0] : dilations[0], column : column + reach[1] : dilations[1]]
        result[:, i, j] = np.einsum("bhwc,hwcm->bcm", part, kernel)
    return result.reshape(*result.shape[:3], -1)


@pytest.mark.parametrize("dilations", [(1, 1), (2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 2)])
def test_a_depthwise_convolution_of_any_strides_and_dilations(strides, dilations):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (2, 9, 8, 3)).astype(np.float32)
    kernel = rng.integers(-9, 10, (2, 3, 3, 2)).astype(np.float32)
    found = accumulate.depthwise(tf.constant(x), tf.constant(kernel), strides, dilations)
    np.testing.assert_array_equal(found, _depthwise(x, kernel, strides, dilations))


@pytest.mark.parametrize(
    ("strides", "dilations", "theirs"),
    [((2, 2), (1, 1), 2), ((2, 1), (1, 1), 1), ((2, 2), (2, 2), 1), ((2, 2), (1, 2), 1)],
)
def test_tensorflow_takes_the_strides_that_it_can(monkeypatch, strides, dilations, theirs):
    seen, original = [], tf.nn.depthwise_conv2d
    monkeypatch.setattr(
        tf.nn,
        "depthwise_conv2d",
        lambda x, kernel, given, *rest, **more: (
            seen.append(given) or original(x, kernel, given, *rest, **more)
        ),
    )
    accumulate.depthwise(tf.zeros((1, 9, 9, 1)), tf.zeros((2, 2, 1, 1)), strides, dilations)
    assert seen == [[1, theirs, theirs, 1]]
