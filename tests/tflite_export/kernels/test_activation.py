"""LEAKY_RELU, PRELU, HARD_SWISH, LOGISTIC and TANH of the twin against the interpreter, on every
code."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases
from tests.tflite_export.kernels.test_lookup import EVERY_CODE, grids, unary
from tflite_export.twin import integer_twin as twin_lib

CODES = {"x": EVERY_CODE["int8"]}


@pytest.mark.parametrize("alpha", [0.2, 0.01, 0.0, 1.5, 0.001])
def test_leaky_relu_is_exact(alpha):
    """Also where XNNPACK leaves a slope to the builtin kernel (0 and 0.001)."""
    for scales, zeros in grids(0, 12):
        cases.assert_exact(unary("LEAKY_RELU", scales, zeros, alpha=alpha), CODES)


def test_leaky_relu_refuses_negative_slopes():
    with pytest.raises(ValueError, match="alpha=-0.5"):
        twin_lib.IntegerTwin(unary("LEAKY_RELU", (0.1, 0.1), (0, 0), alpha=-0.5))


@pytest.mark.parametrize("alpha_shape", [(64,), (1, 1, 64), (3, 5, 64)])
def test_prelu_is_exact(alpha_shape):
    rng = np.random.default_rng(1)
    for scales, zeros in grids(1, 6):
        x, y = (
            cases.activation(n, (1, 3, 5, 64), s, z)
            for n, s, z in zip("xy", scales, zeros, strict=True)
        )
        alpha = cases.constant(
            "alpha", rng.integers(-128, 128, alpha_shape).astype(np.int8), 0.004, zero_point=-9
        )
        model = cases.one_operator("PRELU", [x, alpha], y)
        cases.assert_exact(model, cases.random_codes(rng, model, 8))


def test_hard_swish_is_exact():
    for scales, zeros in grids(2, 40):
        cases.assert_exact(unary("HARD_SWISH", scales, zeros), CODES)


def test_hard_swish_refuses_what_the_kernel_refuses():
    with pytest.raises(ValueError, match="128 <= output scale"):
        twin_lib.IntegerTwin(unary("HARD_SWISH", (1.0, 0.001), (0, 0)))


@pytest.mark.parametrize("kind", ["LOGISTIC", "TANH"])
def test_logistic_and_tanh(kind):
    """Tables in float32: at most 1 LSB off where the C library errs beside a tie; hardly an entry
    is."""
    outputs = [(1 / 256, -128)] if kind == "LOGISTIC" else [(1 / 128, 0), (1 / 90, -17)]
    differing = 0
    for scales, zeros in grids(3, 28):
        for scale, zero in outputs:
            for rounding in ("single", "double"):
                count, _, worst = cases.mismatches(
                    unary(kind, (scales[0], scale), (zeros[0], zero)), CODES, rounding
                )
                assert worst <= 1
                differing += count
    assert differing <= 3


def test_logistic_rounds_differently_in_the_two_kernel_sets():
    """A value near a tie: XNNPACK's exponential is float64, the reference kernel's float32."""
    model = unary("LOGISTIC", (0.06762076, 1 / 256), (89, -128))
    cases.assert_exact(model, CODES)
    single, double = (
        twin_lib.IntegerTwin(model, r).run_codes(CODES)["y"].numpy() for r in ("single", "double")
    )
    assert np.sum(single != double) == 1


def test_logistic_needs_its_grid():
    with pytest.raises(ValueError, match="1/256, zero point -128"):
        twin_lib.IntegerTwin(unary("LOGISTIC", (0.1, 0.1), (0, 0)))


def test_swish_as_logistic_times_x_is_exact():
    """SiLU: LOGISTIC and MUL; the middle tensor is compared too."""
    x = cases.activation("x", (1, 64), 0.06, -20)
    gate, y = (
        cases.activation("gate", (1, 64), 1 / 256, -128),
        cases.activation("y", (1, 64), 0.03, -110),
    )
    model = cases.one_operator("LOGISTIC", [x], gate)
    product = cases.one_operator("MUL", [x, gate], y)
    model = type(model)(
        {**model.tensors, **product.tensors},
        model.operators + product.operators,
        ("x",),
        ("gate", "y"),
    )
    cases.assert_exact(model, CODES)


def test_hard_sigmoid_as_depthwise_convolution_is_exact():
    """`clip(0.2 x + 0.5, 0, 1)` in one int8 operator: the output container's ends are the clips."""
    channels, slope = 6, 0.2
    x = cases.activation("x", (1, 8, 8, channels), 0.07, 3)
    scale = np.full(channels, slope / 127, np.float32)
    bias = np.rint(0.5 / (x.scale * scale)).astype(np.int32)
    inputs = [
        x,
        cases.constant("w", np.full((1, 1, 1, channels), 127, np.int8), scale, axis=3),
        cases.constant("b", bias, x.scale * scale, axis=0),
    ]
    y = cases.activation("y", (1, 8, 8, channels), 1 / 255, -128)
    model = cases.one_operator("DEPTHWISE_CONV_2D", inputs, y)
    codes = cases.random_codes(np.random.default_rng(0), model, 4)
    cases.assert_exact(model, codes)
    real = np.clip(slope * 0.07 * (codes["x"].astype(np.float64) - 3) + 0.5, 0, 1)
    levels = twin_lib.IntegerTwin(model).run_codes(codes)["y"].numpy() + 128
    assert np.abs(levels - 255 * real).max() < 0.51
