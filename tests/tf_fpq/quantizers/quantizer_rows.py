"""The conformance table: one row a quantizer, with its gradients restated in NumPy and loops over
the grids.

A new quantizer is one row.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any

import numpy as np

from tf_fpq import quantizers
from tf_fpq.quantizers.spec import QuantSpec

Gradients = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """What a reference gradient is a function of.

    Attributes:
      x: The quantized tensor.
      g: The upstream gradient.
      s: Step sizes, in a shape that broadcasts.
      z: Zero points, likewise.
      spec: The grid.
      of_weight: A weight, or else an activation whose first axis is the batch.
      variables: All of the quantizer's variables.
      options: The quantizer's own arguments.
    """

    x: np.ndarray
    g: np.ndarray
    s: np.ndarray
    z: np.ndarray
    spec: QuantSpec
    of_weight: bool
    variables: dict[str, np.ndarray]
    options: dict[str, Any]

    def grids(self) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """Index of each grid in the step sizes, and of its elements in the tensor. Loops: nothing
        to broadcast wrongly."""
        if self.spec.axis is None:
            yield (), (slice(None),) * self.x.ndim
            return
        axes = [axis % self.x.ndim for axis in self.spec.axis]
        for index in np.ndindex(*(self.x.shape[axis] for axis in axes)):
            place = [0] * self.x.ndim
            elements: list[Any] = [slice(None)] * self.x.ndim
            for axis, position in zip(axes, index, strict=True):
                place[axis] = position
                elements[axis] = position
            yield tuple(place), tuple(elements)

    def learned(self, slope: Callable[..., Any], n_scaled: bool) -> np.ndarray:
        """Gradient of a variable with one element per grid: the sum of `g * slope(v, low, high,
        place)`."""
        result = np.zeros(self.s.shape)
        for place, elements in self.grids():
            v, g = self.x[elements] / self.s[place], self.g[elements]
            low, high = self.spec.qmin - self.z[place], self.spec.qmax - self.z[place]
            count = v.size if self.of_weight else v.size / self.x.shape[0]
            scale = 1 / np.sqrt(count * self.spec.qmax) if n_scaled else 1.0
            result[place] = (g * slope(v, low, high, place)).sum() * scale
        return result

    def passed(self, keep: Callable[..., Any]) -> np.ndarray:
        """Gradient of the tensor: `g * keep(v, low, high, g)`."""
        result = np.zeros(self.x.shape)
        for place, elements in self.grids():
            v = self.x[elements] / self.s[place]
            low, high = self.spec.qmin - self.z[place], self.spec.qmax - self.z[place]
            result[elements] = self.g[elements] * keep(v, low, high, self.g[elements])
        return result


def _inside(v: np.ndarray, low: float, high: float, *_: Any) -> np.ndarray:
    return (v > low) & (v < high)


def _lsq_slope(v: np.ndarray, low: float, high: float, *_: Any) -> np.ndarray:
    return np.where(v <= low, low, np.where(v >= high, high, np.rint(v) - v))


def lsq(case: Case) -> Gradients:
    """arXiv 1902.08153, eq. 3 and 5, section 2.2."""
    return {"x": case.passed(_inside), "step_size": case.learned(_lsq_slope, True)}


def lsq_plus(case: Case) -> Gradients:
    """arXiv 2004.09576, eq. 5-6, with the offset rounded to a multiple of the step."""
    if case.spec.symmetric:
        return lsq(case)

    def step_slope(v: np.ndarray, low: float, high: float, place: tuple[int, ...]) -> np.ndarray:
        ratio = case.variables["offset"][place] / case.s[place]
        outside = np.where(v < low, case.spec.qmin, case.spec.qmax) + np.rint(ratio) - ratio
        return np.where((v < low) | (v > high), outside, _lsq_slope(v, low, high))

    offset = case.learned(lambda v, low, high, place: (v < low) | (v > high), True)
    return {
        "x": case.passed(_inside),
        "step_size": case.learned(step_slope, True),
        "offset": offset,
    }


def dorefa(case: Case) -> Gradients:
    """arXiv 1606.06160, eq. 9: by the chain rule through tanh and the maximum. Activations: the
    clip alone."""
    if not case.spec.symmetric:
        return {"x": case.passed(_inside)}
    result = np.zeros(case.x.shape)
    for place, elements in case.grids():
        w, g = case.x[elements], case.g[elements] * case.s[place] * case.spec.qmax
        squashed, slope = np.tanh(w), 1 - np.tanh(w) ** 2
        top = np.unravel_index(np.abs(squashed).argmax(), w.shape)
        largest = abs(squashed[top])
        if largest == 0:
            result[elements] = g
            continue
        gradient = g * slope / largest
        gradient[top] -= (g * squashed).sum() / largest**2 * np.sign(w[top]) * slope[top]
        result[elements] = gradient
    return {"x": result}


def pact(case: Case) -> Gradients:
    """arXiv 1805.06085, eq. 3: 1 at and above the clip. With a zero point each end moves by its
    share of the width."""
    if case.spec.symmetric:
        return dorefa(case)

    def slope(v: np.ndarray, low: float, high: float, *_: Any) -> np.ndarray:
        return np.where(v >= high, high, np.where(v <= low, low, 0.0)) / case.spec.qmax

    return {"x": case.passed(_inside), "alpha": case.learned(slope, False)}


def ewgs(case: Case) -> Gradients:
    """arXiv 2104.00903, eq. 5: `g (1 + delta sign(g) (x_n - x_q))`, also on its way to the step
    size."""
    delta, span = case.options["delta"], case.spec.qmax - case.spec.qmin

    def keep(v: np.ndarray, low: float, high: float, g: np.ndarray) -> np.ndarray:
        x_n, x_q = (v - low) / span, (np.rint(v) - low) / span
        return _inside(v, low, high) * (1 + delta * np.sign(g) * (x_n - x_q))

    step = np.zeros(case.s.shape)
    for place, elements in case.grids():
        v, g = case.x[elements] / case.s[place], case.g[elements]
        low, high = case.spec.qmin - case.z[place], case.spec.qmax - case.z[place]
        count = v.size if case.of_weight else v.size / case.x.shape[0]
        levels = np.clip(np.rint(v), low, high)
        step[place] = (g * (levels - v * keep(v, low, high, g))).sum() / np.sqrt(
            count * case.spec.qmax
        )
    return {"x": case.passed(keep), "step_size": step}


def min_max(case: Case) -> Gradients:
    """1 where rounding does not saturate."""
    return {"x": case.passed(lambda v, low, high, g: (np.rint(v) >= low) & (np.rint(v) <= high))}


def nothing_moves(case: Case) -> dict[str, np.ndarray]:
    """A training call leaves the variables to the optimizer."""
    return case.variables


def ema_of_range(case: Case) -> dict[str, np.ndarray]:
    """arXiv 1712.05877, section 3.1: a weight's range is its own, an activation's moves by `1 -
    momentum`; 0 belongs to both."""
    keep = 0.0 if case.of_weight else case.options["momentum"]
    moved = {name: np.array(value) for name, value in case.variables.items()}
    for place, elements in case.grids():
        low, high = min(case.x[elements].min(), 0.0), max(case.x[elements].max(), 0.0)
        moved["range_min"][place] = keep * case.variables["range_min"][place] + (1 - keep) * low
        moved["range_max"][place] = keep * case.variables["range_max"][place] + (1 - keep) * high
    return moved


def reach(case: Case) -> np.ndarray:
    """Largest magnitude of each grid: what the highest code of a symmetric grid of the whole range
    stands for."""
    result = np.zeros(case.s.shape)
    for place, elements in case.grids():
        result[place] = np.abs(case.x[elements]).max()
    return result


def steps_codes(weights: np.ndarray, s: float, qmax: int) -> np.ndarray:
    """Codes of weights for one grid."""
    return np.clip(np.rint(weights / s), -qmax, qmax)


def tanh_codes(weights: np.ndarray, s: float, qmax: int) -> np.ndarray:
    """DoReFa's codes of weights for one grid, whatever its step."""
    squashed = np.tanh(weights)
    return np.rint(qmax * squashed / (np.abs(squashed).max() or 1.0))


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantizer and what is special about it.

    Attributes:
      name: Its name for `quantize_model`.
      quantizer: Its class.
      gradients: Its gradients.
      options: Arguments that make its gradients visible.
      others: For each argument of its own, another value.
      weight_codes: Codes of the weights of one grid.
      observes: The variables after a training call.
      learns: Names of the variables that train, for a weight and for an activation.
    """

    name: str
    quantizer: type[quantizers.GridQuantizer]
    gradients: Callable[[Case], Gradients]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight_codes: Callable[[np.ndarray, float, int], np.ndarray] = steps_codes
    observes: Callable[[Case], dict[str, np.ndarray]] = nothing_moves
    learns: tuple[set[str], set[str]] = ({"step_size"}, {"step_size"})

    def weight(
        self, num_bits: int = 4, axis: tuple[int, ...] | None = None
    ) -> quantizers.GridQuantizer:
        """A quantizer for a weight."""
        return self.quantizer(
            num_bits, symmetric=True, narrow_range=True, axis=axis, **self.options
        )

    def activation(
        self, num_bits: int = 4, axis: tuple[int, ...] | None = None
    ) -> quantizers.GridQuantizer:
        """A quantizer for an activation."""
        return self.quantizer(num_bits, axis=axis, **self.options)


ROWS = [
    Row("lsq", quantizers.LsqQuantizer, lsq),
    Row(
        "lsq_plus",
        quantizers.LsqPlusQuantizer,
        lsq_plus,
        learns=({"step_size"}, {"step_size", "offset"}),
    ),
    Row(
        "pact",
        quantizers.PactQuantizer,
        pact,
        options={"l2": 1e-3},
        others={"l2": 0.5},
        weight_codes=tanh_codes,
        learns=(set(), {"alpha"}),
    ),
    Row(
        "dorefa", quantizers.DoReFaQuantizer, dorefa, weight_codes=tanh_codes, learns=(set(), set())
    ),
    Row("ewgs", quantizers.EwgsQuantizer, ewgs, options={"delta": 0.3}, others={"delta": 0.1}),
    Row(
        "min_max",
        quantizers.MinMaxQuantizer,
        min_max,
        options={"momentum": 0.9},
        others={"momentum": 0.5},
        observes=ema_of_range,
        learns=(set(), set()),
    ),
]
