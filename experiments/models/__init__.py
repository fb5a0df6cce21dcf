"""The networks of the experiments, by name. All are functional tf_keras models that end in
`logits`, without softmax.
"""

from collections.abc import Callable, Sequence

from experiments.models import mobilenet_v2_tiny, mobilenets, regnet, resnet
from tf_fpq.keras_compat import keras

# For a CPU.
SMALL: dict[str, Callable[..., keras.Model]] = {
    "resnet8": resnet.resnet8,
    "resnet20": resnet.resnet20,
    "mobilenet_v2_tiny": mobilenet_v2_tiny.mobilenet_v2_tiny,
}

# The networks of the papers' tables. Of images of up to 64 pixels they keep more of the resolution.
PUBLISHED: dict[str, Callable[..., keras.Model]] = {
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "mobilenet_v1": mobilenets.mobilenet_v1,
    "mobilenet_v2": mobilenets.mobilenet_v2,
    "regnet_x_200mf": regnet.regnet_x_200mf,
}

BUILDERS = {**SMALL, **PUBLISHED}


def build(name: str, input_shape: Sequence[int], num_classes: int, width: int = 16) -> keras.Model:
    """Returns an untrained network.

    Args:
      name: One of `BUILDERS`.
      input_shape: `(height, width, channels)` of an image.
      num_classes: Number of logits.
      width: Channels of the first stage; the others follow from it.

    Raises:
      ValueError: If there is no network of that name, or a size is not positive.
    """
    if name not in BUILDERS:
        raise ValueError(f"model must be one of {', '.join(BUILDERS)}. Received: model={name!r}.")
    if width < 1 or num_classes < 1:
        raise ValueError(
            f"width and num_classes must be positive. Received: width={width},"
            f" num_classes={num_classes}."
        )
    return BUILDERS[name](tuple(input_shape), num_classes, width=width)
