"""MobileNetV1 and MobileNetV2 for images of 32 pixels.

A. G. Howard et al., "MobileNets", arXiv 1704.04861, table 1; M. Sandler et al., "MobileNetV2", CVPR
2018, table 2.

Note: the papers' networks read 224 pixels and halve them five times. Here the stem, and of
MobileNetV2 the second stage too, keep the resolution, as is usual for CIFAR.
"""

import tensorflow as tf

from tf_fpq.keras_compat import keras

layers = keras.layers

# Channels as multiples of the stem's, and strides: the rows of table 1.
_V1 = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))
# The columns t, c / 8, n, s of table 2.
_V2 = (
    *((1, 2, 1, 1), (6, 3, 2, 1), (6, 4, 3, 2), (6, 8, 4, 2)),
    *((6, 12, 3, 1), (6, 20, 3, 2), (6, 40, 1, 1)),
)


def mobilenet_v1(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """MobileNetV1, 3.2 million parameters at width 32."""
    image = keras.Input(input_shape, name="image")
    x = _relu6(_conv(image, width, 3, "stem"), "stem")
    for block, (multiple, strides) in enumerate(_V1, 1):
        x = _relu6(_depthwise(x, strides, f"block{block}_depthwise"), f"block{block}_depthwise")
        name = f"block{block}_pointwise"
        x = _relu6(_conv(x, multiple * width, 1, name), name)
    return _head(image, x, num_classes, "mobilenet_v1")


def mobilenet_v2(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """MobileNetV2, 2.2 million parameters at width 32."""
    image = keras.Input(input_shape, name="image")
    x = _relu6(_conv(image, width, 3, "stem"), "stem")
    block = 0
    for expansion, eighths, repeats, first_strides in _V2:
        for repeat in range(repeats):
            block += 1
            strides = 1 if repeat else first_strides
            x = _inverted_residual(x, expansion, eighths * width // 4, strides, f"block{block}")
    # The head is as wide in narrower networks, as in the paper.
    x = _relu6(_conv(x, max(1280, 40 * width), 1, "head"), "head")
    return _head(image, x, num_classes, "mobilenet_v2")


def _inverted_residual(
    x: tf.Tensor, expansion: int, channels: int, strides: int, name: str
) -> tf.Tensor:
    y = x
    if expansion != 1:
        y = _relu6(_conv(y, expansion * x.shape[-1], 1, f"{name}_expand"), f"{name}_expand")
    y = _relu6(_depthwise(y, strides, f"{name}_depthwise"), f"{name}_depthwise")
    y = _conv(y, channels, 1, f"{name}_project")
    same = strides == 1 and x.shape[-1] == channels
    return layers.Add(name=f"{name}_add")([x, y]) if same else y


def _conv(x: tf.Tensor, channels: int, size: int, name: str) -> tf.Tensor:
    x = layers.Conv2D(
        channels,
        size,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return _norm(x, name)


def _depthwise(x: tf.Tensor, strides: int, name: str) -> tf.Tensor:
    x = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return _norm(x, name)


def _norm(x: tf.Tensor, name: str) -> tf.Tensor:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _relu6(x: tf.Tensor, name: str) -> tf.Tensor:
    return layers.ReLU(max_value=6.0, name=f"{name}_relu")(x)


def _head(image: tf.Tensor, x: tf.Tensor, num_classes: int, name: str) -> keras.Model:
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(num_classes, name="logits")(x), name=name)
