"""MEAN, SUM, REDUCE_MAX, REDUCE_MIN and the 2-D poolings on codes."""

import math

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import accumulate, base
from tflite_export.kernels import rounding as rounding_lib


def reduce_sum(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """MEAN and SUM: inputs `(x, axes int32)`. Options: keep_dims=False.

    The batch axis cannot be reduced.

    With `n` codes per output (n = 1 in the formulas of SUM):

    single (XNNPACK): `clip(rint(float32(sum x) * r + (z_out - float32(n * z_in) * r)))`, `r = s_in
    / s_out * (1 / n)`, all in float32. double: `sum x - n z_in` by the fixed-point multiplier of
    `s_in / s_out`, with `1 / n` divided into the multiplier (truncated) after as large a left shift
    as fits.

    Note: The reference SUM of LiteRT 2.3 reads int8 as uint8 and clamps to 0..255, so no twin
    equals it: the "double" twin of SUM is what that kernel means to compute. Prefer MEAN.
    """
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    axes = _axes(operator, tensors, len(x.shape))
    count = math.prod(x.shape[axis] for axis in axes)
    keep = base.options(operator)["keep_dims"]
    divisor = count if operator.kind == "MEAN" else 1
    ratio = [base.scalar_scale(operator, t) for t in (x, output)]
    finish = _sum_single if rounding == "single" else _sum_double
    offset = count * x.one_zero_point
    requantize = finish(ratio[0], ratio[1], divisor, offset, output.one_zero_point)
    low, high = rounding_lib.RANGES[output.dtype]

    def run(codes: tf.Tensor) -> tf.Tensor:
        levels = requantize(tf.reduce_sum(codes, axes, keepdims=keep))
        return tf.cast(tf.clip_by_value(levels, low, high), tf.int32)

    return run


def reduce_extremum(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """REDUCE_MAX and REDUCE_MIN: inputs `(x, axes int32)`. Options: keep_dims=False.

    Input and output share one grid.
    """
    del rounding  # Comparisons do not round.
    x = base.input_tensors(operator, tensors)[0]
    base.require_same_grid(operator, x, base.output_tensor(operator, tensors))
    axes = _axes(operator, tensors, len(x.shape))
    keep = base.options(operator)["keep_dims"]
    reduce = tf.reduce_max if operator.kind == "REDUCE_MAX" else tf.reduce_min
    return lambda codes: reduce(codes, axes, keepdims=keep)


def average_pool_2d(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """AVERAGE_POOL_2D: mean of the raw codes inside the image, ties away from zero.

    Input and output share one grid.

    Options: filter=(2, 2), strides=(2, 2), padding="VALID"|"SAME", activation="NONE"|.... XNNPACK
    does not take int8 average pooling: all kernel sets round alike, `(sum +- n // 2) / n`
    truncated, padding not counted in `n`.
    """
    del rounding
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    base.require_same_grid(operator, x, output)
    opts = base.options(operator)
    place, strides = accumulate.window(
        x.shape, opts["filter"], opts["strides"], (1, 1), opts["padding"]
    )
    ones = tf.ones((*opts["filter"], x.shape[-1], 1))
    low, high = base.bounds(operator, tensors, "double")

    def sums(values: tf.Tensor) -> tf.Tensor:
        pooled = accumulate.depthwise(place(tf.cast(values, tf.float32)), ones, strides, (1, 1))
        return tf.cast(pooled, tf.int32)

    inside = sums(tf.ones((1, *x.shape[1:]), tf.int32))

    def run(codes: tf.Tensor) -> tf.Tensor:
        total = sums(codes)
        half = tf.sign(total) * (inside // 2)
        return tf.clip_by_value(tf.truncatediv(total + half, inside), low, high)

    return run


def max_pool_2d(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """MAX_POOL_2D: largest code; one grid on both sides. Options: as AVERAGE_POOL_2D."""
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    base.require_same_grid(operator, x, output)
    opts = base.options(operator)
    low, high = base.bounds(operator, tensors, rounding)

    def run(codes: tf.Tensor) -> tf.Tensor:
        pooled = tf.nn.max_pool2d(
            tf.cast(codes, tf.float32), opts["filter"], opts["strides"], opts["padding"]
        )
        return tf.clip_by_value(tf.cast(pooled, tf.int32), low, high)

    return run


def _axes(operator: deployed.Operator, tensors: base.Tensors, rank: int) -> list[int]:
    """Sorted non-negative reduction axes.

    Raises:
      ValueError: If the batch axis is among them, or an axis is out of range.
    """
    received = np.reshape(base.constant(operator, tensors, 1, "axes"), (-1,)).tolist()
    axes = sorted({axis + rank if axis < 0 else axis for axis in received})
    if not axes or axes[0] < 1 or axes[-1] >= rank:
        base.fail(
            operator, f"axes must lie in 1..{rank - 1} (not the batch). Received: axes={received}."
        )
    return axes


def _sum_single(s_in: np.float32, s_out: np.float32, divisor: int, offset: int, zero_point: int):
    scale = s_in / s_out * (np.float32(1) / np.float32(divisor))
    shift = np.float32(zero_point) - np.float32(offset) * scale
    return lambda total: tf.round(tf.cast(total, tf.float32) * scale + shift)


def _sum_double(s_in: np.float32, s_out: np.float32, divisor: int, offset: int, zero_point: int):
    whole, places = (
        int(v) for v in rounding_lib.quantize_multiplier(np.float64(s_in) / np.float64(s_out))
    )
    # The kernel caps this where the quotient is below every code in any case.
    extra = divisor.bit_length() - 1
    multiplier, shift = np.int64((whole << extra) // divisor), np.int64(places - extra)

    def requantize(total: tf.Tensor) -> tf.Tensor:
        centered = tf.cast(total, tf.int64) - offset
        return (
            rounding_lib.multiply_by_quantized_multiplier(centered, multiplier, shift) + zero_point
        )

    return requantize
