"""Places at which a method adds to the gradient of a feature on its way back.

A method that reads a feature gives it a gradient, a tensor of the feature's size that TensorFlow
computes early in the backward pass, keeps until the gradient of the rest of the network arrives,
and adds. A `FeatureTap` lets the method add to that gradient itself, when it arrives.
"""

from collections.abc import Callable, Collection
import threading
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.native import tracing

# Adds to a gradient by a feature, given the gradient by the method's loss, a number.
Addition = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
_SUFFIX = "_tap"


class Tap:
    """One feature in one forward pass."""

    def __init__(self, x: tf.Tensor):
        """Taps `x`; `output` is what the network reads in its place."""
        self._add: Addition | None = None

        @tf.custom_gradient
        def tapped(x: tf.Tensor, link: tf.Tensor):
            def gradient(upstream: tf.Tensor, of_loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                added = upstream if self._add is None else self._add(upstream, of_loss)
                return added, tf.zeros_like(of_loss)

            return (tf.identity(x), tf.identity(link)), gradient

        self.output, self._link = tapped(x, tf.zeros([]))

    def loss(self, value: tf.Tensor, add: Addition) -> tf.Tensor:
        """`value`, a number, as a loss whose gradient by the feature `add` adds.

        Raises:
          ValueError: There is such a loss already.
        """
        if self._add is not None:
            raise ValueError("A feature can be tapped by one method only.")
        self._add = add

        @tf.custom_gradient
        def linked(link: tf.Tensor):
            del link
            return tf.identity(value), lambda upstream: upstream

        return linked(self._link)


class FeatureTap(keras.layers.Layer):
    """Identity, with a `Tap` where operations of `tf_fpq.native` can use it."""

    def __init__(self, feature: str, **kwargs: Any):
        """Creates the layer.

        Args:
          feature: Name of the call whose output it taps.
          **kwargs: Arguments of `keras.layers.Layer`.
        """
        super().__init__(**{"name": feature + _SUFFIX, "dtype": "float32", **kwargs})
        # Replicas are traced by threads that take turns.
        self._latest = threading.local()

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs`."""
        self._latest.tap = None
        if not tracing.may_use_native() or inputs.dtype != tf.float32:
            return inputs
        self._latest.tap = Tap(inputs)
        return self._latest.tap.output

    def latest(self) -> Tap | None:
        """That of the forward pass which this thread traced last."""
        return getattr(self._latest, "tap", None)


def latest_taps(model: keras.Model, features: Collection[str]) -> dict[str, Tap | None]:
    """The taps of features in the latest forward pass of a training graph, by name."""
    return {name: model.get_layer(name + _SUFFIX).latest() for name in features}
