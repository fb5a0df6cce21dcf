"""The blocks that the networks here share. Their layers' names end in what they are."""

import tensorflow as tf

from tf_fpq.keras_compat import keras

layers = keras.layers

# Sides from which on the published networks are those for ImageNet. Chosen here, between the 32
# pixels of CIFAR and the 224 of ImageNet; 64 are those of its small version.
_LARGE = 65


def halved(input_shape: tuple[int, ...]) -> int:
    """The stride, 2 or 1, of layers that halve images of ImageNet's size but not CIFAR's."""
    return 2 if min(input_shape[:2]) >= _LARGE else 1


def conv_norm(
    x: tf.Tensor,
    channels: int,
    size: int,
    name: str,
    number: str = "",
    *,
    strides: int = 1,
    groups: int = 1,
) -> tf.Tensor:
    """A convolution and its batch norm, `<name>_conv<number>` and `<name>_bn<number>`."""
    x = layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv{number}",
    )(x)
    return _norm(x, name, number)


def relu6(x: tf.Tensor, name: str) -> tf.Tensor:
    """A ReLU that ends at 6, `<name>_relu`."""
    return layers.ReLU(max_value=6.0, name=f"{name}_relu")(x)


def depthwise_relu6(x: tf.Tensor, strides: int, name: str) -> tf.Tensor:
    """A 3x3 depthwise convolution, its batch norm and a ReLU6."""
    x = layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return relu6(_norm(x, name), name)


def inverted_residual(
    x: tf.Tensor, expansion: int, channels: int, strides: int, name: str
) -> tf.Tensor:
    """MobileNetV2's block: expansion by 1x1, depthwise 3x3, linear projection by 1x1.

    Its input is added where the shape allows.
    """
    y = x
    if expansion != 1:
        y = conv_norm(y, expansion * x.shape[-1], 1, f"{name}_expand")
        y = relu6(y, f"{name}_expand")
    y = depthwise_relu6(y, strides, f"{name}_depthwise")
    y = conv_norm(y, channels, 1, f"{name}_project")
    same = strides == 1 and x.shape[-1] == channels
    return layers.Add(name=f"{name}_add")([x, y]) if same else y


def classifier(image: tf.Tensor, x: tf.Tensor, num_classes: int, name: str) -> keras.Model:
    """The network from `image` to `x`, with means over places and a Dense layer on top."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(num_classes, name="logits")(x), name=name)


def _norm(x: tf.Tensor, name: str, number: str = "") -> tf.Tensor:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn{number}")(x)
