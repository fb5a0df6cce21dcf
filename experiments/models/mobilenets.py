"""MobileNetV1 and MobileNetV2.

A. G. Howard et al., "MobileNets", arXiv 1704.04861, table 1; M. Sandler et al., "MobileNetV2", CVPR
2018, table 2.

Note: the papers' networks read 224 pixels and halve them five times. Of images of up to 64 pixels
the stem, and of MobileNetV2 the second stage too, keep the resolution, as is usual for CIFAR.
"""

from experiments.models import blocks
from tf_fpq.keras_compat import keras

# Channels as multiples of the stem's, and strides: the rows of table 1.
_V1 = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))
# The columns t, c / 8, n, s of table 2.
_V2 = (
    *((1, 2, 1, 1), (6, 3, 2, 1), (6, 4, 3, 2), (6, 8, 4, 2)),
    *((6, 12, 3, 1), (6, 20, 3, 2), (6, 40, 1, 1)),
)


def mobilenet_v1(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """MobileNetV1, 3.2 million parameters at width 32 and 10 classes."""
    image = keras.Input(input_shape, name="image")
    strides = blocks.halved(input_shape)
    x = blocks.relu6(blocks.conv_norm(image, width, 3, "stem", strides=strides), "stem")
    for block, (multiple, strides) in enumerate(_V1, 1):
        x = blocks.depthwise_relu6(x, strides, f"block{block}_depthwise")
        name = f"block{block}_pointwise"
        x = blocks.relu6(blocks.conv_norm(x, multiple * width, 1, name), name)
    return blocks.classifier(image, x, num_classes, "mobilenet_v1")


def mobilenet_v2(input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> keras.Model:
    """MobileNetV2, 2.2 million parameters at width 32 and 10 classes."""
    image = keras.Input(input_shape, name="image")
    halved = blocks.halved(input_shape)
    x = blocks.relu6(blocks.conv_norm(image, width, 3, "stem", strides=halved), "stem")
    block = 0
    for stage, (expansion, eighths, repeats, first_strides) in enumerate(_V2):
        first_strides = halved if stage == 1 else first_strides
        for repeat in range(repeats):
            block += 1
            strides = 1 if repeat else first_strides
            x = blocks.inverted_residual(
                x, expansion, eighths * width // 4, strides, f"block{block}"
            )
    # The head is as wide in narrower networks, as in the paper.
    x = blocks.relu6(blocks.conv_norm(x, max(1280, 40 * width), 1, "head"), "head")
    return blocks.classifier(image, x, num_classes, "mobilenet_v2")
