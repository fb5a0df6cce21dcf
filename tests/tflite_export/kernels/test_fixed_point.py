"""The fixed-point pieces of the reference SOFTMAX and HARD_SWISH, raw value by raw value."""

import numpy as np
import pytest

from tflite_export.kernels import fixed_point


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (0, 2**31 - 1),
        (-1, 2147483124),
        (-(2**26), 790015308),  # exp(-1), 224 above the nearest raw value
        # Between them, a last bit more or less in any factor of the barrel shifter shows.
        (-66121009, 801730387),
        (-219536274, 81508438),
        (-290117534, 28473217),
        (-477715029, 1739405),
        (-552547096, 570330),
        (-1083230752, 210),
        (-(2**31) + 1, 0),
    ],
)
def test_the_exponential_is_gemmlowps(raw, expected):
    """Golden values are what `exp_on_negative_values` of gemmlowp's own header computes; beside
    these, it agreed on 400,010 random arguments."""
    assert fixed_point.exp_on_negative_values(np.array([raw])).tolist() == [expected]


def test_the_exponential_of_5402_arguments():
    """Their sum, and the one weighted by place, of the code that agreed with gemmlowp's header."""
    found = fixed_point.exp_on_negative_values(-np.arange(0, 2**31, 4099 * 97, dtype=np.int64))
    places = np.arange(len(found)) % 1009 + 1
    assert (found.sum(), (found * places).sum()) == (363534814159, 60608916384285)


@pytest.mark.parametrize(
    ("scale", "count", "last", "total"),
    [
        (2.0**-25, 256, [2147483028, 2147483093, 2147483647], 549753599586),
        (0.02, 256, [2063279525, 2104960427, 2147483647], 107803395686),
        (0.7, 32, [529562945, 1066408839, 2147483647], 4265834275),
        (3.0, 8, [5323081, 106916946, 2147483647], 2260002582),
        (31.0, 1, [0, 0, 2147483647], 2147483647),
        (32.0, 1, [0, 0, 2147483647], 2147483647),
    ],
)
def test_the_table_of_exponentials_is_0_where_they_are_too_small(scale, count, last, total):
    found = fixed_point.exp_of_differences(scale)
    assert found.shape == (256,) and (found > 0).sum() == count
    assert found[-3:].tolist() == last and found.sum() == total


def test_division_by_a_power_takes_ties_away_from_zero():
    values = np.array([-7, -6, -5, -4, -2, -1, 0, 1, 2, 4, 5, 6, 7])
    for exponent, expected in (
        (0, values.tolist()),
        (1, [-4, -3, -3, -2, -1, -1, 0, 1, 1, 2, 3, 3, 4]),
        (2, [-2, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]),
    ):
        assert fixed_point.divide_by_power(values, exponent).tolist() == expected


def test_high_multiply_is_the_rounded_upper_half_of_twice_the_product():
    assert fixed_point.high_multiply(np.array([3, -3, 5]), 2**30).tolist() == [2, -1, 3]


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (0.75, (24576, 0)),
        (1.0, (16384, 1)),
        (3.3, (27034, 2)),
        (0.1, (26214, -3)),
        # The mantissa would round to 2^15, which 16 bits do not have.
        (1 - 2.0**-18, (32767, 0)),
    ],
)
def test_a_multiplier_of_16_bits(real, expected):
    assert fixed_point._multiplier16(np.float32(real)) == expected


def test_the_range_of_16_bits():
    values = np.array([-40000, -32768, -32767, 32766, 32767, 32768])
    expected = [-32768, -32768, -32767, 32766, 32767, 32767]
    assert fixed_point._saturate16(values).tolist() == expected


def test_hard_swish_is_0_up_to_minus_3_and_x_from_3_on():
    levels = fixed_point.hard_swish(
        np.array([-128, -60, -30, -10, 0, 10, 50, 127]), np.float32(0.05), np.float32(0.04)
    )
    assert levels.tolist() == [0, 0, -9, -5, 0, 7, 57, 159]
