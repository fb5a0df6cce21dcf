"""Layer normalization as integer operators.

They are a mean, a difference, a square, a mean, a reciprocal root, a product, and a scale and
shift.

LiteRT has no int8 layer normalization, but an int8 operator for each step:

    m = mean_c(x);  d = x - m;  v = mean_c(d * d);  y = gamma * (d / sqrt(v + epsilon)) + beta

Each step's output has an 8-bit grid of its own, found by calibration, so the student trains with
all the roundings of the phone.

Note: The integer graph adds epsilon where it is half a step of the variance's grid or more. Below
that it has none: a variance whose code is
  0 gives the largest factor on the grid, as `1 / sqrt(epsilon)`, clipped to the grid, does in
  training.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register


@register
class ChannelMean(keras.layers.Layer):
    """`mean(x)` over the last axis, which stays as an axis of length 1."""

    def call(self, inputs: Any) -> Any:
        """Returns the mean."""
        return tf.reduce_mean(inputs, axis=-1, keepdims=True)


@register
class ReciprocalRoot(keras.layers.Layer):
    """`1 / sqrt(x + epsilon)` for x that are not negative."""

    def __init__(self, epsilon: float = 1e-3, **kwargs: Any):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, inputs: Any) -> Any:
        """Returns the reciprocal root."""
        return tf.math.rsqrt(inputs + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        return {**super().get_config(), "epsilon": self.epsilon}


@register
class ChannelAffine(keras.layers.Layer):
    """`gamma * x + beta` with a gamma and a beta for each channel, the last axis.

    Attributes:
      scale: Whether gamma is trained; else it is 1.
      center: Whether beta is trained; else it is 0.
    """

    def __init__(
        self,
        scale: bool = True,
        center: bool = True,
        gamma_regularizer: Any = None,
        beta_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.scale, self.center = scale, center
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)

    def build(self, input_shape: Any) -> None:
        """Adds gamma and beta."""
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(
            "gamma",
            shape,
            initializer="ones",
            regularizer=self.gamma_regularizer,
            trainable=self.scale,
        )
        self.beta = self.add_weight(
            "beta",
            shape,
            initializer="zeros",
            regularizer=self.beta_regularizer,
            trainable=self.center,
        )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns the scaled and shifted input."""
        return self.gamma * inputs + self.beta

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        regularizers = {
            name: keras.regularizers.serialize(getattr(self, name)) for name in _REGULARIZERS
        }
        return {**super().get_config(), "scale": self.scale, "center": self.center, **regularizers}


_REGULARIZERS = ("gamma_regularizer", "beta_regularizer")


def is_along_channels(layer: keras.layers.LayerNormalization, rank: int) -> bool:
    """Whether `layer` normalizes a tensor of this rank over its last axis only."""
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    return rank in (2, 3, 4) and [axis % rank for axis in axes] == [rank - 1]


def layer_normalization(
    rewriter: Any, layer: keras.layers.LayerNormalization, name: str, x: Any
) -> Any:
    """A rewrite of `canonical.py`: the equation above, on a tensor of rank 2 to 4."""

    def apply(value: Any) -> Any:
        mean = rewriter.make(ChannelMean, rewriter.name(name, "mean"))(value)
        difference = rewriter.make(keras.layers.Subtract, rewriter.name(name, "difference"))(
            [value, mean]
        )
        square = rewriter.make(keras.layers.Multiply, rewriter.name(name, "square"))(
            [difference, difference]
        )
        variance = rewriter.make(ChannelMean, rewriter.name(name, "variance"))(square)
        root = rewriter.make(ReciprocalRoot, rewriter.name(name, "factor"), epsilon=layer.epsilon)
        normal = rewriter.make(keras.layers.Multiply, rewriter.name(name, "normal"))(
            [difference, root(variance)]
        )
        return _affine(rewriter, layer, value.shape[-1])(normal)

    return apply(x) if x.shape.rank == 4 else rewriter.in_two_dimensions(name, x, apply)


def _affine(rewriter: Any, layer: keras.layers.LayerNormalization, channels: int) -> ChannelAffine:
    weights = {"gamma": np.ones(channels), "beta": np.zeros(channels)}
    weights |= {
        name: getattr(layer, name).numpy() for name in weights if getattr(layer, name) is not None
    }
    config = {
        name: getattr(layer, name) for name in ("scale", "center", "trainable", *_REGULARIZERS)
    }
    # Keras lists what is trained first.
    order = sorted(weights, key=lambda name: not {"gamma": layer.scale, "beta": layer.center}[name])
    return rewriter.make(ChannelAffine, layer.name, [weights[name] for name in order], **config)
