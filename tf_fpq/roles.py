"""What each Keras layer means to an integer graph: one table, read by quantization, the pre-flight and the exporter.

Whether a tensor needs a grid of its own follows from the roles of the layers around it: a convolution, its batch norm and
its ReLU are one integer operator with one output grid; a max pooling keeps its input's grid; a sum has a new one.
"""

import dataclasses
import enum
from collections.abc import Callable

from tf_fpq.keras_compat import keras

layers = keras.layers


class Role(enum.Enum):
    """What a layer does to the grid of the tensor that passes through it."""

    KERNEL = "has a kernel: weights are quantized, starts an operator that a batch norm and an activation may join"
    BATCH_NORM = "joins the kernel operator before it"
    ACTIVATION = "joins the operator before it if it is a kernel or a sum, else an operator of its own"
    ARITHMETIC = "an operator whose output has a new grid and which an activation may join"
    REDUCTION = "an operator whose output has a new grid"
    SAME_GRID = "moves or selects values: output on the input's grid, exactly"
    AVERAGE = "averages and rounds: output on the input's grid, quantized again"
    FIXED_GRID = "softmax: output on the grid that TFLite prescribes"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The weights of a layer that are quantized: attribute name and channel axes."""

    name: str
    axis: tuple[int, ...]


KERNELS: dict[type, Kernel] = {
    layers.Conv2D: Kernel("kernel", (3,)),
    layers.DepthwiseConv2D: Kernel("depthwise_kernel", (2, 3)),
    layers.Dense: Kernel("kernel", (1,)),
}

ROLES: dict[type, Role] = {
    **dict.fromkeys(KERNELS, Role.KERNEL),
    layers.BatchNormalization: Role.BATCH_NORM,
    layers.ReLU: Role.ACTIVATION,
    layers.Activation: Role.ACTIVATION,
    layers.Add: Role.ARITHMETIC,
    layers.GlobalAveragePooling2D: Role.REDUCTION,
    layers.AveragePooling2D: Role.AVERAGE,
    layers.MaxPooling2D: Role.SAME_GRID,
    layers.Flatten: Role.SAME_GRID,
    layers.Reshape: Role.SAME_GRID,
    layers.ZeroPadding2D: Role.SAME_GRID,
    layers.Dropout: Role.SAME_GRID,
    layers.Softmax: Role.FIXED_GRID,
}

# Layers whose outputs are the features that FPQ perturbs and distills.
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)


def inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself, or the layer inside a quantization wrapper."""
    return layer.layer if isinstance(layer, keras.layers.Wrapper) else layer


def is_convolution(layer: keras.layers.Layer) -> bool:
    """Whether `layer`, wrapped or not, is a convolution (of any kind, but not Dense)."""
    return isinstance(inner(layer), CONVOLUTIONS)


def activation_name(layer: keras.layers.Layer) -> str:
    """Name of the activation function that `layer` applies: "linear", "relu", "relu6", ..."""
    if isinstance(layer, layers.ReLU):
        bounded = layer.max_value is not None
        if layer.negative_slope or layer.threshold or (bounded and float(layer.max_value) != 6.0):
            return "relu with arguments"
        return "relu6" if bounded else "relu"
    function = getattr(layer, "activation", None)
    return "linear" if function is None else getattr(function, "__name__", repr(function))


FUSABLE_ACTIVATIONS = ("linear", "relu", "relu6")


def _activation_problem(layer: keras.layers.Layer) -> str | None:
    name = activation_name(layer)
    return None if name in FUSABLE_ACTIVATIONS else f"activation {name!r} has no integer form here"


def _kernel_problem(layer: keras.layers.Layer) -> str | None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "data_format='channels_first'; TFLite is channels_last"
    if getattr(layer, "groups", 1) != 1:
        return f"groups={layer.groups} is not supported"
    return _activation_problem(layer)


def _pooling_problem(layer: keras.layers.Layer) -> str | None:
    return None if layer.data_format == "channels_last" else "data_format='channels_first'; TFLite is channels_last"


def _softmax_problem(layer: keras.layers.Layer) -> str | None:
    return None if layer.axis in (-1,) else f"axis={layer.axis}; TFLite's softmax runs over the last axis"


_PROBLEMS: dict[type, Callable[[keras.layers.Layer], str | None]] = {
    **dict.fromkeys(KERNELS, _kernel_problem),
    layers.ReLU: _activation_problem,
    layers.Activation: _activation_problem,
    layers.AveragePooling2D: _pooling_problem,
    layers.MaxPooling2D: _pooling_problem,
    layers.GlobalAveragePooling2D: _pooling_problem,
    layers.Softmax: _softmax_problem,
}


def role(layer: keras.layers.Layer) -> Role | None:
    """The role of `layer`, or None if its class has none."""
    if type(layer) is layers.Activation and activation_name(layer) == "softmax":
        return Role.FIXED_GRID
    return ROLES.get(type(layer))


def problem(layer: keras.layers.Layer) -> str | None:
    """Why `layer` cannot become an integer operator, or None if it can."""
    found = role(layer)
    if found is None:
        return f"layer class {type(layer).__name__} is not supported"
    if found is Role.FIXED_GRID and type(layer) is layers.Activation:
        return None
    check = _PROBLEMS.get(type(layer))
    return check(layer) if check else None
