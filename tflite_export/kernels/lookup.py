"""Unary operators, as tables of all 256 codes.

A table is computed once by the kernel's own rule. Running the operator gathers from it.

RELU, RELU6, RELU_N1_TO_1, RELU_0_TO_1 (none taken by XNNPACK for int8), QUANTIZE and DEQUANTIZE.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base
from tflite_export.kernels import rounding as rounding_lib
from tflite_export.kernels import xnnpack_limits as ratios_lib


def from_table(
    tensor: deployed.Tensor, function: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Kernel that gathers `function` of all codes of `tensor`'s dtype.

    `function` maps int32 codes to int32 codes.
    """
    qmin, qmax = rounding_lib.RANGES[tensor.dtype]
    table = tf.constant(np.asarray(function(tf.range(qmin, qmax + 1)), np.int32))
    return lambda codes: tf.gather(table, codes - qmin)


def relu(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """RELU, RELU6, RELU_N1_TO_1 and RELU_0_TO_1 as operators of their own.

    They requantize with double rounding, then clip.

    Input and output may have different grids. No options. All kernel sets agree.
    """
    del rounding
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    low, high = rounding_lib.activation_bounds(
        operator.kind, s_out, output.one_zero_point, output.dtype, "double"
    )
    return from_table(
        x,
        lambda q: rounding_lib.double_rounding(
            q - x.zero_point, s_in / s_out, output.one_zero_point, low, high
        ),
    )


def quantize(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """QUANTIZE: float32 to int8 or uint8, or between int8 and uint8 grids. No options.

    float32, single (XNNPACK): `rint(x * float32(1 / s)) + z`; double: `round(x / s) + z`, ties away
    from zero. int8 to int8 or uint8 to uint8, ratio `s_in / s_out` in [2^-8, 2^7] (XNNPACK's
    limits), single: `((q - z_in) * m + 128) >> 8 + z_out` with the coarse `m = rint(256 * s_in /
    s_out)`; double: fixed-point double rounding. Between int8 and uint8 only the exact shift by 128
    is accepted: the builtin kernel rounds differently from one vector length to another.
    """
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    scale = base.scalar_scale(operator, output)
    low, high = rounding_lib.RANGES[output.dtype]
    if x.dtype == "float32":
        return _quantize_float(scale, output.one_zero_point, low, high, rounding)
    s_in = base.scalar_scale(operator, x)
    ratio = s_in / scale
    if x.dtype != output.dtype:
        return _flip(operator, x, output)
    ratios_lib.check(operator, tensors)
    if rounding == "double":
        real = np.float64(s_in) / np.float64(scale)
        return from_table(
            x,
            lambda q: rounding_lib.double_rounding(
                q - x.zero_point, real, output.one_zero_point, low, high
            ),
        )
    multiplier = int(np.rint(np.float32(256) * ratio))

    def convert(codes: tf.Tensor) -> tf.Tensor:
        levels = tf.bitwise.right_shift((codes - x.zero_point) * multiplier + 128, 8)
        return tf.clip_by_value(levels + output.zero_point, low, high)

    return from_table(x, convert)


def dequantize(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """DEQUANTIZE: `(q - z) * s` in float32; all kernel sets agree. No options."""
    del rounding
    x = base.input_tensors(operator, tensors)[0]
    scale = base.scalar_scale(operator, x)
    return lambda codes: tf.cast(codes - x.zero_point, tf.float32) * scale


def _flip(operator: deployed.Operator, x: deployed.Tensor, output: deployed.Tensor) -> base.Kernel:
    """Between an int8 grid and the uint8 grid of the same scale: codes shifted by 128."""
    shift = 128 if output.dtype == "uint8" else -128
    same = base.scalar_scale(operator, x) == base.scalar_scale(operator, output)
    if not same or output.zero_point - x.zero_point != shift:
        base.fail(
            operator,
            f"{x.dtype} to {output.dtype} needs the same scale and zero points {shift:+d} apart.",
        )
    return lambda codes: codes + shift


def _quantize_float(
    scale: np.float32, zero_point: int, low: int, high: int, rounding: rounding_lib.Rounding
):
    # Captured: a divisor that is a constant of the graph would be turned into a multiplication,
    # which rounds differently.
    divisor = tf.constant(scale)

    def single(values: tf.Tensor) -> tf.Tensor:
        return tf.round(values * (np.float32(1) / scale))

    def double(values: tf.Tensor) -> tf.Tensor:
        return rounding_lib.round_away(values / divisor)

    levels = single if rounding == "single" else double

    def run(values: tf.Tensor) -> tf.Tensor:
        clipped = tf.clip_by_value(
            levels(values), float(low - zero_point), float(high - zero_point)
        )
        return tf.cast(clipped, tf.int32) + zero_point

    return run
