"""Operator options: their names, their defaults, and their form in the TFLite schema.

The names are those of `Operator.options`.

One table, `OPTIONS`, is read by the kernels (defaults), the writer (records to schema) and the
reader (schema to records). Pairs are written `(height, width)`; enumerations by their TFLite names,
e.g. `padding="SAME"`, `activation="RELU6"`.
"""

from collections.abc import Mapping
import re
from typing import Any

from ai_edge_litert import schema_py_generated as schema

_CONVOLUTION = {"strides": (1, 1), "dilations": (1, 1), "padding": "SAME", "activation": "NONE"}
_POOL = {"filter": (2, 2), "strides": (2, 2), "padding": "VALID", "activation": "NONE"}
_RESIZE = {"align_corners": False, "half_pixel_centers": False}

# kind -> (options class of the schema or None, option names with their defaults)
OPTIONS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "CONV_2D": ("Conv2DOptions", _CONVOLUTION),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", {**_CONVOLUTION, "depth_multiplier": 1}),
    "TRANSPOSE_CONV": (
        "TransposeConvOptions",
        {"strides": (1, 1), "padding": "SAME", "activation": "NONE"},
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", {"activation": "NONE", "keep_num_dims": False}),
    "ADD": ("AddOptions", {"activation": "NONE"}),
    "SUB": ("SubOptions", {"activation": "NONE"}),
    "MUL": ("MulOptions", {"activation": "NONE"}),
    "MAXIMUM": ("MaximumMinimumOptions", {}),
    "MINIMUM": ("MaximumMinimumOptions", {}),
    "MEAN": ("ReducerOptions", {"keep_dims": False}),
    "SUM": ("ReducerOptions", {"keep_dims": False}),
    "REDUCE_MAX": ("ReducerOptions", {"keep_dims": False}),
    "REDUCE_MIN": ("ReducerOptions", {"keep_dims": False}),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "RESHAPE": ("ReshapeOptions", {}),
    "PAD": ("PadOptions", {}),
    "CONCATENATION": ("ConcatenationOptions", {"axis": -1, "activation": "NONE"}),
    "SOFTMAX": ("SoftmaxOptions", {"beta": 1.0}),
    "RELU": (None, {}),
    "RELU6": (None, {}),
    "RELU_N1_TO_1": (None, {}),
    "RELU_0_TO_1": (None, {}),
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": 0.2}),
    "PRELU": (None, {}),
    "HARD_SWISH": ("HardSwishOptions", {}),
    "LOGISTIC": (None, {}),
    "TANH": (None, {}),
    "GELU": ("GeluOptions", {"approximate": False}),
    "RSQRT": (None, {}),
    "QUANTIZE": ("QuantizeOptions", {}),
    "DEQUANTIZE": ("DequantizeOptions", {}),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", _RESIZE),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", _RESIZE),
    "SLICE": ("SliceOptions", {}),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        {
            "begin_mask": 0,
            "end_mask": 0,
            "ellipsis_mask": 0,
            "new_axis_mask": 0,
            "shrink_axis_mask": 0,
        },
    ),
    "TRANSPOSE": ("TransposeOptions", {}),
    "EXPAND_DIMS": ("ExpandDimsOptions", {}),
    "SQUEEZE": ("SqueezeOptions", {"squeeze_dims": ()}),
    "SPLIT": ("SplitOptions", {"num_splits": 1}),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", {"block_size": 2}),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", {"block_size": 2}),
}

_PAIRS = {
    "strides": ("strideH", "strideW"),
    "dilations": ("dilationHFactor", "dilationWFactor"),
    "filter": ("filterHeight", "filterWidth"),
}
_ENUMS = {
    "padding": ("padding", schema.Padding),
    "activation": ("fusedActivationFunction", schema.ActivationFunctionType),
}


def options_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an operator, defaults filled in.

    Args:
      kind: TFLite operator name.
      options: Options that were given; an unknown kind takes any.

    Raises:
      ValueError: If an option is not one of the kind's.
    """
    if kind not in OPTIONS:
        return dict(options)
    defaults = OPTIONS[kind][1]
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(
            f"{kind} has no option {unknown}; it takes {sorted(defaults)}. Received:"
            f" options={dict(options)}."
        )
    return {**defaults, **options}


def encode(kind: str, options: Mapping[str, Any]) -> tuple[int, Any]:
    """The schema's form of an operator's options.

    It is the union type's number and the options object, or 0 and None.
    """
    name = OPTIONS[kind][0]
    if name is None:
        return 0, None
    encoded = getattr(schema, name + "T")()
    for option, value in options_of(kind, options).items():
        if option in _PAIRS:
            for field, item in zip(_PAIRS[option], value, strict=True):
                setattr(encoded, field, int(item))
        elif option in _ENUMS:
            field, enum = _ENUMS[option]
            setattr(encoded, field, _enum_value(kind, option, enum, value))
        elif isinstance(value, tuple):
            setattr(encoded, _camel(option), [int(item) for item in value])
        else:
            setattr(encoded, _camel(option), value)
    return getattr(schema.BuiltinOptions, name), encoded


def decode(kind: str, encoded: Any) -> dict[str, Any]:
    """The options of an operator read from a file.

    A kind that is not in `OPTIONS` has all fields under their schema names.
    """
    if encoded is None:
        return dict(OPTIONS[kind][1]) if kind in OPTIONS else {}
    if kind not in OPTIONS:
        return {_snake(field): _plain(value) for field, value in vars(encoded).items()}
    decoded: dict[str, Any] = {}
    for option in OPTIONS[kind][1]:
        if option in _PAIRS:
            decoded[option] = tuple(int(getattr(encoded, field)) for field in _PAIRS[option])
        elif option in _ENUMS:
            field, enum = _ENUMS[option]
            decoded[option] = enum_name(enum, getattr(encoded, field))
        else:
            decoded[option] = _plain(getattr(encoded, _camel(option)))
    return decoded


def enum_name(enum: type, value: int) -> str:
    """Name of a schema enumeration's value.

    It is the number as text when this schema does not know it.
    """
    for name, number in vars(enum).items():
        if number == value and not name.startswith("_"):
            return name
    return str(value)


def _enum_value(kind: str, option: str, enum: type, name: str) -> int:
    value = getattr(enum, name, None)
    if value is None:
        known = sorted(key for key in vars(enum) if not key.startswith("_"))
        raise ValueError(f"{kind}: {option} must be one of {known}. Received: {option}={name!r}.")
    return value


def _plain(value: Any) -> Any:
    """A schema value as a plain one that compares.

    Arrays and lists become tuples, an absent vector an empty one.
    """
    if value is None:
        return ()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
