"""What counts as the same: an absolute bound for small tensors, a relative one for large ones, and
none for NaN or other shapes."""

import math

import numpy as np
import pytest

from tf_fpq.conversion import parity


@pytest.mark.parametrize(
    ("expected", "found", "read", "ok"),
    [
        ([0.5, 0.0], [0.5, 0.9e-5], [], True),
        ([0.5, 0.0], [0.5, 1.1e-5], [], False),
        ([100.0, 0.0], [100.0, 0.9e-3], [], True),
        ([100.0, 0.0], [100.0, 1.1e-3], [], False),
        ([0.5, 0.0], [0.5, 0.9e-3], [-100.0], True),  # the difference of numbers that large
        ([0.5, math.nan], [0.5, math.nan], [], False),
        ([0.5, 0.0], [0.5, math.inf], [], False),
    ],
)
def test_bounds(expected, found, read, ok):
    difference = parity.difference("x", [np.array(expected)], [np.array(found)], [np.array(read)])
    assert difference.ok is ok


def test_numbers():
    found = parity.difference("it", [np.array([4.0, 0.0])], [np.array([3.0, 0.0])])
    assert (found.absolute, found.largest, found.relative) == (1.0, 4.0, 0.25)
    assert str(found) == "it differs by 1, allowed are 4e-05"
    assert parity.difference("it", [np.zeros(3)], [np.zeros(3)]).relative == 0.0


def test_other_shapes_are_infinitely_far():
    assert parity.difference("x", [np.zeros(2)], [np.zeros((2, 1))]).absolute == math.inf
    assert parity.difference("x", [np.zeros(2)], []).absolute == math.inf
