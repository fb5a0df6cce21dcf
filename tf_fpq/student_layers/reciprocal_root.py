"""RSQRT on int8 codes, `1 / sqrt(x + epsilon)`.

It is TFLite's fixed-point Newton iteration, behind the sum that brings epsilon in. `Q_k` is an
int32 with k integer bits: its value is `raw * 2^(k - 31)`. Constants and shifts are those of
`tensorflow/lite/kernels/internal/common.h`.
"""

import numpy as np
import tensorflow as tf

from tf_fpq.student_layers import fixed_point

# Bits that RSQRT keeps below the binary point before the final multiplier.
SHIFT = 20
# Code of the constant that the file adds, on a grid with zero point 0.
_EPSILON_CODE = 127
_HALF_SQRT_2 = 1518500250  # Q_0
_ONE_AND_A_HALF = (1 << 28) + (1 << 27)  # Q_3
_NEWTON_STEPS = 5
# Beyond every int8 code, where the kernel returns the highest.
_ABOVE = 512


def inverse_root(values: np.ndarray, extra: int) -> tuple[np.ndarray, np.ndarray]:
    """TFLite's `GetInvSqrtQuantizedMultiplierExp` for values 1 .. 2^29 - 1.

    Returned are `(m, shift)` with `m * 2^(shift - 31) ~ 2^extra / sqrt(value)`.
    """
    bits = np.frexp(values.astype(np.float64))[1]
    pairs = (31 - bits) // 2 - 1
    raw = values << (2 * pairs)  # in [2^27, 2^29)
    half = ((raw >> 1) + 1) >> 1
    root = np.full_like(values, 1 << 28)  # 1 as Q_3
    for _ in range(_NEWTON_STEPS):
        cube = _saturated_shift(_high_multiply(_high_multiply(root, root), root), 6)
        step = _high_multiply(root, _ONE_AND_A_HALF) - _high_multiply(half, cube)
        root = _saturated_shift(step, 3)
    root = _high_multiply(root, _HALF_SQRT_2)
    right = 11 - pairs
    root = root << np.maximum(-right, 0)
    one = values <= 1  # handled apart by the kernel
    return np.where(one, 2**31 - 1, root), np.where(one, 0, -np.maximum(right, 0)) + extra


def _high_multiply(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return (a * b + 2**30) >> 31


def _saturated_shift(raw: np.ndarray, bits: int) -> np.ndarray:
    return np.clip(raw << bits, -(2**31), 2**31 - 1)


def _roots() -> np.ndarray:
    """`2^20 / sqrt(x)` for x = 0 .. 255 as the kernel rounds it; 0 at 0."""
    multiplier, shift = inverse_root(np.arange(1, 256, dtype=np.int64), SHIFT)
    high = ((np.int64(1) << np.maximum(shift, 0)) * multiplier + 2**30) >> 31
    right = np.maximum(-shift, 0)
    return np.concatenate([[0], (high + ((np.int64(1) << right) >> 1)) >> right])


_ROOTS = _roots()


def levels(
    x: tf.Tensor, epsilon: float, step_in: tf.Tensor, zero_point: tf.Tensor, step_out: tf.Tensor
) -> tf.Tensor:
    """Levels of `1 / sqrt(x + epsilon)` on the output's grid.

    The file adds epsilon, on a grid of its own, where it is half a step of the input or more and
    the input's zero point is -128; else it leaves epsilon out.

    Args:
      x: int64 `code - zero_point` of all int8 codes.
      epsilon: What is added.
      step_in: Of the input.
      zero_point: int8 code of 0 of the input.
      step_out: Of the output.
    """
    constant = tf.constant(epsilon, tf.float32)
    added = (constant >= step_in / 2.0) & tf.equal(zero_point, fixed_point.INT8_MIN)
    step_sum = step_in + constant / 255.0
    ratios = step_in / step_sum, constant / _EPSILON_CODE / step_sum
    epsilon_code = tf.constant(_EPSILON_CODE, tf.int64)
    total = tf.clip_by_value(fixed_point.weighted_sum([x, epsilon_code], ratios), 0, 255)
    x = tf.where(added, total, x)
    step = tf.sqrt(tf.where(added, step_sum, step_in)) * step_out
    roots = tf.gather(tf.constant(_ROOTS, tf.int64), tf.clip_by_value(x, 0, 255))
    found = fixed_point.multiply(roots, 2.0**-SHIFT / tf.cast(step, tf.float64))
    return tf.where(x > 0, found, tf.constant(_ABOVE, tf.int64))
