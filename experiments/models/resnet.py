"""Residual networks in CIFAR style: K. He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016, section 4.2, and the paper's ResNet-18 and ResNet-50 (table 1).

A stage is some residual blocks; each but the first has twice the channels of the one before and
half of its resolution. ResNet-8 and ResNet-20 have three stages of `width`, `2 * width` and
`4 * width` channels, ResNet-18 and ResNet-50 four. The stem is one 3x3 convolution; for images of
more than 64 pixels ResNet-18 and ResNet-50 have the paper's, 7x7 and a pooling, which halve twice.

Note: the paper's CIFAR networks shorten dimensions without parameters (option A: stride and zero
channels). Here the shortcut is a 1x1 convolution with batch norm (option B), because zero channels
would need a pad operator on the phone.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from experiments.models.blocks import classifier, conv_norm, halved
from tf_fpq.keras_compat import keras

layers = keras.layers


def resnet8(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> keras.Model:
    """A ResNet of 8 layers with weights (one block per stage), 78,000 parameters at width 16."""
    return _resnet("resnet8", input_shape, num_classes, width, (1, 1, 1))


def resnet20(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> keras.Model:
    """A ResNet of 20 layers with weights (three blocks per stage), 274,000 parameters at width
    16.
    """
    return _resnet("resnet20", input_shape, num_classes, width, (3, 3, 3))


def resnet18(input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> keras.Model:
    """ResNet-18, 11.2 million parameters at width 64 and 10 classes."""
    return _resnet("resnet18", input_shape, num_classes, width, (2, 2, 2, 2))


def resnet50(input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> keras.Model:
    """ResNet-50, 23.5 million parameters at width 64 and 10 classes."""
    return _resnet("resnet50", input_shape, num_classes, width, (3, 4, 6, 3), _bottleneck)


def _resnet(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    width: int,
    blocks: Sequence[int],
    block: Callable[[tf.Tensor, int, int, str], tf.Tensor] | None = None,
) -> keras.Model:
    image = keras.Input(input_shape, name="image")
    large = len(blocks) == 4 and halved(input_shape) == 2
    x = conv_norm(image, width, 7 if large else 3, "stem", strides=2 if large else 1)
    x = layers.ReLU(name="stem_relu")(x)
    if large:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage, repeats in enumerate(blocks):
        for repeat in range(repeats):
            strides = 2 if stage and not repeat else 1
            place = f"stage{stage + 1}_block{repeat + 1}"
            x = (block or _block)(x, width * 2**stage, strides, place)
    return classifier(image, x, num_classes, name)


def _bottleneck(x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
    """1x1 to `channels`, 3x3, 1x1 to four times as many, and the sum with the shortcut."""
    shortcut = x
    if strides != 1 or x.shape[-1] != 4 * channels:
        shortcut = conv_norm(x, 4 * channels, 1, f"{name}_shortcut", strides=strides)
    y = conv_norm(x, channels, 1, name, "1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = conv_norm(y, channels, 3, name, "2", strides=strides)
    y = layers.ReLU(name=f"{name}_relu2")(y)
    y = conv_norm(y, 4 * channels, 1, name, "3")
    y = layers.Add(name=f"{name}_add")([shortcut, y])
    return layers.ReLU(name=f"{name}_relu3")(y)


def _block(x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
    """relu(x + bn(conv(relu(bn(conv(x)))))), with a convolution on the shortcut where the shape
    changes.
    """
    shortcut = x
    if strides != 1 or x.shape[-1] != channels:
        shortcut = conv_norm(x, channels, 1, f"{name}_shortcut", strides=strides)
    y = conv_norm(x, channels, 3, name, "1", strides=strides)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = conv_norm(y, channels, 3, name, "2")
    y = layers.Add(name=f"{name}_add")([shortcut, y])
    return layers.ReLU(name=f"{name}_relu2")(y)
