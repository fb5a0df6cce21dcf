"""ADD, SUB, MUL, MAXIMUM and MINIMUM on codes, with broadcasting and constant operands.

XNNPACK takes ADD, SUB and MUL of int8 tensors within limits of their scales; outside them the
builtin kernels would run, which round differently from one vector length to another, so such
operators are refused. MAXIMUM and MINIMUM run on the builtin kernels and only compare codes.
"""

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base
from tflite_export.kernels import rounding as rounding_lib
from tflite_export.kernels import xnnpack_limits as ratios_lib

# Bits that ADD and SUB of the reference kernels keep below the binary point before the final
# multiplier (`left_shift` in TFLite's `add.cc`): an int8 level of 9 bits and 20 of these fit int32.
LEFT_SHIFT = 20


def add(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """ADD and SUB: inputs `(a, b)`, either may be constant.

    Options: activation="NONE"|"RELU"|"RELU6"|"RELU_N1_TO_1".

    single: `r = s / s_out` per operand in float32, `shift = 20 - floor(log2(max(r_a, r_b)))`, `m =
    rint(r * 2^shift)`: `((a - z_a) * m_a +- (b - z_b) * m_b + 2^(shift - 1)) >> shift`. Both ratios
    must lie in [2^-10, 2^8).

    double: operands scaled by `s / (2 max(s_a, s_b))` after a left shift of 20, the sum by
    `2 max(s_a, s_b) / (2^20 s_out)`, each by a fixed-point multiplier.
    """
    sign = -1 if operator.kind == "SUB" else 1
    a, b = base.input_tensors(operator, tensors)
    scales = [base.scalar_scale(operator, t) for t in (a, b, base.output_tensor(operator, tensors))]
    ratios = np.array([scales[0] / scales[2], scales[1] / scales[2]], np.float32)
    ratios_lib.check(operator, tensors)
    combine = _add_single(ratios, sign) if rounding == "single" else _add_double(scales, sign)
    zero_point = base.output_tensor(operator, tensors).zero_point
    low, high = base.bounds(operator, tensors, rounding)

    def run(*codes: tf.Tensor) -> tf.Tensor:
        left, right = base.operands(operator, tensors, codes)
        total = combine(left - a.zero_point, right - b.zero_point)
        return tf.cast(tf.clip_by_value(total + zero_point, low, high), tf.int32)

    return run


def mul(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """MUL: `(a - z_a) * (b - z_b)` requantized by `s_a * s_b / s_out`.

    Options: activation="NONE"|....

    The scale must lie in [2^-16, 2^8).
    single: one rounding, float32 scale. XNNPACK's ARM kernel rounds its product in fixed point, so
    a tie may differ there. double: fixed-point multiplier of the same float32 scale.
    """
    a, b = base.input_tensors(operator, tensors)
    output = base.output_tensor(operator, tensors)
    s_a, s_b, s_out = (base.scalar_scale(operator, t) for t in (a, b, output))
    ratio = s_a * s_b / s_out
    ratios_lib.check(operator, tensors)
    low, high = base.bounds(operator, tensors, rounding)
    real = np.float64(ratio)  # LiteRT divides in float32 before it widens.

    def run(*codes: tf.Tensor) -> tf.Tensor:
        left, right = base.operands(operator, tensors, codes)
        product = (left - a.zero_point) * (right - b.zero_point)
        if rounding == "single":
            return rounding_lib.single_rounding(product, ratio, output.one_zero_point, low, high)
        return rounding_lib.double_rounding(product, real, output.one_zero_point, low, high)

    return run


def extremum(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """MAXIMUM and MINIMUM: the larger or smaller code. No options.

    All tensors share one scale and zero point.
    """
    del rounding  # Comparisons do not round.
    base.require_same_grid(
        operator, *base.input_tensors(operator, tensors), base.output_tensor(operator, tensors)
    )
    choose = tf.maximum if operator.kind == "MAXIMUM" else tf.minimum
    return lambda *codes: choose(*base.operands(operator, tensors, codes))


def _add_single(ratios: np.ndarray, sign: int):
    shift = 20 - int(np.floor(np.log2(np.float64(ratios.max()))))
    # At most 2^21 each, so that the sum below stays inside int32.
    m_a, m_b = np.rint(ratios.astype(np.float64) * 2.0**shift).astype(np.int32)

    def combine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        total = a * m_a + b * (sign * m_b) + (1 << (shift - 1))
        return tf.bitwise.right_shift(total, shift)

    return combine


def _add_double(scales: list[np.float32], sign: int):
    s_a, s_b, s_out = scales
    # The kernel doubles the larger scale and divides in float32 before it widens; the order of
    # types is the result.
    twice_max = np.float64(2 * max(s_a, s_b))
    into = [rounding_lib.quantize_multiplier(np.float64(s) / twice_max) for s in (s_a, s_b)]
    out = rounding_lib.quantize_multiplier(
        twice_max / np.float64(np.float32(1 << LEFT_SHIFT) * s_out)
    )

    def combine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        scaled = [
            rounding_lib.multiply_by_quantized_multiplier(
                tf.cast(x, tf.int64) * (1 << LEFT_SHIFT), *multiplier
            )
            for x, multiplier in zip((a, b), into, strict=True)
        ]
        return rounding_lib.multiply_by_quantized_multiplier(scaled[0] + sign * scaled[1], *out)

    return combine
