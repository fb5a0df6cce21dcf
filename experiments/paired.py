"""Differences of paired runs: runs of one seed share teacher, data order and initial student.

The difference of two methods is a mean over seeds of differences, with Student's interval

    mean +- t(n - 1) * s / sqrt(n)

where `s` is the standard deviation of the differences and `t(n - 1)` the 97.5 % quantile of
Student's distribution. A worked number: the differences 1, 2 and 3 have the mean 2 and `s = 1`;
with `t(2) = 4.30` the 95 % interval is 2 +- 2.48.
"""

from collections.abc import Mapping
import dataclasses
import math
import statistics

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean of paired differences.

    Attributes:
      mean: Mean over the pairs.
      half: Half of the interval's width; infinite for one pair.
      count: Number of pairs.
    """

    mean: float
    half: float
    count: int

    @property
    def sign(self) -> int:
        """1 if the whole interval is above 0, -1 if below, 0 if it holds 0."""
        if self.mean - self.half > 0:
            return 1
        return -1 if self.mean + self.half < 0 else 0


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95
) -> Difference | None:
    """`ours` minus `theirs` over the seeds that both have; None if there is none.

    Args:
      ours: Values by seed.
      theirs: Likewise.
      level: Of the interval.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    differences = [ours[seed] - theirs[seed] for seed in shared]
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(mean, math.inf, 1)
    quantile = float(stats.t.ppf(0.5 + level / 2, count - 1))
    return Difference(mean, quantile * statistics.stdev(differences) / math.sqrt(count), count)
