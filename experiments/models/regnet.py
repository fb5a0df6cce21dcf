"""RegNetX-200MF.

I. Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, arXiv 2003.13678, figure 15: X
blocks with groups of 8 channels.

Note: the paper's network reads 224 pixels and halves them five times; of images of up to 64 pixels
stem and first two stages keep the resolution.
"""

import tensorflow as tf

from experiments.models import blocks
from tf_fpq.keras_compat import keras

layers = keras.layers

_GROUP = 8
# Blocks, channels in groups of 8 at the paper's stem of 32 channels, stride of the first block.
_STAGES = ((1, 3, 1), (1, 7, 1), (4, 19, 2), (7, 46, 2))


def regnet_x_200mf(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """RegNetX-200MF, 2.3 million parameters at width 32 (its stem's channels) and 10 classes."""
    image = keras.Input(input_shape, name="image")
    halved = blocks.halved(input_shape)
    x = _relu(blocks.conv_norm(image, width, 3, "stem", strides=halved), "stem")
    for stage, (repeats, groups, first_strides) in enumerate(_STAGES, 1):
        channels = _GROUP * max(1, groups * width // 32)
        for block in range(1, repeats + 1):
            strides = max(first_strides, halved) if block == 1 else 1
            x = _block(x, channels, strides, f"stage{stage}_block{block}")
    return blocks.classifier(image, x, num_classes, "regnet_x_200mf")


def _block(x: tf.Tensor, channels: int, strides: int, name: str) -> tf.Tensor:
    shortcut = x
    if strides != 1 or x.shape[-1] != channels:
        shortcut = blocks.conv_norm(x, channels, 1, f"{name}_shortcut", strides=strides)
    y = _relu(blocks.conv_norm(x, channels, 1, f"{name}_1"), f"{name}_1")
    groups = channels // _GROUP
    y = blocks.conv_norm(y, channels, 3, f"{name}_2", strides=strides, groups=groups)
    y = _relu(y, f"{name}_2")
    y = blocks.conv_norm(y, channels, 1, f"{name}_3")
    return _relu(layers.Add(name=f"{name}_add")([shortcut, y]), name)


def _relu(x: tf.Tensor, name: str) -> tf.Tensor:
    return layers.ReLU(name=f"{name}_relu")(x)
