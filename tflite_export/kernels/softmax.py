"""SOFTMAX on codes, with output scale 1/256 and zero point -128.

TFLite demands that grid. XNNPACK does not take int8 softmax.

*   "single" is the default interpreter on x86: a float32 table of `exp`, summed in order, one
    rounding (ties away). The table entries equal the C library's `expf` but for a last bit, so a
    code may differ by 1 LSB; ARM builds use a 16-bit table.
*   "double" is the reference kernel: gemmlowp fixed point throughout, exact.
"""

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base, fixed_point
from tflite_export.kernels import rounding as rounding_lib

OUTPUT_SCALE, OUTPUT_ZERO_POINT = 1 / 256, -128
# Integer bits of the sum of exponentials in the reference kernel.
SUM_BITS = 12


def softmax(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """SOFTMAX over the last axis: inputs `(x,)`. Options: beta=1.0."""
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    if (
        output.zero_point != OUTPUT_ZERO_POINT
        or base.scalar_scale(operator, output) != OUTPUT_SCALE
    ):
        base.fail(
            operator,
            f"needs output scale 1/256, zero point -128. Received: {output.scale},"
            f" {output.zero_point}.",
        )
    beta = base.options(operator)["beta"]
    build = _float_table if rounding == "single" else _fixed_point
    return build(base.scalar_scale(operator, x), beta)


def _differences(codes: tf.Tensor) -> tf.Tensor:
    """Index 0..255 of each code's distance below its row's largest code.

    255 is the largest itself.
    """
    return codes - tf.reduce_max(codes, -1, keepdims=True) + 255


def _float_table(scale: np.float32, beta: float) -> base.Kernel:
    arguments = -scale * np.float32(beta) * np.arange(255, -1, -1, dtype=np.float32)
    table = tf.constant(np.exp(arguments.astype(np.float64)).astype(np.float32))

    def run(codes: tf.Tensor) -> tf.Tensor:
        exponentials = tf.gather(table, _differences(codes))
        total = _sum_in_order(exponentials)
        scaled = exponentials * (1.0 / (total * np.float32(OUTPUT_SCALE)))
        levels = tf.cast(rounding_lib.round_away(scaled), tf.int32)
        return tf.minimum(levels + OUTPUT_ZERO_POINT, 127)

    return run


def _sum_in_order(values: tf.Tensor) -> tf.Tensor:
    """Float32 sum over the last axis from first to last, as the kernel's loop adds.

    The order decides the last bit.
    """
    return tf.cumsum(values, -1)[..., -1:]


def _fixed_point(scale: np.float32, beta: float) -> base.Kernel:
    table = fixed_point.exp_of_differences(float(scale) * beta)
    exponentials = tf.constant(table)
    addends = tf.constant(fixed_point.divide_by_power(table, SUM_BITS))

    def run(codes: tf.Tensor) -> tf.Tensor:
        index = _differences(codes)
        total = tf.reduce_sum(tf.gather(addends, index), -1, keepdims=True)
        reciprocal, bits_over_unit = _reciprocal(total)
        product = rounding_lib.high_multiply(tf.gather(exponentials, index), reciprocal)
        levels = rounding_lib.divide_by_power(product, bits_over_unit + 31 - 8)
        return tf.cast(tf.minimum(levels + OUTPUT_ZERO_POINT, 127), tf.int32)

    return run


def _reciprocal(total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Gemmlowp's `GetReciprocal` of a sum in Q12.19.

    It is three Newton steps from 48/17 - 32/17 d on the normalized sum.
    """
    powers = tf.constant([1 << bit for bit in range(32)], tf.int64)
    headroom = tf.reduce_sum(tf.cast(total[..., None] < powers, tf.int64), -1)
    normalized = tf.bitwise.left_shift(total, headroom)
    half_denominator = tf.bitwise.right_shift(normalized, tf.constant(1, tf.int64))
    x = 1515870810 + rounding_lib.high_multiply(half_denominator, np.int64(-1010580540))
    for _ in range(3):
        rest = 2**29 - rounding_lib.high_multiply(half_denominator, x)
        x = x + rounding_lib.high_multiply(x, rest) * 4
    # Of the smallest denominator, 1/2, the reciprocal is 2, which Q_0 does not have.
    return tf.minimum(x * 2, 2**31 - 1), SUM_BITS - headroom
