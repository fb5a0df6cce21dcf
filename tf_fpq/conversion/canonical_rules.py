"""How single layers are written in canonical ones.

Activation functions become layers of their own. Layers on sequences become layers on images of
height 1. Layers on volumes `[batch, depth, height, width, channels]` that only select or average
values become layers on images of another shape.
"""

from typing import Any

from tf_fpq import roles
from tf_fpq.conversion.rewriter import TRAINING, Rewrite, Rewriter
from tf_fpq.keras_compat import keras

layers = keras.layers


def affine(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """An affine operator of its own is a depthwise convolution.

    That takes `[batch, height, width, channels]`.
    """
    axis = {"axis": -1} if getattr(layer, "axis", ()) else {}
    return rewriter.in_two_dimensions(name, x, rewriter.copy(layer, **axis))


def identity(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """`Activation("linear")` would put its input on a new grid for nothing."""
    return x


def activate(rewriter: Rewriter, function: Any, name: str, x: Any) -> Any:
    """Applies an activation function, itself in canonical layers."""
    layer = layers.Activation(function, name=name)
    rewrite = ACTIVATIONS.get(roles.activation_name(layer))
    if rewrite is not None:
        return rewrite(rewriter, layer, name, x)
    return rewriter.make(layers.Activation, name, activation=function)(x)


def split_activation(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """The layer without its activation function, and that behind it."""
    value = rewriter.copy(layer, activation="linear")(x)
    return activation_of(rewriter, layer, name, value)


def activation_of(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """The activation function of `layer` as a layer of its own."""
    function = roles.activation_name(layer)
    return (
        x
        if function == "linear"
        else activate(rewriter, layer.activation, rewriter.name(name, function), x)
    )


def swish(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """`x * sigmoid(x)`."""
    gate = rewriter.make(layers.Activation, rewriter.name(name, "sigmoid"), activation="sigmoid")(x)
    return rewriter.make(layers.Multiply, name)([x, gate])


def hard_sigmoid(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """`clip(0.2 x + 0.5, 0, 1)`, as Keras 2 has it."""
    line = rewriter.make(layers.Rescaling, rewriter.name(name, "line"), scale=0.2, offset=0.5)(x)
    return rewriter.make(layers.ReLU, name, max_value=1.0)(line)


def leaky_relu(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """A ReLU with a slope as a LeakyReLU."""
    return rewriter.make(layers.LeakyReLU, layer.name, alpha=float(layer.negative_slope))(x)


ACTIVATIONS: dict[str, Rewrite] = {
    "linear": identity,
    "swish": swish,
    "silu": swish,
    "hard_sigmoid": hard_sigmoid,
}


def conv1d(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """A Conv1D as a Conv2D with a kernel of height 1."""
    if layer.kernel_constraint is not None:
        raise ValueError(
            f"Layer {layer.name!r} has a kernel_constraint along axes that its form as an integer"
            " operator, a 2D convolution, does not have; remove it."
        )
    kernel, *bias = layer.get_weights()
    config = {
        key: getattr(layer, key)
        for key in ("filters", "groups", "padding", "kernel_regularizer", *TRAINING)
    }
    config |= {
        key: (1, *getattr(layer, key)) for key in ("kernel_size", "strides", "dilation_rate")
    }
    causal = layer.padding == "causal"
    if causal:
        config["padding"] = "valid"

    def apply(value: Any) -> Any:
        if causal:
            sides = ((0, 0), (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0))
            value = rewriter.make(
                layers.ZeroPadding2D, rewriter.name(layer.name, "causal"), padding=sides
            )(value)
        value = rewriter.make(layers.Conv2D, layer.name, [kernel[None], *bias], **config)(value)
        return activation_of(rewriter, layer, name, value)

    return rewriter.in_two_dimensions(name, x, apply)


def pool1d(layer_class: type) -> Rewrite:
    """The rule for a pooling on sequences, as `layer_class`."""

    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        config = {
            "pool_size": (1, *layer.pool_size),
            "strides": (1, *layer.strides),
            "padding": layer.padding,
        }
        return rewriter.in_two_dimensions(name, x, rewriter.make(layer_class, layer.name, **config))

    return rewrite


def global_pool1d(layer_class: type) -> Rewrite:
    """The rule for a global pooling on sequences, as `layer_class`."""

    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        return rewriter.in_two_dimensions(
            name, x, rewriter.make(layer_class, layer.name, keepdims=layer.keepdims)
        )

    return rewrite


def sides1d(layer_class: type, argument: str) -> Rewrite:
    """The rule for padding or cropping a sequence, as `layer_class`."""

    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        sides: dict[str, Any] = {argument: ((0, 0), tuple(getattr(layer, argument)))}
        return rewriter.in_two_dimensions(name, x, rewriter.make(layer_class, layer.name, **sides))

    return rewrite


def upsampling1d(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """An UpSampling1D as an UpSampling2D of height 1."""
    return rewriter.in_two_dimensions(
        name, x, rewriter.make(layers.UpSampling2D, layer.name, size=(1, layer.size))
    )


def global_pool3d(layer_class: type) -> Rewrite:
    """The rewrite of a global pooling: depth and height are one axis."""

    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        _check(layer)
        depth, height, width, channels = x.shape[1:]
        shape = (depth * height, width, channels)
        flat = rewriter.make(layers.Reshape, rewriter.name(name, "flat"), target_shape=shape)(x)
        pooled = rewriter.make(layer_class, layer.name, keepdims=False)(flat)
        if not layer.keepdims:
            return pooled
        kept = rewriter.name(name, "kept")
        return rewriter.make(layers.Reshape, kept, target_shape=(1, 1, 1, channels))(pooled)

    return rewrite


def cropping3d(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """Crops depth and height with width and channels as one axis, then width."""
    _check(layer)
    depth, height, width, channels = x.shape[1:]
    depths, heights, widths = layer.cropping
    rows = (depth - sum(depths)) * (height - sum(heights))
    x = _crop(rewriter, name, "outer", x, (depth, height, width * channels), (depths, heights))
    x = _crop(rewriter, name, "inner", x, (rows, width, channels), ((0, 0), widths))
    shape = (depth - sum(depths), height - sum(heights), width - sum(widths), channels)
    return rewriter.make(layers.Reshape, layer.name, target_shape=shape)(x)


def _crop(rewriter: Rewriter, name: str, part: str, x: Any, shape: Any, sides: Any) -> Any:
    """Crops `x` in the shape of an image."""
    image = rewriter.name(name, f"{part}_image")
    x = rewriter.make(layers.Reshape, image, target_shape=shape)(x)
    return rewriter.make(layers.Cropping2D, rewriter.name(name, part), cropping=sides)(x)


def _check(layer: Any) -> None:
    """Raises ValueError for a layer whose axes are in another order, or open."""
    if layer.data_format != "channels_last" or None in layer.input_shape[1:]:
        raise ValueError(
            f"Layer {layer.name!r} must be channels_last and know its volume's sides to become a 2D"
            f" layer. Received: data_format={layer.data_format!r},"
            f" input shape {layer.input_shape}."
        )
