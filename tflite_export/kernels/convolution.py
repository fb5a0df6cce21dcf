"""CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED on codes.

All three are `acc = sum((x - z_in) * w) + bias` in int32, requantized per output channel by
`s_in * s_w / s_out`.

A worked number: codes (118, 120) with zero point 110, weights (3, -7) and bias 400 add up to
8 * 3 - 10 * 7 + 400 = 354. With the scales 0.05, 0.01 and 0.02 that is 354 * 0.025 = 8.85, so the
output code is 9 above its zero point.

*   "single": XNNPACK takes the operator (int8 weights, zero point 0, with a bias): single rounding.
*   Packed INT4 CONV_2D weights, and INT4 FULLY_CONNECTED weights with rows of odd length, are not
    taken by XNNPACK: the builtin kernel runs, which rounds twice, the second time with ties upward
    (on x86; its ARM build differs, so packed INT4 convolutions are not equal across devices).
*   "double": the reference kernels, fixed-point double rounding; their FULLY_CONNECTED however
    rounds once, in float64 (TensorFlow Lite for Microcontrollers rounds it in fixed point, which is
    where the two differ).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import accumulate, base
from tflite_export.kernels import rounding as rounding_lib
from tflite_export.kernels import xnnpack_limits as ratios_lib

_Mode = Literal["single", "double", "upward", "real"]


def conv_2d(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """CONV_2D: inputs `(x, weights [out, h, w, in / groups], bias int32 [out])`.

    Options: strides=(1, 1), dilations=(1, 1), padding="SAME"|"VALID",
    activation="NONE"|"RELU"|"RELU6"|"RELU_N1_TO_1".
    """
    x, weights = base.input_tensors(operator, tensors)[:2]
    codes = base.constant(operator, tensors, 1, "weights")
    bias = _bias(operator, tensors, codes.shape[0])
    dtype = accumulate.accumulator_type(
        operator, codes, bias, accumulate.largest_offset(x), (1, 2, 3)
    )
    opts = base.options(operator)
    kernel = tf.constant(np.transpose(codes, (1, 2, 3, 0)), dtype)
    place, strides = accumulate.window(
        x.shape, codes.shape[1:3], opts["strides"], opts["dilations"], opts["padding"]
    )
    bias = tf.constant(bias, dtype)
    int4 = weights.dtype == "int4"
    requantize = _requantize(
        operator, tensors, "upward" if int4 and rounding == "single" else rounding
    )

    def run(inputs: tf.Tensor) -> tf.Tensor:
        centered = place(tf.cast(inputs - x.zero_point, dtype))
        sums = tf.nn.conv2d(centered, kernel, strides, "VALID", dilations=opts["dilations"])
        return requantize(sums + bias)

    return run


def depthwise_conv_2d(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """DEPTHWISE_CONV_2D: inputs `(x, weights [1, h, w, in * depth_multiplier], bias int32)`.

    Options: those of CONV_2D and depth_multiplier=1. Output channel `c * depth_multiplier + m`
    reads input channel `c`.
    """
    x, weights = base.input_tensors(operator, tensors)[:2]
    codes = base.constant(operator, tensors, 1, "weights")
    if weights.dtype != "int8":
        base.fail(operator, f"runs with int8 weights only. Received: dtype={weights.dtype!r}.")
    opts = base.options(operator)
    multiplier = opts["depth_multiplier"]
    if codes.shape[-1] != x.shape[-1] * multiplier:
        base.fail(
            operator,
            f"{codes.shape[-1]} output channels are not {x.shape[-1]} input channels times"
            f" depth_multiplier. Received: depth_multiplier={multiplier}.",
        )
    bias = _bias(operator, tensors, codes.shape[-1])
    dtype = accumulate.accumulator_type(
        operator, codes, bias, accumulate.largest_offset(x), (0, 1, 2)
    )
    kernel = tf.constant(codes.reshape(*codes.shape[1:3], x.shape[-1], multiplier), dtype)
    place, strides = accumulate.window(
        x.shape, codes.shape[1:3], opts["strides"], opts["dilations"], opts["padding"]
    )
    bias = tf.constant(bias, dtype)
    requantize = _requantize(operator, tensors, rounding)

    def run(inputs: tf.Tensor) -> tf.Tensor:
        centered = place(tf.cast(inputs - x.zero_point, dtype))
        sums = accumulate.depthwise(centered, kernel, strides, opts["dilations"])
        return requantize(sums + bias)

    return run


def fully_connected(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """FULLY_CONNECTED: inputs `(x [..., in], weights [out, in], bias int32 [out])`.

    Weights have a scale per channel or one per tensor. Options: activation="NONE"|...,
    keep_num_dims=False. Without keep_num_dims the input is flattened to `[batch, in]`.
    """
    x, weights = base.input_tensors(operator, tensors)[:2]
    codes = base.constant(operator, tensors, 1, "weights")
    bias = _bias(operator, tensors, codes.shape[0])
    dtype = accumulate.accumulator_type(operator, codes, bias, accumulate.largest_offset(x), (1,))
    kernel = tf.constant(codes.T, dtype)
    bias = tf.constant(bias, dtype)
    units, features = codes.shape
    # Two int4 codes share a byte, so a row of odd length ends within one: XNNPACK refuses it.
    odd_int4 = weights.dtype == "int4" and features % 2 == 1
    mode: _Mode = "real" if rounding == "double" else "upward" if odd_int4 else "single"
    requantize = _requantize(operator, tensors, mode)
    keep = base.options(operator)["keep_num_dims"]

    def run(inputs: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(tf.cast(inputs - x.zero_point, dtype), (-1, features))
        out = requantize(tf.matmul(rows, kernel) + bias)
        return tf.reshape(out, tf.concat([tf.shape(inputs)[:-1], [units]], 0)) if keep else out

    return run


def transpose_conv(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """TRANSPOSE_CONV: inputs `(shape, weights [out, h, w, in], x, bias int32 [out])`.

    `shape` is that of the output, int32 `[4]` with batch 1. Options: strides=(1, 1),
    padding="SAME"|"VALID", activation="NONE"|.... Padding is that of the convolution from the
    output to the input. As the output shape is a constant, an interpreter runs it with batch 1
    only.

    single: XNNPACK does not take a kernel that is smaller than its stride, and the builtin kernel,
    which would run instead, rounds ties by one rule in its vector loop and by another behind it.
    Such a kernel is refused; `folding.at_least_strides` pads it.
    """
    _, weights, x = base.input_tensors(operator, tensors)[:3]
    output, opts = base.output_tensor(operator, tensors), base.options(operator)
    # The same operands in a convolution's order, for what the kinds share: requantization and bias.
    inner = deployed.Operator(
        operator.kind, (x.name, weights.name, *operator.inputs[3:]), operator.outputs, opts
    )
    codes = base.constant(operator, tensors, 1, "weights")
    if rounding == "single" and any(
        size < step for size, step in zip(codes.shape[1:3], opts["strides"], strict=True)
    ):
        base.fail(
            operator,
            "XNNPACK takes kernels of at least the strides: pad the kernel with zeros after its"
            f" codes. Received: kernel {codes.shape[1:3]}, strides={tuple(opts['strides'])}.",
        )
    bias = _bias(inner, tensors, codes.shape[0])
    dtype = accumulate.accumulator_type(
        operator, codes, bias, accumulate.largest_offset(x), (1, 2, 3)
    )
    # TensorFlow's conv2d_transpose takes [h, w, out, in].
    kernel, bias = tf.constant(np.transpose(codes, (1, 2, 0, 3)), dtype), tf.constant(bias, dtype)
    requantize = _requantize(inner, tensors, rounding)

    def run(inputs: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([tf.shape(inputs)[:1], output.shape[1:]], 0)
        centered = tf.cast(inputs - x.zero_point, dtype)
        return requantize(
            tf.nn.conv2d_transpose(centered, kernel, shape, opts["strides"], opts["padding"]) + bias
        )

    return run


def requantization_scale(
    operator: deployed.Operator, tensors: base.Tensors, dtype: type[np.floating]
) -> np.ndarray:
    """`s_in * s_w / s_out` per channel.

    XNNPACK computes it in float32, the reference kernels in float64.

    Raises:
      ValueError: If a scale is 256 or more (XNNPACK refuses it).
    """
    x, weights = base.input_tensors(operator, tensors)[:2]
    s_in, s_out = (
        dtype(base.scalar_scale(operator, t)) for t in (x, base.output_tensor(operator, tensors))
    )
    s_w = np.reshape(np.asarray(weights.scale, np.float32), (-1,)).astype(dtype)
    ratios_lib.check(operator, tensors)
    return s_in * s_w / s_out


def _requantize(
    operator: deployed.Operator,
    tensors: base.Tensors,
    mode: _Mode,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from exact accumulators to output codes."""
    scale = requantization_scale(operator, tensors, np.float32 if mode == "single" else np.float64)
    zero_point = base.output_tensor(operator, tensors).one_zero_point
    low, high = base.bounds(operator, tensors, "single" if mode == "single" else "double")
    apply = {
        "single": rounding_lib.single_rounding,
        "double": rounding_lib.double_rounding,
        "upward": rounding_lib.upward_rounding,
        "real": rounding_lib.real_rounding,
    }[mode]
    return lambda sums: apply(sums, scale, zero_point, low, high)


def _bias(operator: deployed.Operator, tensors: base.Tensors, channels: int) -> np.ndarray:
    """int64 bias of shape `[channels]`, zeros when the operator has none.

    The weights' zero point is checked too.
    """
    if tensors[operator.inputs[1]].zero_point != 0:
        base.fail(
            operator,
            "weights must be symmetric. Received:"
            f" zero_point={tensors[operator.inputs[1]].zero_point}.",
        )
    if len(operator.inputs) < 3:
        return np.zeros(channels, np.int64)
    bias = base.constant(operator, tensors, 2, "bias")
    if bias.shape != (channels,):
        base.fail(operator, f"bias must have shape ({channels},). Received: shape {bias.shape}.")
    return bias.astype(np.int64)
