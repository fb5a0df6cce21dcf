"""What the rules of `operator_layers` share: the substitute, and what may stand for an operator."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register


@dataclasses.dataclass(frozen=True)
class Substitute:
    """The layer that stands for an operator.

    It is a class, its arguments, and what it is called on (one tensor or a list).
    """

    layer_class: type[keras.layers.Layer]
    config: Mapping[str, Any]
    inputs: Any


Rule = Callable[[dict[str, Any], tf.TensorShape], Substitute | None]


@register
class Division(keras.layers.Rescaling):
    """`x / divisor`: a Rescaling by `1 / divisor` that rounds once, as TensorFlow's division does.

    To a quantizer it is a Rescaling: `scale` is `1 / divisor` and `offset` is 0. `x * (1 /
    divisor)` in float32 can be one unit in the last place off, which would break the bit equality
    of a flattened model.

    Args:
      divisor: A number, or a (nested) list of numbers that broadcasts to the input.
    """

    def __init__(self, divisor: Any, **kwargs: Any):
        super().__init__(scale=(1.0 / np.asarray(divisor)).tolist(), **kwargs)
        self.divisor = divisor

    def call(self, inputs: Any) -> Any:
        """Divides."""
        return tf.cast(inputs, self.compute_dtype) / tf.cast(self.divisor, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The divisor in place of the scale and offset that follow from it."""
        config = {**super().get_config(), "divisor": self.divisor}
        return {name: value for name, value in config.items() if name not in ("scale", "offset")}


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor of a functional model."""
    return hasattr(value, "_keras_history")


def is_float(*values: Any) -> bool:
    """Whether all values are symbolic tensors of floats."""
    return all(is_symbolic(value) and value.dtype.is_floating for value in values)


def constant_like(value: Any, like: Any) -> Any:
    """`value` as nested lists of Python floats in the precision of `like`.

    None unless it is a numeric constant.
    """
    if is_symbolic(value) or isinstance(value, (tf.Variable, str)) or value is None:
        return None
    return np.asarray(value).astype(like.dtype.as_numpy_dtype).astype(np.float64).tolist()


def merge(class_name: str, inputs: list[Any]) -> Substitute | None:
    """A merging layer; they broadcast within one rank only, and so must the operator."""
    same = len({(tensor.shape.rank, tensor.dtype) for tensor in inputs}) == 1
    return (
        Substitute(getattr(keras.layers, class_name), {}, inputs)
        if same and is_float(*inputs)
        else None
    )


def scaling(
    tensor: Any, shape: tf.TensorShape, scale: Any = 1.0, offset: Any = 0.0
) -> Substitute | None:
    """A Rescaling of `tensor`; None where broadcasting would make it larger."""
    if not is_float(tensor) or grows(tensor, shape):
        return None
    line = {"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()}
    return Substitute(keras.layers.Rescaling, {**line, "dtype": tensor.dtype.name}, tensor)


def grows(tensor: Any, shape: tf.TensorShape) -> bool:
    """Whether broadcasting to `shape` may copy `tensor`.

    `shape` may know less of the sizes, if a model is reused.
    """
    before, after = tensor.shape.as_list(), shape.as_list()
    return len(before) != len(after) or any(
        new not in (None, old) for old, new in zip(before, after, strict=True)
    )
