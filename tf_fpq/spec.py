"""What to quantize and how: frozen records, without TensorFlow.

`QuantSpec` describes the grid of one tensor, `QuantRule` chooses bit widths for the layers whose name it matches.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

MIN_BITS, MAX_BITS = 2, 8


def check_bits(name: str, num_bits: int) -> None:
    """Raises ValueError unless `num_bits` is an integer from 2 to 8, the widths that an int8 container holds exactly."""
    if isinstance(num_bits, bool) or not isinstance(num_bits, int) or not MIN_BITS <= num_bits <= MAX_BITS:
        raise ValueError(
            f"{name} must be an integer from {MIN_BITS} to {MAX_BITS} (an int8 container holds those widths exactly). "
            f"Received: {name}={num_bits!r}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The integer grid of one tensor.

    Attributes:
      num_bits: Width, 2 to 8.
      symmetric: Zero point 0 and signed codes (weights), or unsigned codes with a zero point (activations).
      narrow_range: Leave out the lowest code, so that negating all codes stays in range.
      axis: Axes along which every index has its own step size (channels), or None for one step per tensor.
        A convolution kernel has `(3,)`, a depthwise kernel `(2, 3)`, a Dense kernel `(1,)`.
    """

    num_bits: int
    symmetric: bool = False
    narrow_range: bool = False
    axis: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_bits("num_bits", self.num_bits)
        if self.axis is not None:
            object.__setattr__(self, "axis", tuple(self.axis))

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return (-(2 ** (self.num_bits - 1)) if self.symmetric else 0) + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return 2 ** (self.num_bits - 1) - 1 if self.symmetric else 2**self.num_bits - 1

    def step_shape(self, tensor_shape: Sequence[int | None]) -> tuple[int, ...]:
        """Shape of a step size that broadcasts against a tensor of `tensor_shape`."""
        if self.axis is None:
            return ()
        kept = {axis % len(tensor_shape) for axis in self.axis}
        return tuple(size if axis in kept else 1 for axis, size in enumerate(tensor_shape))


@dataclasses.dataclass(frozen=True)
class QuantRule:
    """Bit widths for the layers whose whole name matches a regular expression. Of several rules the first match wins.

    Rules choose among layers with a kernel (convolutions, Dense). `activation_bits` is the width of the tensor such a layer
    *reads*, as in the papers; tensors that no such layer reads (both inputs of a residual addition, the logits) have 8 bits.

    Attributes:
      pattern: Regular expression for `re.fullmatch`.
      weight_bits: Width of the kernel, 2 to 8.
      activation_bits: Width of the layer's input, 2 to 8.
    """

    pattern: str
    _: dataclasses.KW_ONLY
    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits)
        check_bits("activation_bits", self.activation_bits)
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"pattern must be a regular expression ({error}). Received: pattern={self.pattern!r}."
            ) from error

    def matches(self, name: str) -> bool:
        """Whether the rule's pattern matches the whole of a layer's `name`."""
        return re.fullmatch(self.pattern, name) is not None


def match_rules(rules: Iterable[QuantRule], names: Sequence[str]) -> dict[str, QuantRule]:
    """Returns the first matching rule of each name that has one.

    Raises:
      ValueError: If a rule's pattern matches none of `names`: most likely a typing error, and it would do nothing.
    """
    rules = list(rules)
    idle = [rule.pattern for rule in rules if not any(rule.matches(name) for name in names)]
    if idle:
        raise ValueError(
            f"These rules match no layer with a kernel: {', '.join(map(repr, idle))}. A pattern must match the whole name. "
            f"Received: layers {', '.join(names) or '(none)'}."
        )
    chosen = {name: next((rule for rule in rules if rule.matches(name)), None) for name in names}
    return {name: rule for name, rule in chosen.items() if rule is not None}
