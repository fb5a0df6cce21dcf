"""Makes the layers of a canonical model, and remembers the weights that they start with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_fpq import graph
from tf_fpq.keras_compat import keras

layers = keras.layers

# What a rewritten convolution keeps for training.
TRAINING = ("use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer", "trainable")


Rewrite = Callable[["Rewriter", keras.layers.Layer, str, Any], Any]


class Rewriter:
    """Makes each new layer once, however often the old one is called.

    It remembers the weights that each starts with.
    """

    def __init__(self, model: keras.Model) -> None:
        self._made: dict[str, keras.layers.Layer] = {}
        self._weights: dict[str, Sequence[np.ndarray]] = {}
        self._copied: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []
        self._two_dimensional: dict[int, tuple[Any, Any]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._taken = {layer.name for layer in model.layers} | {
            call.name for call in graph.calls(model)
        }

    def name(self, name: str, part: str) -> str:
        """Name of a new layer that does `part` of what the layer or call `name` did.

        No other layer has it.
        """
        if (name, part) not in self._names:
            self._names[name, part] = graph.unique_name(f"{name}_{part}", self._taken)
        return self._names[name, part]

    def make(
        self,
        layer_class: type,
        name: str,
        weights: Sequence[np.ndarray] | None = None,
        **config: Any,
    ) -> Any:
        """The layer `name`, made at the first call."""
        if name not in self._made:
            self._made[name] = layer_class(name=name, dtype="float32", **config)
            if weights is not None:
                self._weights[name] = weights
        return self._made[name]

    def copy(self, layer: keras.layers.Layer, **changes: Any) -> Any:
        """A copy of `layer` with its weights and some arguments changed."""
        if layer.name not in self._made:
            self._made[layer.name] = graph.copy_layer(layer, **changes)
            self._copied.append((layer, self._made[layer.name]))
        return self._made[layer.name]

    def set_weights(self) -> None:
        """Gives all made layers their weights; they are built by now."""
        for source, target in self._copied:
            graph.copy_weights(source, target)
        for name, weights in self._weights.items():
            self._made[name].set_weights(weights)

    def in_two_dimensions(self, name: str, x: Any, apply: Callable[[Any], Any]) -> Any:
        """Applies a 2D layer to a tensor of rank 2 or 3, whose last axes become width and channels.

        The tensor that comes out is remembered in its 2D form too, so that a batch norm after a
        Conv1D follows the convolution directly.
        """
        value = self.two_dimensional(x)
        if value is None:
            shape = (*[1] * (4 - x.shape.rank), *x.shape[1:])
            value = self.make(layers.Reshape, self.name(name, "as_image"), target_shape=shape)(x)
        value = apply(value)
        if value.shape.rank != 4:
            return value
        shape = tuple(value.shape[2 if x.shape.rank == 3 else 3 :])
        flat = self.make(layers.Reshape, self.name(name, "from_image"), target_shape=shape)(value)
        self._two_dimensional[id(flat)] = (flat, value)
        return flat

    def two_dimensional(self, x: Any) -> Any | None:
        """The 2D form of a tensor that `in_two_dimensions` returned."""
        return self._two_dimensional.get(id(x), (None, None))[1]
