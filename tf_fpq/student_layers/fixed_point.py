"""Fixed-point arithmetic of the TFLite kernels on scales that train: tensors instead of constants.

`tflite_export/kernels/rounding.py` is the same arithmetic for a finished model. Here the scales are
step sizes of a student in training, so multipliers are computed in the graph. Operands are tables
of all 256 codes of an int8 tensor, so none of it costs anything.
"""

from collections.abc import Sequence
import functools

import tensorflow as tf

INT8_MIN, INT8_MAX = -128, 127
# Of IEEE 754's float64: bits of the fraction, and the exponent field of numbers in [0.5, 1).
_FRACTION_BITS, _EXPONENT_BIAS = 52, 1022


def quantize_multiplier(real: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """TFLite's `QuantizeMultiplier`: a real number as an integer and a power of two.

    Returned are int64 `(m, shift)` with `real ~ m * 2^(shift - 31)` and `m` in [2^30, 2^31). A
    worked number: 0.75 is `m = 0.75 * 2^31 = 1610612736`, `shift = 0`.

    Args:
      real: Positive normal number, scalar.
    """
    # C's frexp: the exponent field of a float64, and the number with that of [0.5, 1) in its place.
    bits = tf.bitcast(tf.cast(real, tf.float64), tf.int64)
    exponent = _shift_right(bits, _FRACTION_BITS)
    shift = exponent - _EXPONENT_BIAS
    unit = bits + (_EXPONENT_BIAS - exponent) * 2**_FRACTION_BITS
    fraction = tf.bitcast(unit, tf.float64)
    multiplier = tf.cast(tf.floor(fraction * 2.0**31 + 0.5), tf.int64)
    carried = tf.equal(multiplier, 2**31)
    multiplier = tf.where(carried, tf.constant(2**30, tf.int64), multiplier)
    shift = tf.where(carried, shift + 1, shift)
    return tf.where(shift < -31, tf.zeros_like(multiplier), multiplier), tf.maximum(shift, -31)


def multiply(x: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """int64 `x * real`, rounded twice as by TFLite's `MultiplyByQuantizedMultiplier`.

    The high half of the product is rounded first (ties upward), then the division by what is left
    of the power of two (ties away from zero). A worked number: 5 * 0.25 = 1.25 becomes 2. With
    `m = 2^30` and `shift = -1` the first rounding makes 3 of 2.5, the second 2 of 1.5.

    Args:
      x: int64 values within int32.
      real: Positive, scalar; float32 or float64.
    """
    multiplier, shift = quantize_multiplier(real)
    left, right = tf.maximum(shift, 0), tf.maximum(-shift, 0)
    high = _shift_right(tf.bitwise.left_shift(x, left) * multiplier + 2**30, 31)
    half = _shift_right(tf.bitwise.left_shift(tf.ones_like(right), right), 1)
    # A negative number's tie goes down if one less than half is added before the shift.
    borrow = _shift_right(high, 63) * tf.cast(right > 0, tf.int64)
    return tf.bitwise.right_shift(high + half + borrow, right)


def multiply_eight_bits(x: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """int64 `x * ratio` as XNNPACK's conversions round it: `(x * rint(256 * ratio) + 128) >> 8`.

    A worked number: at a ratio of 0.7 the multiplier is 179, and 245 becomes `43983 >> 8 = 171`,
    although `245 * 0.7 = 171.5` rounds to 172.
    """
    multiplier = tf.cast(tf.round(256.0 * tf.cast(ratio, tf.float32)), tf.int64)
    return _shift_right(x * multiplier + 128, 8)


def weighted_sum(terms: Sequence[tf.Tensor], ratios: Sequence[tf.Tensor]) -> tf.Tensor:
    """int64 `sum of term * ratio` as XNNPACK's ADD rounds it: 20-bit multipliers, ties upward.

    A worked number: at ratios 1 and 1/2 the terms 1 and -1 are a tie of 0.5, which becomes 1.

    Args:
      terms: int64, broadcastable, within 9 bits.
      ratios: Positive scalars.
    """
    ratios = [tf.cast(ratio, tf.float64) for ratio in ratios]
    # frexp's exponent is one more than the logarithm's floor.
    shift = 21 - quantize_multiplier(functools.reduce(tf.maximum, ratios))[1]
    unit = tf.bitwise.left_shift(tf.ones_like(shift), shift)
    multipliers = [tf.cast(tf.round(r * tf.cast(unit, tf.float64)), tf.int64) for r in ratios]
    total = sum(term * m for term, m in zip(terms, multipliers, strict=True))
    return tf.bitwise.right_shift(total + unit // 2, shift)


def round_away(x: tf.Tensor) -> tf.Tensor:
    """C's `round`: ties away from zero.

    This is not `floor(x + 0.5)`, whose sum rounds up for the float just below one half.
    """
    magnitude = tf.abs(x)
    whole = tf.floor(magnitude)
    return tf.sign(x) * (whole + tf.cast(magnitude - whole >= 0.5, x.dtype))


def _shift_right(x: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.int64))
