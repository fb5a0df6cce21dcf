"""The exponential of the reference SOFTMAX, raw value by raw value."""

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
    assert fixed_point.exp_on_negative_values(np.array([raw]), 5).tolist() == [expected]
