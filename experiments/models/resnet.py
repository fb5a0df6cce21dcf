"""Residual networks in CIFAR style: K. He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016, section 4.2.

Three stages of `blocks` residual blocks with `width`, `2 * width` and `4 * width` channels, 6 *
blocks + 2 layers with weights.

Note: the paper's CIFAR networks shorten dimensions without parameters (option A: stride and zero
channels). Here the shortcut is a 1x1 convolution with batch norm (option B), because zero channels
would need a pad operator on the phone.
"""

import tensorflow as tf

from tf_fpq.keras_compat import keras

layers = keras.layers


def resnet8(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> keras.Model:
    """A ResNet of 8 layers with weights (one block per stage), 78,000 parameters at width 16."""
    return _resnet("resnet8", input_shape, num_classes, width, blocks=1)


def resnet20(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> keras.Model:
    """A ResNet of 20 layers with weights (three blocks per stage), 274,000 parameters at width
    16.
    """
    return _resnet("resnet20", input_shape, num_classes, width, blocks=3)


def _resnet(
    name: str, input_shape: tuple[int, ...], num_classes: int, width: int, blocks: int
) -> keras.Model:
    image = keras.Input(input_shape, name="image")
    x = _conv(image, width, 3, 1, "stem_conv", "stem_bn")
    x = layers.ReLU(name="stem_relu")(x)
    for stage in range(1, 4):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, width * 2 ** (stage - 1), strides, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(num_classes, name="logits")(x)
    return keras.Model(image, logits, name=name)


def _block(x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
    """relu(x + bn(conv(relu(bn(conv(x)))))), with a convolution on the shortcut where the shape
    changes.
    """
    shortcut = x
    if strides != 1 or x.shape[-1] != channels:
        shortcut = _conv(x, channels, 1, strides, f"{name}_shortcut_conv", f"{name}_shortcut_bn")
    y = _conv(x, channels, 3, strides, f"{name}_conv1", f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv(y, channels, 3, 1, f"{name}_conv2", f"{name}_bn2")
    y = layers.Add(name=f"{name}_add")([shortcut, y])
    return layers.ReLU(name=f"{name}_relu2")(y)


def _conv(
    x: tf.Tensor, channels: int, size: int, strides: int, conv_name: str, norm_name: str
) -> tf.Tensor:
    x = layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=conv_name,
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm_name)(x)
