"""CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED of the twin against the interpreter, code for
code."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import accumulate
from tflite_export.twin import integer_twin as twin_lib


def weighted(
    kind,
    rng,
    x_shape,
    w_shape,
    out_shape,
    axis,
    *,
    spread=6,
    out_scale=0.4,
    zero=(-7, 5),
    dtype="int8",
    **options,
):
    """A model of one weighted operator with channel scales over 2^-spread .. 2^spread around the
    requantization's middle.
    """
    channels = w_shape[axis]
    limit = 7 if dtype == "int4" else 127
    weights = rng.integers(-limit, limit, w_shape, endpoint=True).astype(np.int8)
    scales = (0.002 * 2.0 ** rng.uniform(-spread, spread, channels)).astype(np.float32)
    x = cases.activation("x", x_shape, 0.037, zero[0])
    bias = rng.integers(-4000, 4000, channels).astype(np.int32)
    inputs = [
        x,
        cases.constant("w", weights, scales, axis=axis, dtype=dtype),
        cases.constant("b", bias, x.scale * scales, axis=0),
    ]
    return cases.one_operator(
        kind, inputs, cases.activation("y", out_shape, out_scale, zero[1]), **options
    )


CONVOLUTIONS = [
    # x, weights, y, options
    ((1, 9, 8, 5), (7, 3, 3, 5), (1, 9, 8, 7), {}),
    ((1, 9, 8, 5), (7, 3, 3, 5), (1, 5, 4, 7), {"strides": (2, 2), "activation": "RELU"}),
    (
        (1, 9, 8, 5),
        (6, 3, 2, 5),
        (1, 7, 4, 6),
        {"strides": (1, 2), "padding": "VALID", "activation": "RELU6"},
    ),
    ((1, 9, 8, 4), (6, 3, 3, 4), (1, 9, 8, 6), {"dilations": (2, 2), "activation": "RELU_N1_TO_1"}),
    ((1, 9, 8, 4), (6, 3, 3, 4), (1, 5, 6, 6), {"dilations": (2, 1), "padding": "VALID"}),
    ((1, 6, 6, 8), (16, 1, 1, 8), (1, 6, 6, 16), {}),
    ((1, 6, 6, 8), (16, 5, 5, 8), (1, 2, 2, 16), {"strides": (3, 3)}),
    ((1, 1, 12, 6), (5, 1, 3, 6), (1, 1, 12, 5), {}),
    ((1, 6, 6, 8), (6, 3, 3, 4), (1, 6, 6, 6), {}),  # two groups
    # TensorFlow's float32 convolution is wrong for these unless the columns that are never read are
    # cut off.
    ((1, 10, 3, 1), (2, 3, 2, 1), (1, 8, 1, 2), {"strides": (1, 2), "padding": "VALID"}),
    ((1, 10, 7, 1), (4, 1, 3, 1), (1, 10, 1, 4), {"strides": (1, 5), "padding": "VALID"}),
    ((1, 7, 7, 3), (4, 1, 1, 3), (1, 3, 4, 4), {"strides": (3, 2)}),
]


@pytest.mark.parametrize(("x", "w", "y", "options"), CONVOLUTIONS)
def test_conv_2d_is_exact(x, w, y, options):
    rng = np.random.default_rng(1)
    model = weighted("CONV_2D", rng, x, w, y, 0, **options)
    cases.assert_exact(model, cases.random_codes(rng, model, 16))


@pytest.mark.parametrize("x_scale", [0.5, 1.0, 0.25])
def test_conv_2d_is_exact_on_ties(x_scale):
    """Scales that are powers of two and even accumulators put every second sum on a tie."""
    rng = np.random.default_rng(2)
    weights = np.full((4, 1, 1, 1), 2, np.int8) * np.array([1, 2, 3, -1], np.int8).reshape(
        4, 1, 1, 1
    )
    scale = np.full(4, 0.25, np.float32)
    inputs = [
        cases.activation("x", (1, 16, 16, 1), x_scale, 3),
        cases.constant("w", weights, scale, axis=0),
        cases.constant("b", np.arange(-2, 2, dtype=np.int32), scale * np.float32(x_scale), axis=0),
    ]
    model = cases.one_operator("CONV_2D", inputs, cases.activation("y", (1, 16, 16, 4), 1.0, -5))
    codes = cases.random_codes(rng, model, 4)
    cases.assert_exact(model, codes)
    single, double = (
        twin_lib.IntegerTwin(model, r).run_codes(codes)["y"].numpy() for r in ("single", "double")
    )
    assert np.any(single != double), (
        "the two roundings must differ on ties, or this test shows nothing"
    )


DEPTHWISE = [
    ((1, 9, 8, 6), 1, (3, 3), (1, 9, 8, 6), {}),
    ((1, 9, 8, 6), 2, (3, 3), (1, 5, 4, 12), {"strides": (2, 2), "activation": "RELU6"}),
    ((1, 9, 8, 6), 1, (3, 3), (1, 5, 8, 6), {"strides": (2, 1)}),
    (
        (1, 9, 8, 6),
        1,
        (3, 3),
        (1, 5, 4, 6),
        {"dilations": (2, 2), "padding": "VALID", "activation": "RELU"},
    ),
    ((1, 9, 8, 6), 1, (5, 5), (1, 9, 8, 6), {}),
    ((1, 4, 4, 3), 1, (1, 1), (1, 4, 4, 3), {}),
]


@pytest.mark.parametrize(("x", "multiplier", "kernel", "y", "options"), DEPTHWISE)
def test_depthwise_conv_2d_is_exact(x, multiplier, kernel, y, options):
    rng = np.random.default_rng(3)
    shape = (1, *kernel, x[-1] * multiplier)
    model = weighted(
        "DEPTHWISE_CONV_2D", rng, x, shape, y, 3, depth_multiplier=multiplier, **options
    )
    cases.assert_exact(model, cases.random_codes(rng, model, 16))


TRANSPOSED = [
    ((1, 4, 5, 6), (3, 3, 3, 6), (1, 8, 10, 3), {"strides": (2, 2)}),
    (
        (1, 4, 5, 6),
        (3, 3, 3, 6),
        (1, 9, 11, 3),
        {"strides": (2, 2), "padding": "VALID", "activation": "RELU"},
    ),
    ((1, 4, 5, 6), (3, 2, 2, 6), (1, 8, 10, 3), {"strides": (2, 2), "padding": "VALID"}),
    ((1, 4, 5, 6), (3, 4, 4, 6), (1, 4, 10, 3), {"strides": (1, 2), "activation": "RELU6"}),
]


@pytest.mark.parametrize(("x", "w", "y", "options"), TRANSPOSED)
def test_transpose_conv_is_exact(x, w, y, options):
    rng = np.random.default_rng(10)
    for _ in range(4):
        model = weighted("CONV_2D", rng, x, w, y, 0)
        shape = cases.constant("shape", np.array(y, np.int32))
        inputs = [shape, *(model.tensors[name] for name in ("w", "x", "b"))]
        model = cases.one_operator("TRANSPOSE_CONV", inputs, model.tensors["y"], **options)
        cases.assert_exact(model, cases.random_codes(rng, model, 1))


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        ((1, 24), (1, 10), {}),
        ((1, 24), (1, 10), {"activation": "RELU"}),
        ((1, 2, 3, 4), (1, 10), {}),
        ((1, 5, 24), (1, 5, 10), {"keep_num_dims": True}),
    ],
)
def test_fully_connected_per_channel_is_exact(x, y, options):
    rng = np.random.default_rng(4)
    model = weighted("FULLY_CONNECTED", rng, x, (10, 24), y, 0, **options)
    cases.assert_exact(model, cases.random_codes(rng, model, 500))


@pytest.mark.parametrize("with_bias", [True, False])
def test_fully_connected_per_tensor_is_exact(with_bias):
    rng = np.random.default_rng(5)
    for _ in range(5):
        x = cases.activation("x", (1, 24), rng.uniform(0.01, 0.1), int(rng.integers(-128, 128)))
        scale = np.float32(rng.uniform(0.001, 0.01))
        weights = rng.integers(-127, 128, (10, 24)).astype(np.int8)
        inputs = [x, cases.constant("w", weights, scale)]
        if with_bias:
            inputs.append(
                cases.constant("b", rng.integers(-999, 999, 10).astype(np.int32), x.scale * scale)
            )
        model = cases.one_operator(
            "FULLY_CONNECTED", inputs, cases.activation("y", (1, 10), 0.2, 9)
        )
        cases.assert_exact(model, cases.random_codes(rng, model, 300))


@pytest.mark.parametrize("features", [24, 23])
def test_int4_weights_are_exact(features):
    """Packed INT4; an odd row length ends in the middle of a byte."""
    rng = np.random.default_rng(6)
    for units in (8, 17):
        shapes = (1, 6, 5, features), (units, 3, 3, features), (1, 6, 5, units)
        model = weighted("CONV_2D", rng, *shapes, 0, dtype="int4", out_scale=0.05)
        cases.assert_exact(model, cases.random_codes(rng, model, 7))
        shapes = (1, features), (units, features), (1, units)
        model = weighted("FULLY_CONNECTED", rng, *shapes, 0, dtype="int4", out_scale=0.02)
        cases.assert_exact(model, cases.random_codes(rng, model, 301))


def test_accumulates_in_float64_where_float32_is_not_exact():
    rng = np.random.default_rng(7)
    model = weighted(
        "FULLY_CONNECTED", rng, (1, 4096), (4, 4096), (1, 4), 0, spread=2, out_scale=30.0
    )
    operator = model.operators[0]
    weights = np.full((4, 4096), 127, np.int8)
    assert accumulate.accumulator_type(operator, weights, 0, 255, (1,)) == tf.float64
    assert accumulate.accumulator_type(operator, weights[:, :100], 0, 255, (1,)) == tf.float32
    # 127 * 255 * 518 = 16775430 < 2^24 = 16777216: the bias decides.
    assert accumulate.accumulator_type(operator, weights[:, :518], 1785, 255, (1,)) == tf.float32
    assert accumulate.accumulator_type(operator, weights[:, :518], 1786, 255, (1,)) == tf.float64
    extreme = {"x": np.where(rng.random((200, 4096)) < 0.9, 127, -128).astype(np.int8)}
    cases.assert_exact(model, extreme)


def test_refuses_what_the_kernels_do_not_run():
    rng = np.random.default_rng(9)
    model = weighted("CONV_2D", rng, *CONVOLUTIONS[0][:3], 0, out_scale=1e-6)
    with pytest.raises(ValueError, match=r"256\) .*clipped"):
        twin_lib.IntegerTwin(model)
    model = weighted("CONV_2D", rng, *CONVOLUTIONS[0][:3], 0, stride=(1, 1))
    with pytest.raises(ValueError, match="no option"):
        twin_lib.IntegerTwin(model)


def of_kind(kind, rng=None, **options):
    """A model of 3 x 2 kernels with 6 output channels, of each kind."""
    rng = rng or np.random.default_rng(11)
    if kind == "FULLY_CONNECTED":
        return weighted(kind, rng, (1, 8), (6, 8), (1, 6), 0, **options)
    if kind == "DEPTHWISE_CONV_2D":
        shapes = (1, 6, 5, 3), (1, 3, 2, 6), (1, 6, 5, 6)
        return weighted(kind, rng, *shapes, 3, depth_multiplier=2, **options)
    shapes = (1, 6, 5, 4), (6, 3, 2, 4), (1, 6, 5, 6)
    model = weighted("CONV_2D", rng, *shapes, 0, **options)
    if kind == "CONV_2D":
        return model
    shape = cases.constant("shape", np.array(shapes[-1], np.int32))
    inputs = [shape, *(model.tensors[name] for name in ("w", "x", "b"))]
    return cases.one_operator(kind, inputs, model.tensors["y"])


KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def changed(model, operator=(), **tensors):
    """The model with other fields of its tensors and its operator."""
    changes = {
        name: dataclasses.replace(model.tensors[name], **fields) for name, fields in tensors.items()
    }
    operators = tuple(dataclasses.replace(op, **dict(operator)) for op in model.operators)
    return dataclasses.replace(model, tensors={**model.tensors, **changes}, operators=operators)


@pytest.mark.parametrize("kind", KINDS)
def test_an_accumulator_that_can_overflow_is_refused_with_its_largest_sum(kind):
    model = of_kind(kind)
    weights = np.abs(model.tensors["w"].data.astype(int))
    channel = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    # Of codes around the zero point -7 the furthest is 134 away.
    sums = np.moveaxis(weights, channel, 0).reshape(6, -1).sum(axis=1) * 134
    bias = np.array([5, -(2**31) + 1, 0, 2**31 - 1, 3, -4], np.int32)
    largest = max(sums + np.abs(bias.astype(int)))
    assert cases.refusal(changed(model, b={"data": bias})) == (
        f"{kind} -> 'y': its int32 accumulator can overflow: largest possible sum {largest} >="
        " 2^31."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_without_a_bias_is_one_with_a_bias_of_0(kind):
    model = of_kind(kind)
    without = changed(model, {"inputs": model.operators[0].inputs[:-1]})
    zeros = changed(model, b={"data": np.zeros(6, np.int32)})
    codes = tf.constant(cases.random_codes(np.random.default_rng(0), model, 3)["x"], tf.int32)
    for rounding in ("single", "double"):
        found, expected, other = (
            cases.kernel_of(m, rounding)(codes).numpy() for m in (without, zeros, model)
        )
        np.testing.assert_array_equal(found, expected)
        assert np.any(found != other)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_zero_point_0_and_a_bias_one_value_a_channel(kind):
    model = of_kind(kind)
    for zero in (-1, 1):
        assert cases.refusal(changed(model, w={"zero_point": zero})) == (
            f"{kind} -> 'y': weights must be symmetric. Received: zero_point={zero}."
        )
    for shape in ((5,), (7,), (1, 6)):
        assert cases.refusal(changed(model, b={"data": np.zeros(shape, np.int32)})) == (
            f"{kind} -> 'y': bias must have shape (6,). Received: shape {shape}."
        )
    for name, what in (("w", "weights"), ("b", "bias")):
        assert cases.refusal(changed(model, **{name: {"data": None}})) == (
            f"{kind} -> 'y': {what} must be constant. Received: {name!r} without data."
        )


def test_a_depthwise_kernel_has_int8_weights_and_a_channel_for_each_of_the_inputs():
    model = of_kind("DEPTHWISE_CONV_2D")
    for dtype in ("int4", "uint8"):
        assert cases.refusal(changed(model, w={"dtype": dtype})) == (
            f"DEPTHWISE_CONV_2D -> 'y': runs with int8 weights only. Received: dtype={dtype!r}."
        )
    for multiplier in (1, 3):
        wrong = changed(model, {"options": {"depth_multiplier": multiplier}})
        assert cases.refusal(wrong) == (
            "DEPTHWISE_CONV_2D -> 'y': 6 output channels are not 3 input channels times"
            f" depth_multiplier. Received: depth_multiplier={multiplier}."
        )


@pytest.mark.parametrize("kernel", [(1, 2), (2, 1), (1, 1), (2, 2), (3, 2)])
def test_a_transposed_kernel_below_its_strides_is_not_xnnpacks(kernel):
    rng = np.random.default_rng(0)
    model = weighted("CONV_2D", rng, (1, 4, 5, 6), (3, *kernel, 6), (1, 8, 10, 3), 0)
    shape = cases.constant("shape", np.array((1, 8, 10, 3), np.int32))
    inputs = [shape, *(model.tensors[name] for name in ("w", "x", "b"))]
    model = cases.one_operator("TRANSPOSE_CONV", inputs, model.tensors["y"], strides=[2, 2])
    cases.kernel_of(model, "double")
    if min(kernel) >= 2:
        cases.kernel_of(model, "single")
        return
    assert cases.refusal(model, "single") == (
        "TRANSPOSE_CONV -> 'y': XNNPACK takes kernels of at least the strides: pad the kernel with"
        f" zeros after its codes. Received: kernel {kernel}, strides=(2, 2)."
    )


@pytest.mark.parametrize(
    ("rounding", "scales", "sums", "expected"),
    [
        # Float32 and float64 quotients lie on two sides of a tie of these sums.
        (
            "single",
            (0.15741582214832306, 0.10783781111240387, 8.455066680908203),
            (-44578, 44578),
            (-90, 90),
        ),
        (
            "double",
            (0.17412640154361725, 0.012237699702382088, 4.998021125793457),
            (-292013, -167702, 167702),
            (-125, -72, 72),
        ),
    ],
)
def test_xnnpack_computes_its_scale_in_float32_and_the_reference_kernel_in_float64(
    rounding, scales, sums, expected
):
    s_in, s_w, s_out = scales
    count = len(sums)
    inputs = [
        cases.activation("x", (1, 1, 1, 1), s_in),
        cases.constant(
            "w", np.ones((count, 1, 1, 1), np.int8), np.full(count, s_w, np.float32), axis=0
        ),
        cases.constant(
            "b",
            np.array(sums, np.int32),
            np.full(count, np.float32(s_in) * np.float32(s_w)),
            axis=0,
        ),
    ]
    y = cases.activation("y", (1, 1, 1, count), s_out)
    model = cases.one_operator("CONV_2D", inputs, y)
    codes = {"x": np.zeros((1, 1, 1, 1), np.int8)}
    cases.assert_exact(model, codes, [rounding])
    found = cases.kernel_of(model, rounding)(tf.zeros((1, 1, 1, 1), tf.int32))
    assert found.numpy().ravel().tolist() == list(expected)
