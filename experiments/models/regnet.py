"""RegNetX-200MF for images of 32 pixels.

I. Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, arXiv 2003.13678, figure 15: X
blocks with groups of 8 channels.

Note: the paper's network reads 224 pixels and halves them five times; here stem and first two
stages keep the resolution.
"""

import tensorflow as tf

from tf_fpq.keras_compat import keras

layers = keras.layers

_GROUP = 8
# Blocks, channels in groups of 8 at the paper's stem of 32 channels, stride of the first block.
_STAGES = ((1, 3, 1), (1, 7, 1), (4, 19, 2), (7, 46, 2))


def regnet_x_200mf(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """RegNetX-200MF, 2.3 million parameters at width 32, the channels of its stem."""
    image = keras.Input(input_shape, name="image")
    x = _relu(_conv(image, width, 3, 1, "stem"), "stem")
    for stage, (blocks, groups, first_strides) in enumerate(_STAGES, 1):
        channels = _GROUP * max(1, groups * width // 32)
        for block in range(1, blocks + 1):
            strides = first_strides if block == 1 else 1
            x = _block(x, channels, strides, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(num_classes, name="logits")(x), name="regnet_x_200mf")


def _block(x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
    shortcut = x
    if strides != 1 or x.shape[-1] != channels:
        shortcut = _conv(x, channels, 1, strides, f"{name}_shortcut")
    y = _relu(_conv(x, channels, 1, 1, f"{name}_1"), f"{name}_1")
    y = _relu(_conv(y, channels, 3, strides, f"{name}_2", channels // _GROUP), f"{name}_2")
    y = _conv(y, channels, 1, 1, f"{name}_3")
    return _relu(layers.Add(name=f"{name}_add")([shortcut, y]), name)


def _conv(
    x: tf.Tensor, channels: int, size: int, strides: int, name: str, groups: int = 1
) -> tf.Tensor:
    x = layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _relu(x: tf.Tensor, name: str) -> tf.Tensor:
    return layers.ReLU(name=f"{name}_relu")(x)
