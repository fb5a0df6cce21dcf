"""The two roundings that turn an int32 accumulator into int8 codes.

Here are also the fixed-point pieces of the reference kernels. `"single"` (XNNPACK; its `fp32`
requantization):

    y = clip(rint(float32(acc) * float32(s_in * s_w / s_out)) + z_out, low, high),   ties to even

`"double"` (gemmlowp and the TFLite reference kernels): the real multiplier `r` is held as `m *
2^(shift - 31)` with an int32 `m` in [2^30, 2^31), and both steps round:

    y = clip(RDBP(SRDHM(acc * 2^max(shift, 0), m), max(-shift, 0)) + z_out, low, high)
    SRDHM(a, b) = (a * b + 2^30) >> 31                   saturating rounding doubling high multiply
    RDBP(x, e)  = x / 2^e, ties away from zero           rounding divide by power of two

The reference FULLY_CONNECTED alone multiplies by `r` in float64 and rounds once, ties away from
zero (`real_rounding`).

Worked numbers, with zero point 0. At `r = 0.5` (`m = 2^30`, `shift = 0`) an accumulator of 9 is
4.5: single rounding gives 4, the even one, and double rounding 5. At `r = 0.25` (`m = 2^30`,
`shift = -1`) an accumulator of 5 is 1.25: single rounding gives 1, double rounding first 3 of 2.5
and then 2 of 1.5.

All functions take and return int32 or int64 codes and accumulators; constants are NumPy arrays
known when a twin is built.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

Rounding = Literal["single", "double"]
ROUNDINGS: tuple[Rounding, ...] = ("single", "double")
# A factor, or one per channel.
Real = np.ndarray | np.floating | float
Integer = np.ndarray | np.integer
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def quantize_multiplier(real: Real) -> tuple[np.ndarray, np.ndarray]:
    """TFLite's `QuantizeMultiplier`: real numbers as integers and powers of two.

    Returned are int64 arrays `(m, shift)` with `real ~ m * 2^(shift - 31)` and `m` in [2^30, 2^31),
    or 0. A worked number: 0.3 is 0.6 * 2^-1, so `m = 0.6 * 2^31 = 1288490189` and `shift = -1`.

    Args:
      real: Non-negative multipliers in float64.
    """
    fraction, shift = np.frexp(np.asarray(real, np.float64))
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = shift.astype(np.int64)
    carried = multiplier == 2**31  # a fraction next to 1 rounds up to the next power of two
    multiplier, shift = np.where(carried, 2**30, multiplier), np.where(carried, shift + 1, shift)
    vanished = shift < -31  # the kernels shift an int32, by 31 bits at most
    return np.where(vanished, 0, multiplier), np.where(vanished, 0, shift)


def wrap_int32(x: tf.Tensor) -> tf.Tensor:
    """int64 values reduced to int32 as a C++ int32 overflow does on every machine."""
    return tf.cast(tf.cast(x, tf.int32), tf.int64)


def high_multiply(x: tf.Tensor, multiplier: tf.Tensor | np.ndarray) -> tf.Tensor:
    """`SRDHM` on int64 tensors holding int32 values.

    It is the rounded upper half of `2 * x * multiplier`.
    """
    return tf.bitwise.right_shift(x * multiplier + 2**30, tf.constant(31, tf.int64))


def divide_by_power(x: tf.Tensor, exponent: tf.Tensor | np.ndarray) -> tf.Tensor:
    """`RDBP`: int64 `x / 2^exponent`, ties away from zero; `exponent` broadcasts."""
    # A negative number's tie goes down if one less than half is added before the shift. Nothing to
    # add for exponent 0.
    borrow = tf.bitwise.right_shift(x, tf.constant(63, tf.int64))
    if not isinstance(exponent, np.ndarray | np.integer) or np.any(exponent == 0):
        borrow *= tf.cast(exponent > 0, tf.int64)
    return _shift_right(x + _half(exponent) + borrow, exponent)


def shift_right_rounding(x: tf.Tensor, exponent: tf.Tensor | np.ndarray) -> tf.Tensor:
    """int64 `x / 2^exponent`, ties upward.

    It is the last step of ruy, the builtin kernels' matrix library, on x86. -3 / 2 becomes -1,
    where `divide_by_power` gives -2.
    """
    return _shift_right(x + _half(exponent), exponent)


def _half(exponent: tf.Tensor | np.ndarray) -> tf.Tensor:
    """`2^exponent / 2`, 0 for exponent 0."""
    one = tf.constant(1, tf.int64)
    return _shift_right(
        tf.bitwise.left_shift(tf.ones_like(exponent, tf.int64), tf.cast(exponent, tf.int64)), one
    )


def _shift_right(x: tf.Tensor, exponent: tf.Tensor | np.ndarray) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.cast(exponent, tf.int64))


def multiply_by_quantized_multiplier(
    x: tf.Tensor,
    multiplier: Integer,
    shift: Integer,
    divide: Callable[..., tf.Tensor] = divide_by_power,
) -> tf.Tensor:
    """TFLite's `MultiplyByQuantizedMultiplier` with double rounding.

    Args:
      x: int64 tensor of int32 values.
      multiplier: `m` of `quantize_multiplier`.
      shift: Its `shift`.
      divide: The second rounding.
    """
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    if np.any(left > 0):
        # The kernels shift an int32 left before they multiply, and an overflow wraps.
        x = wrap_int32(x * (np.int64(1) << left))
    return divide(high_multiply(x, multiplier), right)


def single_rounding(
    accumulator: tf.Tensor, scale: Real, zero_point: int, low: int, high: int
) -> tf.Tensor:
    """`clip(rint(float32(acc) * scale) + zero_point, low, high)` as int32 codes.

    Args:
      accumulator: Integer values in any numeric dtype; float64 and integers above 2^24 round to
        float32 first, as the kernel's own conversion does.
      scale: float32, `[]` or `[channels]` on the last axis.
      zero_point: Of the output.
      low: Lowest code.
      high: Highest code.
    """
    levels = tf.round(tf.cast(accumulator, tf.float32) * tf.constant(scale, tf.float32))
    # Clipped as floats: a level beyond int32 has no meaning after the cast.
    levels = tf.clip_by_value(levels, float(low - zero_point), float(high - zero_point))
    return tf.cast(levels, tf.int32) + zero_point


def double_rounding(
    accumulator: tf.Tensor, real: Real, zero_point: int, low: int, high: int
) -> tf.Tensor:
    """`clip(MultiplyByQuantizedMultiplier(acc) + zero_point, low, high)` as int32 codes.

    `real` is in float64. Other arguments are those of `single_rounding`.
    """
    multiplier, shift = quantize_multiplier(real)
    levels = multiply_by_quantized_multiplier(tf.cast(accumulator, tf.int64), multiplier, shift)
    return tf.cast(tf.clip_by_value(levels + zero_point, low, high), tf.int32)


def upward_rounding(
    accumulator: tf.Tensor, real: Real, zero_point: int, low: int, high: int
) -> tf.Tensor:
    """As `double_rounding`, but the second rounding takes ties upward.

    So do the builtin CONV_2D and FULLY_CONNECTED on x86.
    """
    multiplier, shift = quantize_multiplier(real)
    levels = multiply_by_quantized_multiplier(
        tf.cast(accumulator, tf.int64), multiplier, shift, shift_right_rounding
    )
    return tf.cast(tf.clip_by_value(levels + zero_point, low, high), tf.int32)


def real_rounding(
    accumulator: tf.Tensor, real: Real, zero_point: int, low: int, high: int
) -> tf.Tensor:
    """`clip(round(float64(acc) * real) + zero_point, low, high)`, ties away from zero.

    This is the reference FULLY_CONNECTED.
    """
    levels = tf.cast(accumulator, tf.float64) * tf.constant(real, tf.float64)
    levels = tf.clip_by_value(round_away(levels), float(low - zero_point), float(high - zero_point))
    return tf.cast(levels, tf.int32) + zero_point


def round_away(x: tf.Tensor) -> tf.Tensor:
    """C's `round` of a float tensor: ties away from zero.

    Not `floor(x + 0.5)`, whose sum itself rounds for the float just below one half.
    """
    magnitude = tf.abs(x)
    whole = tf.floor(magnitude)
    return tf.sign(x) * (whole + tf.cast(magnitude - whole >= 0.5, x.dtype))


def round_half_away(x: Real) -> np.ndarray:
    """C's `round`: ties away from zero, in the dtype of `x`."""
    x = np.asarray(x)
    whole = np.trunc(x)
    return whole + np.sign(x) * (np.abs(x - whole) >= 0.5).astype(x.dtype)


