"""A small MobileNetV2: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, table 2.

Seven inverted residual blocks (expansion by a 1x1 convolution, depthwise 3x3, linear projection by
a 1x1 convolution, residual where the shape allows), ReLU6, for images of 8 to 32 pixels: the stem
keeps the resolution and two blocks halve it.
"""

from experiments.models import blocks
from tf_fpq.keras_compat import keras

# Expansion factor, channels as a multiple of width / 2, number of blocks, stride of the first: the
# columns t, c, n, s of the paper's table.
_STAGES = ((1, 1, 1, 1), (4, 2, 2, 1), (4, 3, 2, 2), (4, 4, 2, 2))


def mobilenet_v2_tiny(
    input_shape: tuple[int, ...], num_classes: int, width: int = 16
) -> keras.Model:
    """A MobileNetV2 of 23 layers with weights, 39,000 parameters at width 16."""
    image = keras.Input(input_shape, name="image")
    x = blocks.relu6(blocks.conv_norm(image, width, 3, "stem"), "stem")
    block = 0
    for expansion, multiple, repeats, first_strides in _STAGES:
        for repeat in range(repeats):
            block += 1
            strides = first_strides if repeat == 0 else 1
            x = blocks.inverted_residual(
                x, expansion, max(1, multiple * width // 2), strides, f"block{block}"
            )
    x = blocks.relu6(blocks.conv_norm(x, 8 * width, 1, "head"), "head")
    return blocks.classifier(image, x, num_classes, "mobilenet_v2_tiny")
