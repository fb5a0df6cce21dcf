"""How far a converted model is from the Keras 3 model it was made of.

The two run the same float32 sums in orders that may differ, which costs about 1e-7 of the largest
term per layer. A wrong argument costs more than that in its own layer; a deep network whose layers
are all right may still carry the small differences far.
"""

from collections.abc import Iterable
import dataclasses
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras

# How far outputs of a converted model may be from the Keras 3 model's, relative to the largest
# element or 1. Chosen here, some 80 float32 ulps; docs/parity.md has what each model reaches.
TOLERANCE = 1e-5
_SIZES = (32, 96, 224)  # Tried in order for dimensions that a model leaves open.


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far what one model computes is from what another does.

    Attributes:
      where: The output or layer.
      absolute: The largest difference of two elements; infinite if the shapes differ, NaN if one of
        them is.
      largest: The largest magnitude that the difference is measured against.
    """

    where: str
    absolute: float
    largest: float

    @property
    def relative(self) -> float:
        """`absolute / largest`; 0 where both are 0."""
        return self.absolute / self.largest if self.largest else self.absolute

    @property
    def allowed(self) -> float:
        """`1e-5 * max(1, largest)`.

        That is an absolute bound for small tensors, and one relative to the largest element for
        others.
        """
        return TOLERANCE * max(1.0, self.largest)

    @property
    def ok(self) -> bool:
        """Whether the difference is allowed."""
        return self.absolute <= self.allowed

    def __str__(self) -> str:
        return f"{self.where} differs by {self.absolute:.3g}, allowed are {self.allowed:.3g}"


def difference(
    where: str, expected: Iterable[Any], found: Iterable[Any], read: Iterable[Any] = ()
) -> Difference:
    """Compares two lists of tensors.

    Args:
      where: What computed them.
      expected: Those of the Keras 3 model.
      found: Those of the converted model.
      read: Tensors that both were computed from; the difference of two large ones may be small, and
        as inexact as they are.
    """
    expected, found = (
        [np.asarray(tensor, np.float64) for tensor in tensors] for tensors in (expected, found)
    )
    largest = max(
        (_largest(np.asarray(tensor, np.float64)) for tensor in (*expected, *read)), default=0.0
    )
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return Difference(where, np.inf, largest)
    pairs = zip(expected, found, strict=True)
    return Difference(
        where, float(np.max([_largest(a - b) for a, b in pairs], initial=0.0)), largest
    )


def _largest(tensor: np.ndarray) -> float:
    return float(np.max(np.abs(tensor), initial=0.0))


def outputs(model: Any, converted: keras.Model, samples: Any) -> list[Difference]:
    """Compares each output of the Keras 3 `model` with that of `converted`."""
    expected = arrays(model(samples, training=False))
    found = arrays(converted(samples, training=False))
    names = [f"output {number} of shape {tensor.shape}" for number, tensor in enumerate(expected)]
    return [difference(name, [a], [b]) for name, a, b in zip(names, expected, found, strict=True)]


def arrays(structure: Any) -> list[np.ndarray]:
    """The tensors of a structure, of whatever backend, as arrays."""
    module = sys.modules["keras"]
    return [
        tensor.numpy() if isinstance(tensor, tf.Tensor) else module.ops.convert_to_numpy(tensor)
        for tensor in module.tree.flatten(structure)
    ]


def random_samples(model: Any, converted: keras.Model) -> Any:
    """The first random inputs that the Keras 3 `model` takes.

    Open dimensions may have to be large enough.
    """
    for size in _SIZES:
        samples = _random(converted, size)
        try:
            model(samples, training=False)
        except Exception:
            if size == _SIZES[-1]:
                raise
            continue
        return samples
    raise AssertionError("unreachable: the last size returns or raises")


def _random(model: keras.Model, size: int) -> Any:
    generator = np.random.default_rng(0)

    def draw(tensor: Any) -> np.ndarray:
        batch, *rest = tensor.shape.as_list()
        shape = [
            2 if batch is None else batch,
            *[size if length is None else length for length in rest],
        ]
        if tensor.dtype.is_floating:
            return generator.uniform(-1.0, 1.0, shape).astype(tensor.dtype.as_numpy_dtype)
        return generator.integers(0, 2, shape).astype(tensor.dtype.as_numpy_dtype)

    return tf.nest.map_structure(draw, model._nested_inputs)
