"""3D layers as 2D ones: what only selects or averages values of a volume `[batch, depth, height,
width, channels]` does so in an image of another shape.
"""

from typing import Any

from tf_fpq.conversion.rewriter import Rewrite, Rewriter
from tf_fpq.keras_compat import keras

layers = keras.layers


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
        shape = (1, 1, 1, channels)
        return rewriter.make(layers.Reshape, rewriter.name(name, "kept"), target_shape=shape)(
            pooled
        )

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
