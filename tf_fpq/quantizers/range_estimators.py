"""Where a grid starts: step sizes and zero points estimated from samples. Pure NumPy.

An estimator takes `Samples` and the `QuantSpec` of the grids and returns a step size and a zero
point per grid. Asymmetric grids are as FPQ prints them (arXiv 2503.11159, eq. 6), and 0 is always
on a grid:

    s = (x_max - x_min) / (2^q - 1),   z = round(q_max - x_max / s)
    s = max|x| / qmax,                 z = 0                           (symmetric)
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from tf_fpq.quantizers.spec import QuantSpec

# Of the values on either side of 0, the part in percent that `percentile` keeps. Chosen here among
# those that H. Wu et al. compare (arXiv 2004.09602): the most that `MAX_SAMPLES` still measures.
KEPT_PERCENT = 99.9
# Values that a `Reservoir` keeps: 65 of them lie beyond the percentile above, on either side. With
# their keys they are half a megabyte, for each tensor of a network. Chosen here by these two.
MAX_SAMPLES = 2**16


@dataclasses.dataclass
class Samples:
    """Values of one or more grids, and their exact range.

    Attributes:
      values: `[grids, elements]`.
      low: Lowest value of each grid, at most 0, `[grids]`.
      high: Highest value of each grid, at least 0, `[grids]`.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Samples":
        """Samples whose range is that of `values`; 0 always belongs to it."""
        return cls(values, np.minimum(values.min(axis=1), 0.0), np.maximum(values.max(axis=1), 0.0))


class Reservoir:
    """Samples of one grid, gathered batch by batch.

    Kept are the exact range and at most `MAX_SAMPLES` values. Every value gets a random key, and
    the values with the lowest keys stay. So each value that was ever added is among them with the
    same probability, whatever the batches were.
    """

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._values = np.empty(0, np.float32)
        self._keys = np.empty(0, np.float32)
        self._low = self._high = 0.0

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Adds values that come out of a tensor with the range `low` to `high`."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        keys = self._random.random(len(values), np.float32)
        self._values = np.concatenate([self._values, values])
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > MAX_SAMPLES:
            kept = np.sort(np.argpartition(self._keys, MAX_SAMPLES)[:MAX_SAMPLES])
            self._values, self._keys = self._values[kept], self._keys[kept]

    def samples(self) -> Samples:
        """All that stayed; 0 always belongs to the range."""
        return Samples(self._values[None], np.array([self._low]), np.array([self._high]))


Grids = tuple[np.ndarray, np.ndarray]
Estimator = Callable[[Samples, QuantSpec], Grids]


def grids_of_range(low: np.ndarray, high: np.ndarray, spec: QuantSpec) -> Grids:
    """The grids that cover `low <= 0` to `high >= 0` (FPQ eq. 6).

    A worked number: [-1, 2] at 4 bits, without a sign, has 15 steps of 3 / 15 = 0.2, and 0 at the
    code 15 - 2 / 0.2 = 5. A symmetric grid with 7 as highest code has the step 2 / 7.
    """
    if spec.symmetric:
        return symmetric_grids(np.maximum(-low, high), spec)
    step_size = (high - low) / (spec.qmax - spec.qmin)
    safe = np.where(step_size > 0, step_size, 1.0)
    return step_size, np.clip(np.round(spec.qmax - high / safe), spec.qmin, spec.qmax)


def symmetric_grids(reach: np.ndarray, spec: QuantSpec) -> Grids:
    """The symmetric grids whose highest code stands for `reach`."""
    return reach / spec.qmax, np.zeros_like(reach)


def min_max(samples: Samples, spec: QuantSpec) -> Grids:
    """The whole range, nothing is clipped."""
    return grids_of_range(samples.low, samples.high, spec)


def percentile(samples: Samples, spec: QuantSpec, percent: float = KEPT_PERCENT) -> Grids:
    """The range without its outliers.

    Kept are `percent` of the values on each side: an asymmetric grid ends at the two percentiles
    `100 - percent` and `percent`, a symmetric one at the percentile of the magnitudes.

    Raises:
      ValueError: If `percent` is not above 50 and at most 100.
    """
    if not 50 < percent <= 100:
        raise ValueError(f"percent must be above 50 and at most 100. Received: percent={percent}.")
    if spec.symmetric:
        reach = np.percentile(np.abs(samples.values), percent, axis=1)
        return symmetric_grids(reach, spec)
    low, high = np.percentile(samples.values, [100 - percent, percent], axis=1)
    return grids_of_range(np.minimum(low, 0.0), np.maximum(high, 0.0), spec)


