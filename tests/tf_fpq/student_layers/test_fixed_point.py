"""Fixed-point arithmetic on tensors of scales, against Python integers and worked numbers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_fpq.student_layers import fixed_point


def reference(x: int, real: float) -> int:
    """`MultiplyByQuantizedMultiplier` on Python integers."""
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    high = ((x << max(shift, 0)) * multiplier + 2**30) >> 31
    right = max(-shift, 0)
    magnitude = (abs(high) + (1 << right >> 1)) >> right
    return -magnitude if high < 0 else magnitude


@pytest.mark.parametrize("real", [0.75, 0.5, 1.0, 0.3, 0.0043, 17.3, 2.0**-9, 1 - 2.0**-40])
def test_products_round_twice(real):
    x = tf.range(-255, 256, dtype=tf.int64)
    found = fixed_point.multiply(x, tf.constant(real, tf.float64)).numpy()
    assert found.tolist() == [reference(int(value), real) for value in x]


def test_the_multiplier_of_three_quarters():
    multiplier, shift = fixed_point.quantize_multiplier(tf.constant(0.75))
    assert (int(multiplier), int(shift)) == (1610612736, 0)


def test_two_roundings_carry_a_quarter_up():
    """0.3 is 0.6 halves: one half first, and that is a tie, which goes up to 1."""
    assert int(fixed_point.multiply(tf.constant(1, tf.int64), tf.constant(0.3))) == 1


def test_eight_bits():
    found = fixed_point.multiply_eight_bits(tf.constant([245, -245], tf.int64), tf.constant(0.7))
    assert found.numpy().tolist() == [171, -171]


def test_ties_go_away_from_zero():
    x = np.array([0.5, 1.5, -0.5, -2.5, np.nextafter(np.float32(0.5), 0), 2.0], np.float32)
    assert fixed_point.round_away(tf.constant(x)).numpy().tolist() == [1, 2, -1, -3, 0, 2]


def test_sums_take_ties_upward():
    """1 - 1/2, 0 - 1/2 and -1 - 1/2; 3 * 5/6 + 0 is 2.5 less what 20 bits cannot hold."""
    left, right = (tf.constant(values, tf.int64) for values in ([1, 0, -1], [-1, -1, -1]))
    found = fixed_point.weighted_sum([left, right], [tf.constant(1.0), tf.constant(0.5)])
    assert found.numpy().tolist() == [1, 0, -1]
    three, none = tf.constant(3, tf.int64), tf.constant(0, tf.int64)
    ratios = [tf.constant(5 / 6), tf.constant(0.5)]
    multiplier = round(5 / 6 * 2**21)
    expected = (3 * multiplier + 2**20) >> 21
    assert int(fixed_point.weighted_sum([three, none], ratios)) == expected
