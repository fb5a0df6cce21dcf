"""Unary operators of the twin against the interpreter, on every code."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import rounding
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


@pytest.mark.parametrize("classes", [2, 10, 64])
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.7])
def test_softmax(classes, scale):
    """Reference: exact. Default: the float table's last bit may move a code by 1 LSB; none of these
    moves."""
    rng = np.random.default_rng(4)
    x = cases.activation("x", (1, classes), scale, 11)
    model = cases.one_operator("SOFTMAX", [x], cases.activation("y", (1, classes), 1 / 256, -128))
    codes = cases.random_codes(rng, model, 2000)
    cases.assert_exact(model, codes, ["double"])
    differing, total, worst = cases.mismatches(model, codes, "single")
    assert worst <= 1
    assert differing <= 1e-4 * total


def test_softmax_beta_and_leading_axes():
    rng = np.random.default_rng(5)
    x = cases.activation("x", (1, 3, 5, 7), 0.1, 11)
    model = cases.one_operator(
        "SOFTMAX", [x], cases.activation("y", (1, 3, 5, 7), 1 / 256, -128), beta=0.5
    )
    cases.assert_exact(model, cases.random_codes(rng, model, 100))


def test_quantize_multiplier_golden():
    """0.75 = 0.75 * 2^0; 1 = 0.5 * 2^1; a fraction that rounds up to 1 carries; below 2^-31
    everything vanishes."""
    values = np.array([0.75, 1.0, 1.0 - 2.0**-40, 2.0**-40, 0.0])
    multiplier, shift = rounding.quantize_multiplier(values)
    assert multiplier.tolist() == [3 * 2**29, 2**30, 2**30, 0, 0]
    assert shift.tolist() == [0, 1, 1, 0, 0]


def test_the_three_roundings_of_a_tie():
    """2.5 and -2.5: to even, away from zero, upward."""
    sums, half = np.array([5, -5, 3, -3]), np.float32(0.5)
    single = rounding.single_rounding(sums, half, 0, -128, 127).numpy().tolist()
    assert single == [2, -2, 2, -2]
    # 0.5 is held as 2^30 * 2^-31, whose first step already rounds 2.5 to 3 and -2.5 to -2.
    assert rounding.double_rounding(sums, 0.5, 0, -128, 127).numpy().tolist() == [3, -2, 2, -1]
    assert rounding.real_rounding(sums, 0.5, 0, -128, 127).numpy().tolist() == [3, -3, 2, -2]
    # 0.125: the second step meets the tie.
    ties = np.array([4, -4, 12, -12])
    assert rounding.double_rounding(ties, 0.125, 0, -128, 127).numpy().tolist() == [1, -1, 2, -2]
    assert rounding.upward_rounding(ties, 0.125, 0, -128, 127).numpy().tolist() == [1, 0, 2, -1]
