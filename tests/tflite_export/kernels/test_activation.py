"""LEAKY_RELU, PRELU, HARD_SWISH, LOGISTIC and TANH of the twin against the interpreter, on every
code."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tests.tflite_export.kernels.test_lookup import EVERY_CODE, grids, unary
from tflite_export.kernels import activation
from tflite_export.twin import integer_twin as twin_lib

ROUNDINGS = ("single", "double")
CODES = {"x": EVERY_CODE["int8"]}


@pytest.mark.parametrize("alpha", [0.2, 0.01, 0.0, 1.5, 0.001])
def test_leaky_relu_is_exact(alpha):
    """Also where XNNPACK leaves a slope to the builtin kernel (0 and 0.001)."""
    for scales, zeros in grids(0, 12):
        cases.assert_exact(unary("LEAKY_RELU", scales, zeros, alpha=alpha), CODES)


@pytest.mark.parametrize(
    ("ratio", "alpha", "taken"),
    [
        (2.0**7, 1e-4, True),
        (128.1, 1e-4, False),
        (100.0, 1e-4, True),
        (2.0**-8, 1.0, True),
        (0.0039, 1.0, False),
        (1.0, 2.0**-8, True),
        (1.0, 0.0039, False),
        (16.0, 9.0, False),
        (0.5, 0.3, True),
    ],
)
def test_xnnpack_takes_slopes_from_a_256th_to_128_on_either_side(ratio, alpha, taken):
    """Where it does not, the builtin kernel rounds as the reference kernel does."""
    model = unary("LEAKY_RELU", (ratio * 0.25, 0.25), (3, -40), alpha=alpha)
    cases.assert_exact(model, CODES)
    single, double = (cases.kernel_of(model, r)(CODES["x"].astype(np.int32)) for r in ROUNDINGS)
    assert np.any(single != double) == taken


@pytest.mark.parametrize(
    ("s_in", "s_out", "alpha"),
    [
        (4.164041519165039, 0.23276858031749725, 0.5625997185707092),
        (5.277867794036865, 0.1823301762342453, 0.8946245908737183),
        (6.262538433074951, 4.606752872467041, 0.5463472008705139),
        (0.7390514016151428, 0.1924324929714203, 0.437062531709671),
    ],
)
def test_the_order_of_a_slopes_product_and_quotient_is_that_of_the_kernel(s_in, s_out, alpha):
    """In float32 the two orders differ here, by enough for another code."""
    cases.assert_exact(unary("LEAKY_RELU", (s_in, s_out), (0, 0), alpha=alpha), CODES)


def test_leaky_relu_refuses_negative_slopes():
    assert cases.refusal(unary("LEAKY_RELU", (0.1, 0.1), (0, 0), alpha=-0.5)) == (
        "LEAKY_RELU -> 'y': alpha must not be negative. Received: alpha=-0.5."
    )


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


def test_hard_swish_of_small_and_large_inputs_is_exact():
    """Below 1/171 the gate is shifted right, above 1/85 left; where it saturates all is 0 or x."""
    for scale in (2.0**-12, 0.004, 1 / 171, 0.0087, 1 / 85, 0.02, 0.5, 3.0, 20.0):
        for ratio in (1 / 127, 0.3, 1.0, 7.0):
            for zeros in ((0, 0), (-100, 9)):
                cases.assert_exact(unary("HARD_SWISH", (scale, scale * ratio), zeros), CODES)


def test_hard_swish_refuses_what_the_kernel_refuses():
    smallest = np.nextafter(np.float32(0.5 / 128), np.float32(1))
    cases.assert_exact(unary("HARD_SWISH", (0.5, smallest), (0, 0)), CODES)
    refused = unary("HARD_SWISH", (0.5, 0.5 / 128), (0, 0))
    with pytest.raises(RuntimeError, match="failed to prepare"):
        cases.interpret(refused, CODES, cases.XNNPACK)
    assert cases.refusal(refused) == (
        "HARD_SWISH -> 'y': needs input scale / 128 < output scale. Received: 0.5 and 0.00390625."
    )


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


def test_a_tie_of_tanh_goes_to_the_even_code_or_away_from_zero():
    """1 is 2.5 steps."""
    for zero, single in ((0, [-2, 2]), (7, [4, 10])):
        model = unary("TANH", (1.0, 0.4), (0, zero))
        ends = tf.constant([-100, 100])
        assert cases.kernel_of(model, "single")(ends).numpy().tolist() == single
        assert cases.kernel_of(model, "double")(ends).numpy().tolist() == [zero - 3, zero + 3]


def test_ends_of_the_sigmoid_are_0_and_1():
    values = np.float32([-1e30, -1000, -101, 0, 101, 1000, 1e30])
    for function in (activation._sigmoid_float64, activation._sigmoid_float32):
        found = function(values)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1, 1, 1], atol=1e-43)


@pytest.mark.parametrize(
    ("scale", "zero"), [(0.1, 0), (1 / 256, -127), (1 / 257, 0), (1 / 255, -128)]
)
def test_logistic_needs_its_grid(scale, zero):
    assert cases.refusal(unary("LOGISTIC", (0.1, scale), (0, zero))) == (
        "LOGISTIC -> 'y': needs output scale 1/256, zero point -128. Received:"
        f" {np.float32(scale):g}, {zero}."
    )


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
