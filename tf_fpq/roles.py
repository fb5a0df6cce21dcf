"""What each Keras layer means to an integer graph.

It is one table, read by quantization, the pre-flight and the exporter.

Whether a tensor needs a grid of its own follows from the roles of the layers around it: a
convolution, its batch norm and its ReLU are one integer operator with one output grid; a max
pooling keeps its input's grid; a sum has a new one.

Layer classes of one's own join the table by `tf_fpq.register_layer`.
"""

from collections.abc import Callable
import dataclasses
import enum
import math

import tensorflow_model_optimization as tfmot

from tf_fpq.keras_compat import keras

layers = keras.layers


class Role(enum.Enum):
    """What a layer does to the grid of the tensor that passes through it.

    A layer class of your own is given one:

        tf_fpq.register_layer(Absolute, role=tf_fpq.Role.FUNCTION)
    """

    KERNEL = "has a kernel: its weights are quantized; affine layers and a clamp may join"
    AFFINE = (
        "multiplies and adds per channel: joins a kernel or affine operator before it, else is one"
        " of its own"
    )
    CLAMP = (
        "ReLU and its like: joins a kernel, affine or arithmetic operator before it, else is an"
        " operator of its own"
    )
    ARITHMETIC = "adds or multiplies tensors: output on a new grid; a clamp may join"
    FUNCTION = "any other operator whose output has a new grid"
    FIXED_GRID = "output on the grid that TFLite prescribes (softmax, sigmoid, tanh)"
    SAME_GRID = "moves or selects values: output on the input's grid, exactly"
    AVERAGE = "averages and rounds: output on the input's grid, quantized again"
    JOINT_GRID = "moves or selects values of several tensors, which share one grid with the output"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The weights of a layer that are quantized: attribute name and channel axes.

        role = tf_fpq.Role.KERNEL
        tf_fpq.register_layer(MyConv, role=role, kernel=tf_fpq.Kernel("kernel", (3,)))

    Without axes there is one grid for all.
    """

    name: str
    axis: tuple[int, ...] | None


KERNELS: dict[type, Kernel] = {
    layers.Conv2D: Kernel("kernel", (3,)),
    layers.DepthwiseConv2D: Kernel("depthwise_kernel", (2, 3)),
    layers.Conv2DTranspose: Kernel("kernel", (2,)),
    layers.Dense: Kernel("kernel", (1,)),
}

# Weights that are quantized to 8 bits without a rule.
MINOR_KERNELS: dict[type, Kernel] = {layers.PReLU: Kernel("alpha", None)}

ROLES: dict[type, Role] = {
    **dict.fromkeys(KERNELS, Role.KERNEL),
    **dict.fromkeys(
        (layers.BatchNormalization, layers.Rescaling, layers.Normalization), Role.AFFINE
    ),
    layers.ReLU: Role.CLAMP,
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply), Role.ARITHMETIC),
    **dict.fromkeys((layers.GlobalAveragePooling2D, layers.LeakyReLU, layers.PReLU), Role.FUNCTION),
    layers.Softmax: Role.FIXED_GRID,
    layers.AveragePooling2D: Role.AVERAGE,
    layers.Resizing: Role.AVERAGE,
    **dict.fromkeys(
        (
            layers.MaxPooling2D,
            layers.GlobalMaxPooling2D,
            layers.Flatten,
            layers.Reshape,
            layers.Permute,
            layers.ZeroPadding2D,
            layers.Cropping2D,
            layers.UpSampling2D,
            layers.Dropout,
            layers.SpatialDropout2D,
            layers.GaussianNoise,
            layers.GaussianDropout,
            layers.ActivityRegularization,
        ),
        Role.SAME_GRID,
    ),
    **dict.fromkeys((layers.Concatenate, layers.Maximum, layers.Minimum), Role.JOINT_GRID),
}

# Layers outside Keras' public names, by class name: keras.applications' own, and those that a layer
# normalization is written in (`conversion/normalization.py`).
ROLES_BY_NAME: dict[str, Role] = {
    "LayerScale": Role.AFFINE,
    "Division": Role.AFFINE,
    "ChannelMean": Role.FUNCTION,
    "ReciprocalRoot": Role.FUNCTION,
    "ChannelAffine": Role.AFFINE,
}

# Roles of `Activation` layers by the name of their function.
ACTIVATION_ROLES: dict[str, Role] = {
    **dict.fromkeys(("linear", "relu", "relu6"), Role.CLAMP),
    **dict.fromkeys(("softmax", "sigmoid", "tanh"), Role.FIXED_GRID),
    "gelu": Role.FUNCTION,
}

# Step size and zero point (of codes 0..255) of the outputs whose grid TFLite prescribes.
FIXED_GRIDS: dict[str, tuple[float, int]] = {
    "softmax": (1 / 256, 0),
    "sigmoid": (1 / 256, 0),
    "tanh": (1 / 128, 128),
}

# Layers whose outputs are the features that FPQ perturbs and distills.
CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
    layers.Conv2DTranspose,
)


def kernel(layer: keras.layers.Layer) -> Kernel | None:
    """The weights of `layer` that are quantized, if it has any."""
    return KERNELS.get(type(layer)) or MINOR_KERNELS.get(type(layer))


def inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself, or the layer inside a quantization wrapper."""
    return layer.layer if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper) else layer


