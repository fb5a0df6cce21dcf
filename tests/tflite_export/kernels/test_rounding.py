"""The roundings of accumulators, number by number."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tflite_export.kernels import rounding


def test_quantize_multiplier_golden():
    """0.75 = 0.75 * 2^0; 1 = 0.5 * 2^1; a fraction that rounds up to 1 carries; below 2^-31
    everything vanishes."""
    values = np.array([0.75, 1.0, 1.0 - 2.0**-40, 2.0**-40, 0.0])
    multiplier, shift = rounding.quantize_multiplier(values)
    assert multiplier.tolist() == [3 * 2**29, 2**30, 2**30, 0, 0]
    assert shift.tolist() == [0, 1, 1, 0, 0]


def test_the_three_roundings_of_a_tie():
    """2.5 and -2.5: to even, away from zero, upward."""
    sums, half = np.array([5, -5, 3, -3]), np.float32(0.5)
    single = rounding.single_rounding(sums, half, 0, -128, 127).numpy().tolist()
    assert single == [2, -2, 2, -2]
    # 0.5 is held as 2^30 * 2^-31, whose first step already rounds 2.5 to 3 and -2.5 to -2.
    assert rounding.double_rounding(sums, 0.5, 0, -128, 127).numpy().tolist() == [3, -2, 2, -1]
    assert rounding.real_rounding(sums, 0.5, 0, -128, 127).numpy().tolist() == [3, -3, 2, -2]
    # 0.125: the second step meets the tie.
    ties = np.array([4, -4, 12, -12])
    assert rounding.double_rounding(ties, 0.125, 0, -128, 127).numpy().tolist() == [1, -1, 2, -2]
    assert rounding.upward_rounding(ties, 0.125, 0, -128, 127).numpy().tolist() == [1, 0, 2, -1]


def test_a_multiplier_holds_a_real_number_in_31_bits():
    multiplier, shift = rounding.quantize_multiplier(0.3)
    assert (multiplier, shift) == (1288490189, -1)
    assert multiplier.dtype == shift.dtype == np.int64
    # Half a last bit rounds up.
    assert rounding.quantize_multiplier(0.5 + 2.0**-32)[0] == 2**30 + 1
    assert rounding.quantize_multiplier(0.5 + 2.0**-33)[0] == 2**30
    # 31 places to the right are the last.
    multiplier, shift = rounding.quantize_multiplier([2.0**-32, 2.0**-33])
    assert (multiplier.tolist(), shift.tolist()) == ([2**30, 0], [-31, 0])


def test_high_multiply_is_the_rounded_upper_half_of_twice_the_product():
    found = rounding.high_multiply(tf.constant([3, -3, 5, 2**31 - 1], tf.int64), np.int64(2**30))
    assert found.numpy().tolist() == [2, -1, 3, 2**30]


@pytest.mark.parametrize(
    ("exponent", "away", "upward"),
    [
        (0, [-5, -3, -2, -1, 0, 1, 2, 3, 5], [-5, -3, -2, -1, 0, 1, 2, 3, 5]),
        (1, [-3, -2, -1, -1, 0, 1, 1, 2, 3], [-2, -1, -1, 0, 0, 1, 1, 2, 3]),
        (2, [-1, -1, -1, 0, 0, 0, 1, 1, 1], [-1, -1, 0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_ties_of_a_power_of_two_go_away_from_zero_or_upward(exponent, away, upward):
    values = tf.constant([-5, -3, -2, -1, 0, 1, 2, 3, 5], tf.int64)
    for given in (np.int64(exponent), np.full(9, exponent), tf.fill(9, tf.constant(exponent))):
        assert rounding.divide_by_power(values, given).numpy().tolist() == away
        assert rounding.shift_right_rounding(values, given).numpy().tolist() == upward


def test_each_value_may_have_a_power_of_its_own():
    values, exponents = tf.constant([-3, -3, 2**40, -(2**40)], tf.int64), np.array([0, 1, 40, 41])
    assert rounding.divide_by_power(values, exponents).numpy().tolist() == [-3, -2, 1, -1]
    found = rounding.divide_by_power(values, tf.constant(exponents))
    assert found.numpy().tolist() == [-3, -2, 1, -1]


def test_int32_overflows_as_in_c():
    values = tf.constant([2**31 - 1, 2**31, -(2**31) - 1, 2**32 + 5], tf.int64)
    assert rounding.wrap_int32(values).numpy().tolist() == [2**31 - 1, -(2**31), 2**31 - 1, 5]


def test_a_multiplier_above_1_shifts_left_first_and_may_overflow():
    values = tf.constant([3, -3, 2**30], tf.int64)
    # 2.5 is 0.625 * 2^2, and 2^30 * 2^2 is no int32.
    found = rounding.multiply_by_quantized_multiplier(values, *rounding.quantize_multiplier(2.5))
    assert found.numpy().tolist() == [8, -7, 0]
    real = np.array([2.5, 0.25, 1.0])
    found = rounding.multiply_by_quantized_multiplier(values, *rounding.quantize_multiplier(real))
    assert found.numpy().tolist() == [8, -1, -(2**30)]


def test_a_factor_for_each_channel_a_zero_point_and_the_ends_of_the_range():
    sums = tf.constant([[7, 7, -1000], [-6, -6, 1000]], tf.int32)
    real = np.array([0.5, 0.25, 1.0])
    expected = {
        rounding.single_rounding: [[14, 12, -128], [7, 8, 127]],
        rounding.double_rounding: [[14, 12, -128], [7, 8, 127]],
        rounding.upward_rounding: [[14, 12, -128], [7, 9, 127]],
        rounding.real_rounding: [[14, 12, -128], [7, 8, 127]],
    }
    for function, codes in expected.items():
        found = function(sums, real, 10, -128, 127)
        assert found.dtype == tf.int32 and found.numpy().tolist() == codes, function.__name__


def test_sums_beyond_int32_saturate():
    sums, one = tf.constant([3e15, -3e15], tf.float64), np.float32(1)
    for function in (rounding.single_rounding, rounding.real_rounding):
        assert function(sums, one, 5, -100, 90).numpy().tolist() == [90, -100]


def test_single_rounding_converts_the_sum_to_float32_first():
    # 2^24 + 1 is not a float32.
    sums, scale = tf.constant([2**24 + 1, 2**24 + 3]), np.float32(2.0**-19)
    assert rounding.single_rounding(sums * 1, scale, 0, -128, 127).numpy().tolist() == [32, 32]
    tie = tf.constant([2**25 + 2**24 + 1])
    assert rounding.single_rounding(tie, np.float32(2.0**-25), 0, -128, 127).numpy() == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.49999997, 0.0),
        (0.5, 1.0),
        (1.5, 2.0),
        (2.5, 3.0),
        (2.4, 2.0),
        (-0.49999997, 0.0),
        (-0.5, -1.0),
        (-2.5, -3.0),
        (-2.6, -3.0),
        (0.0, 0.0),
        (8388609.0, 8388609.0),
    ],
)
def test_cs_round_takes_ties_away_from_zero(value, expected):
    for dtype in (np.float32, np.float64):
        value = dtype(value)
        assert rounding.round_away(tf.constant(value)) == expected
        found = rounding.round_half_away(value)
        assert found == expected and found.dtype == dtype


@pytest.mark.parametrize(
    ("activation", "single", "double"),
    [
        ("NONE", (-128, 127), (-128, 127)),
        ("RELU", (-10, 127), (-10, 127)),
        ("RELU6", (-10, 14), (-10, 14)),
        # 2.5 steps on either side of the zero point -10.
        ("RELU_N1_TO_1", (-12, -8), (-13, -7)),
        ("RELU_0_TO_1", (-10, -8), (-10, -7)),
    ],
)
def test_bounds_of_a_fused_activation(activation, single, double):
    scale = {"RELU6": 0.25}.get(activation, 0.4)
    for kind, expected in (("single", single), ("double", double)):
        found = rounding.activation_bounds(activation, np.float32(scale), -10, "int8", kind)
        assert found == expected and all(type(code) is int for code in found)


@pytest.mark.parametrize("kind", ["single", "double"])
def test_bounds_lie_in_the_container(kind):
    assert rounding.activation_bounds("RELU6", 0.001, 3, "int8", kind) == (3, 127)
    assert rounding.activation_bounds("RELU_N1_TO_1", 0.001, 3, "int8", kind) == (-128, 127)
    assert rounding.activation_bounds("RELU6", 0.1, 3, "uint8", kind) == (3, 63)
    assert rounding.activation_bounds("NONE", 0.1, 3, "uint8", kind) == (0, 255)


def test_an_unknown_activation_is_refused_with_those_that_are_known():
    message = (
        "activation must be one of ['NONE', 'RELU', 'RELU6', 'RELU_0_TO_1', 'RELU_N1_TO_1']."
        " Received: activation='TANH'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rounding.activation_bounds("TANH", 0.1, 3, "int8", "single")
