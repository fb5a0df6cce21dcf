"""Widths for a budget: the narrow grids go where they do the least damage.

`tf_fpq.sensitivity` measures it. The noises of different tensors at the outputs are taken to add
up, which holds while they are small (Y. Zhou et al., *Adaptive Quantization for Deep Neural
Network*, AAAI 2018, arXiv 1712.01048).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import re

import numpy as np

from tf_fpq.placement.rules import QuantRule
from tf_fpq.quantizers.spec import check_bits
from tf_fpq.sensitivity import Part, Sensitivity

# A tensor whose width is chosen: a kernel by its layer's name, or an activation by its grid's.
Tensor = tuple[Part, str]
Widths = Mapping[Tensor, int]

# Steps that a budget is divided into. Chosen here: 100 kernels lose at most half a percent of it by
# rounding, which the last tensors to be widened get, and their table takes a second.
_UNITS = 20_000

_LABELS = {"weight_bytes": "bytes of weights", "bit_operations": "bit operations for one image"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Widths of all tensors, what they cost, and the damage that is expected of them.

    Attributes:
      widths: Weight and activation width by layer name.
      weight_bytes: Bytes of kernel codes at their own widths, and of int32 biases.
      bit_operations: Sum over layers of `macs * weight_bits * activation_bits`, for one image.
      damage: Sum of the relative noises at the outputs, or of HAWQ's perturbations with `traces`.
    """

    widths: Mapping[str, tuple[int, int]]
    weight_bytes: int
    bit_operations: int
    damage: float


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Rules for `quantize_model`, and the way there.

        suggestion = tf_fpq.suggest_rules(found, weight_bytes=20_000)
        student = tf_fpq.quantize_model(model, suggestion.rules)

    Attributes:
      rules: One rule per scheme, the most frequent one last, as the rule for all the others.
      choice: The choice that the rules state.
      path: All choices on the way from the widest widths, by falling cost: the Pareto front.
      uniform: For comparison, the choices with one width for all kernels, by width.
      budget: The name of the cost that was limited: "weight_bytes" or "bit_operations".
    """

    rules: tuple[QuantRule, ...]
    choice: Choice
    path: tuple[Choice, ...]
    uniform: Mapping[int, Choice]
    budget: str

    def __str__(self) -> str:
        lines = [
            f"{self.choice.weight_bytes:,} bytes of weights,"
            f" {self.choice.bit_operations:,} bit operations,"
            f" damage {self.choice.damage:.3g}"
        ]
        lines += [f"  {rule}" for rule in self.rules]
        lines += [
            f"all kernels at {bits} bits: {choice.weight_bytes:,} bytes,"
            f" {choice.bit_operations:,} bit operations, damage {choice.damage:.3g}"
            for bits, choice in self.uniform.items()
        ]
        return "\n".join(lines)

    def plot(self, path: str) -> None:
        """Draws damage against cost: the front, the choice, and the uniform widths.

        Args:
          path: Where to write it; its ending says the format (".png", ".svg").

        Raises:
          ModuleNotFoundError: If matplotlib is not installed.
        """
        from matplotlib import figure  # half a second, for those who draw

        drawn = figure.Figure(figsize=(7, 4.5), layout="constrained")
        panel = drawn.subplots()
        panel.plot(*self._points(self.path), marker=".", label="mixed widths")
        panel.plot(*self._points(self.uniform.values()), "s", label="one width for all kernels")
        for bits, choice in self.uniform.items():
            ((cost,), (damage,)) = self._points([choice])
            panel.annotate(
                f"{bits} bits", (cost, damage), xytext=(6, 4), textcoords="offset points"
            )
        panel.plot(*self._points([self.choice]), "*", markersize=15, label="suggested")
        panel.set_yscale("log")
        panel.set_xlabel(_LABELS[self.budget])
        panel.set_ylabel("expected damage at the outputs")
        panel.grid(alpha=0.3)
        panel.legend()
        drawn.savefig(path, dpi=120)

    def _points(self, choices: Iterable[Choice]) -> tuple[list[float], list[float]]:
        """Costs and damages."""
        found = list(choices)
        return [getattr(choice, self.budget) for choice in found], [c.damage for c in found]


def suggest_rules(
    found: Sensitivity,
    *,
    weight_bytes: int | None = None,
    bit_operations: int | None = None,
    activation_bits: int | None = 8,
    traces: Mapping[str, float] | None = None,
) -> Suggestion:
    """Chooses a width for every kernel, and on request every activation, within a budget.

    All tensors start at the widest measured width. Then, again and again, the tensor is narrowed
    that saves the most for the damage it does, until the budget holds:

        argmax over tensors and narrower widths of  saved cost / added damage.

    A greedy walk seldom ends at the limit itself. The widths of the kernels are therefore chosen
    once more, by dynamic programming, for the widths of activations that the walk found.

    A worked number: two kernels of 1,000 weights at 8 bits cost 2,000 bytes. At 4 bits the first
    adds a noise of 0.01 and the second one of 0.001, both save 500 bytes. With a budget of 1,500
    bytes the second one gets 4 bits.

        found = tf_fpq.sensitivity(model, images[:100])
        suggestion = tf_fpq.suggest_rules(found, weight_bytes=40_000)
        student = tf_fpq.quantize_model(model, suggestion.rules)

    Args:
      found: What `tf_fpq.sensitivity` returned.
      weight_bytes: Budget for the kernels' codes at their own widths and the int32 biases.
      bit_operations: Budget for the sum of `macs * weight_bits * activation_bits` of one image,
        instead of `weight_bytes`.
      activation_bits: Width of all activations; None chooses them too, which only a budget of bit
        operations asks for.
      traces: Mean diagonal of the loss' Hessian by layer (HAWQ-V2, arXiv 1911.03852). With it the
        damage of a kernel is `trace * sum (w' - w)^2`, the Omega there, in place of the noise at
        the outputs. Such damages compare kernels only, so `activation_bits` must be given.

    Returns:
      The rules, and the choices on the way to them.

    Raises:
      ValueError: If not exactly one budget is given, the budget is below what the narrowest
        measured widths cost, `activation_bits` is not from 2 to 8, or traces do not fit.
    """
    allocation = _Allocation(found, activation_bits, traces)
    budget, limit = _budget(weight_bytes, bit_operations, activation_bits)
    walked = list(allocation.narrowed(budget))
    path = [allocation.choice(widths) for widths in walked]
    first = next((i for i, at in enumerate(path) if getattr(at, budget) <= limit), None)
    if first is None:
        lowest = min(getattr(choice, budget) for choice in path)
        raise ValueError(
            f"{budget} must be at least {lowest:,}, the cost of {found.bits[0]} bits everywhere;"
            f" measure narrower widths, or take a smaller model. Received: {budget}={limit!r}."
        )
    choice = allocation.best(walked[first], budget, limit)
    uniform = {bits: allocation.choice(allocation.uniform(bits)) for bits in found.bits}
    return Suggestion(tuple(_rules(choice.widths)), choice, tuple(path), uniform, budget)


def _budget(
    weight_bytes: int | None, bit_operations: int | None, activation_bits: int | None
) -> tuple[str, int]:
    given = [
        (name, value)
        for name, value in (("weight_bytes", weight_bytes), ("bit_operations", bit_operations))
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            "Give one budget, weight_bytes or bit_operations. Received:"
            f" weight_bytes={weight_bytes!r}, bit_operations={bit_operations!r}."
        )
    if given[0][0] == "weight_bytes" and activation_bits is None:
        raise ValueError(
            "activation_bits=None lets the budget choose the activations, and weight_bytes does"
            " not count them: give bit_operations, or activation_bits."
        )
    return given[0]


class _Allocation:
    """Damages and costs of choices of widths."""

    def __init__(
        self,
        found: Sensitivity,
        activation_bits: int | None,
        traces: Mapping[str, float] | None,
    ):
        if activation_bits is not None:
            check_bits("activation_bits", activation_bits)
        elif traces is not None:
            raise ValueError(
                "traces compare kernels only, so activation_bits must be given. Received:"
                " activation_bits=None."
            )
        if traces is not None and (missing := [n for n in found.layers if n not in traces]):
            raise ValueError(f"traces must have every layer. Missing: {', '.join(missing)}.")
        self._found, self._activation_bits, self._traces = found, activation_bits, traces
        self._bits = found.bits
        self._damage = {
            tensor: {bits: self._measured(layer, tensor[0], bits) for bits in found.bits}
            for tensor, layer in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[Tensor, str]]:
        """The tensors whose widths are chosen, each with a layer that it was measured at."""
        seen: set[str] = set()
        for name, cost in self._found.layers.items():
            yield ("weights", name), name
            if self._activation_bits is None and cost.reads not in seen:
                seen.add(cost.reads)
                yield ("activations", cost.reads), name

    def _measured(self, layer: str, part: Part, bits: int) -> float:
        damage = self._found.damage(layer, part, bits)
        if self._traces is not None:
            return self._traces[layer] * damage.squared_error
        return damage.noise

    def uniform(self, bits: int) -> dict[Tensor, int]:
        """One width for all tensors whose widths are chosen."""
        return dict.fromkeys(self._damage, bits)

    def choice(self, widths: Widths) -> Choice:
        """What widths cost and damage."""
        by_layer = {
            name: (widths[("weights", name)], self._activation_width(cost.reads, widths))
            for name, cost in self._found.layers.items()
        }

        def total(budget: str) -> int:
            return sum(
                self._cost(budget, name, bits, widths) for name, (bits, _) in by_layer.items()
            )

        return Choice(
            widths=by_layer,
            weight_bytes=total("weight_bytes"),
            bit_operations=total("bit_operations"),
            damage=sum(self._damage[tensor][bits] for tensor, bits in widths.items()),
        )

    def _activation_width(self, reads: str, widths: Widths) -> int:
        if self._activation_bits is not None:
            return self._activation_bits
        return widths[("activations", reads)]

    def narrowed(self, budget: str) -> Iterator[dict[Tensor, int]]:
        """Widths from the widest to the narrowest; each step is the one that pays most."""
        widths = self.uniform(self._bits[-1])
        yield dict(widths)
        while steps := list(self._steps(widths, budget)):
            tensor, bits, _ = max(steps, key=lambda step: step[2])
            widths[tensor] = bits
            yield dict(widths)

    def best(self, widths: Widths, budget: str, limit: int) -> Choice:
        """The least damage within a budget, with the activations' widths as they are.

        Args:
          widths: Widths within the budget.
          budget: Name of the cost.
          limit: Its limit.
        """
        candidates = (widths, self._knapsack(widths, budget, limit))
        choices = [self.choice(self._filled(found, budget, limit)) for found in candidates]
        return min(choices, key=lambda choice: choice.damage)

    def _knapsack(self, widths: Widths, budget: str, limit: int) -> Widths:
        """The kernels' widths by dynamic programming over the budget, in `_UNITS` equal units.

        Costs are rounded up to units, so the budget holds; if nothing fits so, `widths` as it is.
        """
        kernels = [tensor for tensor in widths if tensor[0] == "weights"]
        unit = max(1.0, limit / _UNITS)
        least = np.zeros(int(limit / unit) + 1)  # by units that may be spent on the kernels so far
        taken: list[tuple[np.ndarray, list[int]]] = []
        for tensor in kernels:
            costs = [math.ceil(self._cost(budget, tensor[1], b, widths) / unit) for b in self._bits]
            options = np.full((len(costs), len(least)), np.inf)
            for option, cost, bits in zip(options, costs, self._bits):
                option[cost:] = least[: max(0, len(least) - cost)] + self._damage[tensor][bits]
            taken.append((options.argmin(0), costs))
            least = options.min(0)
        if math.isinf(least[-1]):
            return widths
        found, left = dict(widths), len(least) - 1
        for tensor, (choices, costs) in zip(reversed(kernels), reversed(taken)):
            choice = choices[left]
            found[tensor], left = self._bits[choice], left - costs[choice]
        return found

    def _cost(self, budget: str, layer: str, bits: int, widths: Widths) -> int:
        """What a layer's kernel costs at a width, with the activations' widths as they are."""
        cost = self._found.layers[layer]
        if budget == "weight_bytes":
            return cost.weight_bytes(bits)
        return cost.macs * bits * self._activation_width(cost.reads, widths)

    def _filled(self, widths: Widths, budget: str, limit: int) -> dict[Tensor, int]:
        """Widths whose tensors are as wide as the budget allows; the most damage goes first."""
        filled = dict(widths)
        while wider := [
            (self._damage[tensor][width] - self._damage[tensor][bits], tensor, bits)
            for tensor, width in filled.items()
            for bits in self._bits
            if bits > width
            and self._damage[tensor][bits] < self._damage[tensor][width]
            and getattr(self.choice({**filled, tensor: bits}), budget) <= limit
        ]:
            _, tensor, bits = max(wider, key=lambda step: step[0])
            filled[tensor] = bits
        return filled

    def _steps(self, widths: Widths, budget: str) -> Iterator[tuple[Tensor, int, float]]:
        """All narrower widths of one tensor, each with the cost saved per damage added."""
        before = getattr(self.choice(widths), budget)
        for tensor, width in widths.items():
            for bits in self._bits:
                if bits < width:
                    saved = before - getattr(self.choice({**widths, tensor: bits}), budget)
                    added = self._damage[tensor][bits] - self._damage[tensor][width]
                    # Fewer bits can come out better by chance: then nothing is cheaper.
                    yield tensor, bits, saved / added if added > 0 else math.inf


def _rules(widths: Mapping[str, tuple[int, int]]) -> Iterator[QuantRule]:
    """One rule per scheme, the most frequent scheme last and for all layers."""
    names: dict[tuple[int, int], list[str]] = {}
    for name, scheme in widths.items():
        names.setdefault(scheme, []).append(name)
    *others, last = sorted(names, key=lambda scheme: len(names[scheme]))
    for scheme in others:
        yield _rule("|".join(map(re.escape, names[scheme])), scheme)
    yield _rule(".*", last)


def _rule(pattern: str, scheme: Sequence[int]) -> QuantRule:
    return QuantRule(pattern, weight_bits=scheme[0], activation_bits=scheme[1])