def is_convolution(layer: keras.layers.Layer) -> bool:
    """Whether `layer`, wrapped or not, is a convolution (of any kind, but not Dense)."""
    return isinstance(inner(layer), CONVOLUTIONS)


def activation_name(layer: keras.layers.Layer) -> str:
    """Name of the activation function that `layer` applies: "linear", "relu", "softmax", ..."""
    if isinstance(layer, layers.ReLU):
        return "relu"
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    return "linear" if function is None else getattr(function, "__name__", repr(function))


def clamp(layer: keras.layers.Layer) -> tuple[float, float] | None:
    """Lowest and highest output of a clamping activation.

    None if `layer` applies another function.
    """
    if isinstance(layer, layers.ReLU):
        if layer.negative_slope or layer.threshold:
            return None
        return 0.0, math.inf if layer.max_value is None else float(layer.max_value)
    bounds = {"linear": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
    return bounds.get(activation_name(layer))


def role(layer: keras.layers.Layer) -> Role | None:
    """The role of `layer`, or None if it has none."""
    if type(layer) is layers.Activation:
        return ACTIVATION_ROLES.get(activation_name(layer))
    if type(layer) is layers.UpSampling2D and layer.interpolation != "nearest":
        return Role.AVERAGE
    return ROLES.get(type(layer)) or ROLES_BY_NAME.get(type(layer).__name__)


def _channels_last(layer: keras.layers.Layer) -> str | None:
    if getattr(layer, "data_format", "channels_last") == "channels_last":
        return None
    return "data_format='channels_first'; TFLite is channels_last"


def _kernel_problem(layer: keras.layers.Layer) -> str | None:
    if clamp(layer) is None:
        return f"activation {activation_name(layer)!r} has no integer form here"
    return _channels_last(layer)


def _relu_problem(layer: keras.layers.Layer) -> str | None:
    return (
        "threshold and negative_slope have no integer form together"
        if clamp(layer) is None
        else None
    )


def _transposed_problem(layer: keras.layers.Layer) -> str | None:
    if tuple(layer.dilation_rate) != (1, 1):
        return (
            f"dilation_rate={tuple(layer.dilation_rate)} of a transposed convolution has no TFLite"
            " operator"
        )
    return _kernel_problem(layer)


def _last_axis(layer: keras.layers.Layer) -> str | None:
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    rank = len(layer.get_input_shape_at(0))
    if all(axis % rank == rank - 1 for axis in axes):
        return None
    return f"axis={axes}; TFLite computes along the last axis"


def _resizing_problem(layer: keras.layers.Layer) -> str | None:
    if layer.interpolation not in ("bilinear", "nearest"):
        return f"interpolation={layer.interpolation!r}; TFLite has bilinear and nearest"
    if getattr(layer, "crop_to_aspect_ratio", False):
        return "crop_to_aspect_ratio=True has no TFLite operator"
    return _channels_last(layer)


_PROBLEMS: dict[type, Callable[[keras.layers.Layer], str | None]] = {
    **dict.fromkeys(KERNELS, _kernel_problem),
    layers.Conv2DTranspose: _transposed_problem,
    layers.ReLU: _relu_problem,
    **dict.fromkeys((layers.Softmax, layers.BatchNormalization, layers.Normalization), _last_axis),
    layers.Resizing: _resizing_problem,
    layers.UpSampling2D: _resizing_problem,
}


def _unknown(kind: str, is_keras: bool) -> str:
    """What to do about a layer class without a role."""
    if kind == "Lambda":
        return (
            "a Lambda holds code that cannot be read; write it as Keras layers or operators, or as"
            " a layer class of your own"
        )
    if is_keras:
        return (
            f"layer class {kind} is not supported; replace it, or quantize the model without the"
            " part around it"
        )
    return (
        f"layer class {kind} is not supported. Two ways out: write it in Keras layers,"
        f" tf_fpq.register_layer({kind}, rewrite=...); or give it a config,"
        f" QuantRule(layer_type={kind}, config=...), and to export it an operator,"
        f" tflite_export.register_operator({kind}, ...)"
    )


def problem(layer: keras.layers.Layer) -> str | None:
    """Why `layer` cannot become an integer operator, or None if it can."""
    if role(layer) is None:
        kind = type(layer).__name__
        if type(layer) is layers.Activation:
            return (
                f"activation {activation_name(layer)!r} is not supported; use one of"
                f" {', '.join(ACTIVATION_ROLES)}"
            )
        if hasattr(layer, "symbol"):
            return (
                f"operator {layer.symbol!r} is not supported; use Keras layers, or put it in a"
                " layer class of your own"
            )
        return _unknown(kind, is_keras=type(layer).__module__.startswith("tf_keras."))
    check = _PROBLEMS.get(type(layer), _channels_last)
    return check(layer)
