"""Paired differences with Student's interval, against numbers out of tables."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments import paired


def test_the_worked_number():
    found = paired.difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    # 97.5 % quantile of Student's distribution with 2 degrees of freedom: 4.303.
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.sign == 0


def test_only_seeds_of_both_count():
    found = paired.difference({0: 1.0, 1: 5.0, 7: 9.0}, {1: 1.0, 2: 0.0})
    assert found == paired.Difference(4.0, math.inf, 1) and found.sign == 0
    assert paired.difference({0: 1.0}, {1: 1.0}) is None


def test_the_interval_is_that_of_scipys_test():
    generator = np.random.default_rng(0)
    ours, theirs = (dict(enumerate(generator.normal(m, 1, 8))) for m in (3, 0))
    found = paired.difference(ours, theirs)
    interval = stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(interval.low)
    assert found.mean + found.half == pytest.approx(interval.high)
    assert found.sign == 1 and paired.difference(theirs, ours).sign == -1
    assert paired.difference(ours, theirs, level=0.5).half < found.half
