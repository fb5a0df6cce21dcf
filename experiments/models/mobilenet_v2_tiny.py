"""A small MobileNetV2: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, table 2.

Seven inverted residual blocks (expansion by a 1x1 convolution, depthwise 3x3, linear projection by
a 1x1 convolution, residual where the shape allows), ReLU6, for images of 8 to 32 pixels: the stem
keeps the resolution and two blocks halve it.
"""

import tensorflow as tf

from tf_fpq.keras_compat import keras

layers = keras.layers

# Expansion factor, channels as a multiple of width / 2, number of blocks, stride of the first: the
# columns t, c, n, s of the paper's table.
_STAGES = ((1, 1, 1, 1), (4, 2, 2, 1), (4, 3, 2, 2), (4, 4, 2, 2))


def mobilenet_v2_tiny(
    input_shape: tuple[int, ...], num_classes: int, width: int = 16
) -> keras.Model:
    """A MobileNetV2 of 23 layers with weights, 39,000 parameters at width 16."""
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(
        width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name="stem_conv"
    )(image)
    x = _norm_relu6(x, "stem")
    block = 0
    for expansion, multiple, repeats, first_strides in _STAGES:
        for repeat in range(repeats):
            block += 1
            strides = first_strides if repeat == 0 else 1
            x = _inverted_residual(
                x, expansion, max(1, multiple * width // 2), strides, f"block{block}"
            )
    x = _pointwise(x, 8 * width, "head_conv")
    x = _norm_relu6(x, "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(num_classes, name="logits")(x)
    return keras.Model(image, logits, name="mobilenet_v2_tiny")


def _inverted_residual(
    x: tf.Tensor, expansion: int, channels: int, strides: int, name: str
) -> tf.Tensor:
    y = x
    if expansion != 1:
        y = _pointwise(y, expansion * x.shape[-1], f"{name}_expand_conv")
        y = _norm_relu6(y, f"{name}_expand")
    y = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(y)
    y = _norm_relu6(y, f"{name}_depthwise")
    y = _pointwise(y, channels, f"{name}_project_conv")
    y = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_project_bn")(y)
    if strides == 1 and x.shape[-1] == channels:
        y = layers.Add(name=f"{name}_add")([x, y])
    return y


def _pointwise(x: tf.Tensor, channels: int, name: str) -> tf.Tensor:
    return layers.Conv2D(channels, 1, use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _norm_relu6(x: tf.Tensor, name: str) -> tf.Tensor:
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(max_value=6.0, name=f"{name}_relu")(x)
