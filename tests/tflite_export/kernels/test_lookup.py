"""Unary operators of the twin against the interpreter, on every code."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import lookup
from tflite_export.twin import integer_twin as twin_lib

EVERY_CODE = {
    "int8": np.arange(-128, 128, dtype=np.int8).reshape(4, 64),
    "uint8": np.arange(256, dtype=np.uint8).reshape(4, 64),
}


def unary(kind, scales, zeros, dtypes=("int8", "int8"), **options):
    x = cases.activation("x", (1, 64), scales[0], zeros[0], dtypes[0])
    y = cases.activation("y", (1, 64), scales[1], zeros[1], dtypes[1])
    if dtypes[0] == "float32":
        x = cases.Tensor("x", (1, 64), "float32")
    if dtypes[1] == "float32":
        y = cases.Tensor("y", (1, 64), "float32")
    return cases.one_operator(kind, [x], y, **options)


def grids(seed: int, count: int):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scale = 2.0 ** rng.uniform(-6, 2)
        yield (
            (scale, scale * 2.0 ** rng.uniform(-2, 2)),
            tuple(int(z) for z in rng.integers(-128, 128, 2)),
        )
    yield (0.05, 0.05), (3, 3)
    yield (0.5, 1.0), (-2, 7)


@pytest.mark.parametrize("kind", ["RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"])
def test_relus_are_exact(kind):
    for scales, zeros in grids(0, 20):
        cases.assert_exact(unary(kind, scales, zeros), {"x": EVERY_CODE["int8"]})


def test_requantization_is_exact():
    for scales, zeros in grids(1, 30):
        cases.assert_exact(unary("QUANTIZE", scales, zeros), {"x": EVERY_CODE["int8"]})


def test_uint8_borders_are_exact():
    cases.assert_exact(
        unary("QUANTIZE", (0.05, 0.05), (3, 131), ("int8", "uint8")), {"x": EVERY_CODE["int8"]}
    )
    cases.assert_exact(
        unary("QUANTIZE", (0.05, 0.05), (131, 3), ("uint8", "int8")), {"x": EVERY_CODE["uint8"]}
    )


@pytest.mark.parametrize(
    ("scales", "zeros", "dtypes", "message"),
    [
        ((0.05, 0.06), (131, 3), ("uint8", "int8"), "same scale"),
        ((0.05, 0.05), (131, 4), ("uint8", "int8"), "128 apart"),
        ((0.001, 0.9), (0, 0), ("int8", "int8"), "must lie in"),
    ],
)
def test_refuses_requantizations_that_no_twin_equals(scales, zeros, dtypes, message):
    with pytest.raises(ValueError, match=message):
        twin_lib.IntegerTwin(unary("QUANTIZE", scales, zeros, dtypes))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_float_borders_are_exact(dtype):
    rng = np.random.default_rng(3)
    for scale in (0.05, 0.5, 0.0123):
        ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
        values = np.concatenate([ties, rng.normal(0, 60 * scale, 2000).astype(np.float32)])[
            :2560
        ].reshape(-1, 64)[:40]
        zero = 9 if dtype == "int8" else 137
        cases.assert_exact(
            unary("QUANTIZE", (1, scale), (0, zero), ("float32", dtype)), {"x": values}
        )
        cases.assert_exact(
            unary("DEQUANTIZE", (scale, 1), (zero, 0), (dtype, "float32")), {"x": EVERY_CODE[dtype]}
        )


def test_all_codes_of_a_dtype_are_in_the_table():
    for dtype, first in (("int8", -128), ("uint8", 0)):
        table = lookup.from_table(cases.activation("x", (1,), dtype=dtype), lambda codes: codes * 2)
        codes = np.arange(first, first + 256)
        np.testing.assert_array_equal(table(tf.constant(codes)), codes * 2)


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_floats_far_outside_the_grid_saturate(rounding):
    for dtype, zero, ends in (("int8", 9, [-128, 127]), ("uint8", 137, [0, 255])):
        kernel = cases.kernel_of(
            unary("QUANTIZE", (1, 0.5), (0, zero), ("float32", dtype)), rounding
        )
        values = [-np.inf, -1e30, 1e30, np.inf]
        assert (
            kernel(tf.constant(values, tf.float32)).numpy().tolist() == np.repeat(ends, 2).tolist()
        )


def test_the_two_kernel_sets_round_a_tie_between_codes_to_different_sides():
    values = tf.constant([-1.25, -0.25, 0.25, 0.75, 1.25], tf.float32)
    model = unary("QUANTIZE", (1, 0.5), (0, 0), ("float32", "int8"))
    assert cases.kernel_of(model, "single")(values).numpy().tolist() == [-2, 0, 0, 2, 2]
    assert cases.kernel_of(model, "double")(values).numpy().tolist() == [-3, -1, 1, 2, 3]


@pytest.mark.parametrize(
    ("scales", "zeros", "dtypes", "apart"),
    [
        ((0.05, 0.06), (131, 3), ("uint8", "int8"), -128),
        ((0.06, 0.05), (131, 3), ("uint8", "int8"), -128),
        ((0.05, 0.05), (131, 4), ("uint8", "int8"), -128),
        ((0.05, 0.05), (3, 130), ("int8", "uint8"), 128),
        ((0.05, 0.05), (3, 132), ("int8", "uint8"), 128),
    ],
)
def test_between_signed_and_unsigned_codes_only_the_shift_is_a_kernel(scales, zeros, dtypes, apart):
    assert cases.refusal(unary("QUANTIZE", scales, zeros, dtypes)) == (
        f"QUANTIZE -> 'y': {dtypes[0]} to {dtypes[1]} needs the same scale and zero points"
        f" {apart:+d} apart."
    )


def test_ratios_at_the_ends_of_what_xnnpack_takes_are_exact():
    for scales in ((2.0**-8, 1.0), (2.0**7, 1.0), (0.3, 0.3 * 2.0**8), (1.0, 1.0)):
        for zeros in ((0, 0), (-128, -128), (5, -7)):
            cases.assert_exact(unary("QUANTIZE", scales, zeros), {"x": EVERY_CODE["int8"]})