def activation_bounds(
    activation: str, scale: Real, zero_point: int, dtype: str, rounding: Rounding
) -> tuple[int, int]:
    """Lowest and highest code under a fused activation.

    The reference kernels take `z + round(bound / s)` with ties away from zero; XNNPACK takes
    `rint(bound / s + z)`.

    Args:
      activation: "NONE", "RELU", "RELU6", "RELU_N1_TO_1" or "RELU_0_TO_1".
      scale: Of the output.
      zero_point: Of the output.
      dtype: "int8" or "uint8".
      rounding: Kernel set.

    Raises:
      ValueError: If the activation is not one of these.
    """
    bounds = {
        "NONE": (None, None),
        "RELU": (0.0, None),
        "RELU6": (0.0, 6.0),
        "RELU_N1_TO_1": (-1.0, 1.0),
        "RELU_0_TO_1": (0.0, 1.0),
    }
    if activation not in bounds:
        raise ValueError(
            f"activation must be one of {sorted(bounds)}. Received: activation={activation!r}."
        )
    qmin, qmax = RANGES[dtype]

    def code(bound: float | None, default: int) -> int:
        if bound is None:
            return default
        steps = np.float32(bound) / np.float32(scale)  # both kernel sets divide in float32
        if rounding == "single":
            return int(np.rint(np.clip(steps + np.float32(zero_point), qmin, qmax)))
        return int(np.clip(zero_point + round_half_away(steps), qmin, qmax))

    return code(bounds[activation][0], qmin), code(bounds[activation][1], qmax)