def mse(samples: Samples, spec: QuantSpec) -> Grids:
    """The fraction of the min-max range with the smallest squared error.

    A smaller range clips a few large values and rounds all others more finely. The zero point stays
    that of the whole range.

    A worked number: 1,000 weights in [-1, 1] and one of 7, on 4 bits with codes to 7. The whole
    range needs steps of 1, and the squared errors add up to 85. Steps of 0.31 clip the 7 to 2.1 and
    leave 31.

    The search has two rounds. The first tries 25 fractions from 1 to 0.05, each 0.88 of the one
    before. The second tries 11 fractions within 10 % of the best, 2 % apart. Both are chosen here:
    the second covers the gap that the first leaves, and 0.05 is below what any width wants (of a
    normal distribution 2 bits keep 0.31, 4 bits 0.62).
    """
    full, zero_point = min_max(samples, spec)
    best = np.ones_like(full)
    for ratios in (np.geomspace(1.0, 0.05, 25), np.geomspace(1.1, 1 / 1.1, 11)):
        candidates = np.stack([np.minimum(best * ratio, 1.0) for ratio in ratios])
        errors = np.stack(
            [squared_error(samples.values, full * c, zero_point, spec) for c in candidates]
        )
        best = np.take_along_axis(candidates, errors.argmin(axis=0)[None], axis=0)[0]
    return full * best, zero_point


def offset_mse(samples: Samples, spec: QuantSpec) -> Grids:
    """The step size *and* the zero point with the smallest squared error.

    Both ends of the range are searched by themselves, over 15 fractions from 1 to 0.1 each (chosen
    here: 225 pairs, each 0.85 of the one before). The result of `mse` stays if no pair is better.
    """
    step_size, zero_point = mse(samples, spec)
    best = squared_error(samples.values, step_size, zero_point, spec)
    fractions = np.geomspace(1.0, 0.1, 15)
    for low in fractions if (samples.low < 0).any() else fractions[:1]:
        for high in fractions:
            step, zero = grids_of_range(samples.low * low, samples.high * high, spec)
            error = squared_error(samples.values, step, zero, spec)
            better = error < best
            best, step_size = np.where(better, error, best), np.where(better, step, step_size)
            zero_point = np.where(better, zero, zero_point)
    return step_size, zero_point


def squared_error(
    values: np.ndarray, step_size: np.ndarray, zero_point: np.ndarray, spec: QuantSpec
) -> np.ndarray:
    """Sum of the squared differences of `values` and their quantized values, per grid."""
    step, offset = np.where(step_size > 0, step_size, 1.0)[:, None], zero_point[:, None]
    errors = np.empty(len(values), np.result_type(values, step))
    # Some rows at a time: temporaries as large as a Dense kernel cost ten times the arithmetic.
    rows = max(1, _CHUNK // values.shape[1])
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        levels = np.round(values[part] / step[part])
        levels = np.clip(levels, spec.qmin - offset[part], spec.qmax - offset[part], out=levels)
        levels *= step[part]
        levels -= values[part]
        errors[part] = np.square(levels, out=levels).sum(axis=1)
    return errors


# Elements that are computed at once. Chosen here: in float64 they are half a megabyte, which fits
# the second cache of a core.
_CHUNK = 2**16


ESTIMATORS: dict[str, Estimator] = {"mse": mse, "min_max": min_max, "percentile": percentile}
# The name of each quantizer's own start, which `GridQuantizer.paper_start` gives.
PAPER = "paper"


def check_estimator(name: str, estimator: str | Estimator) -> None:
    """Raises ValueError unless `estimator` is a name or a function."""
    known = (*ESTIMATORS, PAPER)
    if not callable(estimator) and estimator not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)} or a function of (samples, spec). Received:"
            f" {name}={estimator!r}."
        )
