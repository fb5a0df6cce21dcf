"""The integer grid of one tensor, as a frozen record without TensorFlow."""

from collections.abc import Sequence
import dataclasses
from typing import Any

# An int8 container holds at most 8 bits. A signed grid of 1 bit, less its lowest code, has only 0.
MIN_BITS, MAX_BITS = 2, 8


def check_bits(name: str, num_bits: int) -> None:
    """Raises ValueError unless `num_bits` is an integer from 2 to 8.

    These are the widths that an int8 container holds exactly.
    """
    if (
        isinstance(num_bits, bool)
        or not isinstance(num_bits, int)
        or not MIN_BITS <= num_bits <= MAX_BITS
    ):
        raise ValueError(
            f"{name} must be an integer from {MIN_BITS} to {MAX_BITS} (an int8 container holds"
            f" those widths exactly). Received: {name}={num_bits!r}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The integer grid of one tensor.

        tf_fpq.QuantSpec(num_bits=4, symmetric=True, narrow_range=True)  # codes -7 .. 7

    At 4 bits unsigned codes are 0 to 15 and signed ones -8 to 7, with `narrow_range` -7 to 7.

    Attributes:
      num_bits: Width, 2 to 8.
      symmetric: Zero point 0 and signed codes (weights), or unsigned codes with a zero point
        (activations).
      narrow_range: Leave out the lowest code, so that negating all codes stays in range.
      axis: Axes along which every index has its own step size (channels), or None for one step per
        tensor. A convolution kernel has `(3,)`, a depthwise kernel `(2, 3)`, a Dense kernel `(1,)`.
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

    def step_shape(self, tensor_shape: Sequence[Any]) -> tuple[int, ...]:
        """Shape of a step size that broadcasts against a tensor of `tensor_shape`, in which sizes
        along axes that share a step may be None.
        """
        if self.axis is None:
            return ()
        kept = {axis % len(tensor_shape) for axis in self.axis}
        return tuple(size if axis in kept else 1 for axis, size in enumerate(tensor_shape))

    def shared_axes(self, rank: int) -> tuple[int, ...]:
        """Axes of a tensor of `rank` along which all elements share a step size."""
        kept = {axis % rank for axis in self.axis or ()}
        return tuple(axis for axis in range(rank) if axis not in kept)
