"""Batches for models of one or several inputs. Needs no TensorFlow.

A batch is an array, arrays in the model's order, or arrays by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def in_order(batch: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """The arrays of a batch in the order of the model's inputs; what they hold is not looked at.

    Args:
      batch: The array of a model with one input; else a tuple or list of arrays in the order of
        `names`. A dict by `names` for either.
      names: The model's inputs.

    Raises:
      ValueError: If there is not one array for each input.
    """
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise ValueError(
                f"images must have an array for each input, {_list(names)}. Received:"
                f" {_list(batch)}."
            )
        return tuple(batch[name] for name in names)
    if len(names) == 1:
        return (batch,)
    if not isinstance(batch, tuple | list) or len(batch) != len(names):
        count = (
            f"{len(batch)} arrays"
            if isinstance(batch, tuple | list)
            else f"one {type(batch).__name__}"
        )
        raise ValueError(
            f"images must be a tuple of {len(names)} arrays, for the inputs {_list(names)}, or a"
            f" dict by these names. Received: {count}."
        )
    return tuple(batch)


def packed(arrays: Sequence[Any]) -> Any:
    """What a model takes: the array of its one input, or the tuple of its arrays."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def title(name: str, names: Sequence[str]) -> str:
    """How an error calls an input: by name only where there are several."""
    return "images" if len(names) == 1 else f"input {name!r}"


def check_lengths(arrays: Sequence[np.ndarray], names: Sequence[str]) -> int:
    """The number of images, of which all inputs must have as many.

    Raises:
      ValueError: With the number of each.
    """
    count, *others = {len(array) for array in arrays}
    if others:
        counts = ", ".join(
            f"{len(array)} for {name!r}" for array, name in zip(arrays, names, strict=True)
        )
        raise ValueError(f"All inputs must have as many images. Received: {counts}.")
    return count


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
