"""gemmlowp's fixed-point exponential, in NumPy on all 256 arguments an int8 operator can meet.

Numbers are int64 arrays holding int32 raw values. `Q_k` means k integer bits, with
`value = raw * 2^(k - 31)`: as Q_5 the raw value 2^25 is 0.5. Constants are those of gemmlowp's
`fixedpoint/fixedpoint.h`.
"""

import numpy as np

from tflite_export.kernels import rounding

# exp(-2^e) as Q_0 for e = -2 .. 4: the factors of gemmlowp's barrel shifter.
_EXP_FACTORS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}
_EXP_MINUS_EIGHTH = 1895147668  # exp(-1/8)
# Bits of the exponential's argument on either side of the binary point, as TFLite's SOFTMAX has
# them (`kScaledDiffIntegerBits`).
_INTEGER_BITS, _FRACTION_BITS = 5, 26
_QUARTER = 1 << 24  # 1/4 as Q_5
_ONE_THIRD = 715827883
_ONE = 2**31 - 1


def high_multiply(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Saturating rounding doubling high multiply."""
    return (a * b + 2**30) >> 31


def divide_by_power(x: np.ndarray, exponent: int) -> np.ndarray:
    """`x / 2^exponent`, ties away from zero."""
    # gemmlowp's own form: the remainder against half, which for negative numbers is one more.
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def exp_on_negative_values(raw: np.ndarray) -> np.ndarray:
    """`exp(x)` as Q_0 for `x <= 0` given as Q_5.

    The argument is split into a multiple of 1/4, handled by constant factors, and a rest in [-1/4,
    0), handled by a Taylor polynomial around -1/8.
    """
    rest = (raw & (_QUARTER - 1)) - _QUARTER
    result = _exp_on_last_quarter(rest << _INTEGER_BITS)
    remainder = rest - raw
    for exponent, factor in _EXP_FACTORS.items():
        chosen = (remainder >> (_FRACTION_BITS + exponent)) & 1
        result = np.where(chosen, high_multiply(result, factor), result)
    return np.where(raw == 0, _ONE, result)


def exp_of_differences(scale: float) -> np.ndarray:
    """Q_0 table of `exp(scale * d)` for `d = -255 .. 0`.

    It is zero where the kernel skips the term as too small.

    Args:
      scale: Input scale times beta.
    """
    # The kernel caps the product at 2^31 - 1, above which only `d = 0` is kept in any case.
    multiplier, shift = (
        int(v) for v in rounding.quantize_multiplier(scale * (1 << _FRACTION_BITS))
    )
    # No argument is below -31, the last integer of 5 bits.
    lowest = -((31 << _FRACTION_BITS) >> shift)
    differences = np.arange(-255, 1, dtype=np.int64)
    kept = differences >= lowest
    rescaled = high_multiply(np.where(kept, differences, 0) << shift, multiplier)
    return np.where(kept, exp_on_negative_values(rescaled), 0)


def _exp_on_last_quarter(raw: np.ndarray) -> np.ndarray:
    x = raw + (1 << 28)
    x2 = high_multiply(x, x)
    x3, x4 = high_multiply(x2, x), high_multiply(x2, x2)
    tail = divide_by_power(high_multiply(divide_by_power(x4, 2) + x3, _ONE_THIRD) + x2, 1)
    return _EXP_MINUS_EIGHTH + high_multiply(x + tail, _EXP_MINUS_EIGHTH)


def hard_swish(centered: np.ndarray, s_in: np.float32, s_out: np.float32) -> np.ndarray:
    """`x * clip(x + 3, 0, 6) / 6` in the reference kernel's 16-bit fixed point.

    Returned are levels on the output scale.

    Args:
      centered: int64 input codes minus their zero point.
      s_in: Input scale.
      s_out: Output scale.
    """
    fine = np.float32(1 / 128) * s_in
    out_multiplier, out_exponent = _multiplier16(fine / s_out)
    gate_multiplier, gate_exponent = _multiplier16(fine / np.float32(3 / 32768))
    value = centered << 7
    before_shift = (value * out_multiplier + 2**14) >> 15
    gate = value
    if gate_exponent > 0:
        gate = _saturate16(gate << (gate_exponent - 1))
    gate = (gate * gate_multiplier + 2**14) >> 15
    if gate_exponent > 0:
        gate = _saturate16(gate << 1)
    else:
        gate = divide_by_power(gate, -gate_exponent)
    gate = (gate + 2**15) >> 1
    product = gate * before_shift
    # This high multiply truncates towards zero, which cancels the bias of the rounding ones.
    truncated = np.sign(product) * (np.abs(product) >> 15)
    return divide_by_power(truncated, -out_exponent)


def _multiplier16(real: np.float32) -> tuple[int, int]:
    """A real multiplier as a 16-bit mantissa and an exponent."""
    multiplier, exponent = (int(v) for v in rounding.quantize_multiplier(float(real)))
    return min((multiplier + 2**15) >> 16, 2**15 - 1), exponent


def _saturate16(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -(2**15), 2**15 - 1)
