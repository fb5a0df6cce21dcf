"""Real Keras layers in place of the operator layers that Keras records for `x + y`, `tf.nn.relu(x)`
and the like.

A functional model stores an operator on a symbolic tensor as a `TFOpLambda`: a layer without a
class of its own, which a quantizer can neither name nor configure. `substitute` answers with the
layer that computes the same bits, where there is one; the rest stays what it is.

| operators | layer |
|---|---|
| `x + y`, `x - y`, `x * y`, `tf.add_n`, `tf.square` | Add, Subtract, Multiply |
| `tf.maximum(x, y)`, `tf.minimum(x, y)` | Maximum, Minimum |
| `x + c`, `c - x`, `x * c`, `-x` with a constant c (scalar or broadcast) | Rescaling |
| `x / c` | Division, a Rescaling |
| relu, relu6, leaky_relu, `tf.maximum(x, 0)`, `tf.clip_by_value(x, 0, c)` | ReLU, LeakyReLU |
| sigmoid, tanh, silu, gelu, elu, selu, softplus, softsign, exp, softmax, identity | Activation,
Softmax |
| `tf.concat` | Concatenate |
| `tf.reshape`, `tf.squeeze`, `tf.expand_dims`, `tf.transpose` that leave the batch alone | Reshape,
Permute |
| `tf.reduce_mean`, `tf.reduce_max` over the space of a channels-last tensor | GlobalAveragePooling,
GlobalMaxPooling |
| `tf.pad` with zeros in height and width | ZeroPadding2D |
"""

from collections.abc import Callable, Mapping
import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register


@dataclasses.dataclass(frozen=True)
class Substitute:
    """The layer that stands for an operator: class, arguments, and what it is called on (one tensor
    or a list).
    """

    layer_class: type[keras.layers.Layer]
    config: Mapping[str, Any]
    inputs: Any


Rule = Callable[[dict[str, Any], tf.TensorShape], Substitute | None]


@register
class Division(keras.layers.Rescaling):
    """`x / divisor`: a Rescaling by `1 / divisor` that rounds once, as TensorFlow's division does.

    To a quantizer it is a Rescaling: `scale` is `1 / divisor` and `offset` is 0. `x * (1 /
    divisor)` in float32 can be one unit in the last place off, which would break the bit equality
    of a flattened model.

    Args:
      divisor: A number, or a (nested) list of numbers that broadcasts to the input.
    """

    def __init__(self, divisor: Any, **kwargs: Any):
        super().__init__(scale=(1.0 / np.asarray(divisor)).tolist(), **kwargs)
        self.divisor = divisor

    def call(self, inputs: Any) -> Any:
        """Divides."""
        return tf.cast(inputs, self.compute_dtype) / tf.cast(self.divisor, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The divisor in place of the scale and offset that follow from it."""
        config = {**super().get_config(), "divisor": self.divisor}
        return {name: value for name, value in config.items() if name not in ("scale", "offset")}


def is_operator(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is one of the layers that Keras records for an operator on symbolic
    tensors.
    """
    return type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda") and type(
        layer
    ).__module__.startswith("tf_keras.")


def substitute(
    layer: keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tf.TensorShape,
) -> Substitute | None:
    """Finds the layer that computes what the operator `layer` computes, bit for bit.

    Args:
      layer: An operator layer (`is_operator`).
      args: Positional arguments of the call, symbolic tensors and constants.
      kwargs: Keyword arguments of the call.
      shape: Static shape of the call's output.

    Returns:
      The substitute, or None where the operator is unknown, has no exact counterpart (`tf.pow`),
      works on integers, on the batch axis or on a variable, or carries a mask (operators drop
      masks, layers pass them on).
    """
    rule = _RULES.get(layer.symbol or "")
    if rule is None or layer.symbol is None:
        return None
    if any(
        not _is_plain(tensor) for tensor in tf.nest.flatten([args, kwargs]) if _is_symbolic(tensor)
    ):
        return None
    bound = inspect.signature(layer.function).bind(*args, **kwargs)
    bound.apply_defaults()
    return rule(dict(bound.arguments), shape)


def _is_symbolic(value: Any) -> bool:
    return hasattr(value, "_keras_history")


def _is_plain(tensor: Any) -> bool:
    """Dense, of known rank and without a mask. Integer tensors may only be shapes, which the rules
    check themselves.
    """
    return (
        tensor.shape.rank is not None
        and getattr(tensor, "_keras_mask", None) is None
        and tf.is_tensor(tensor)
    )


def _is_float(*values: Any) -> bool:
    return all(_is_symbolic(value) and value.dtype.is_floating for value in values)


def _constant(value: Any, like: Any) -> Any:
    """`value` as nested lists of Python floats in the precision of `like`; None unless it is a
    numeric constant.
    """
    if _is_symbolic(value) or isinstance(value, (tf.Variable, str)) or value is None:
        return None
    return np.asarray(value).astype(like.dtype.as_numpy_dtype).astype(np.float64).tolist()


def _operands(arguments: dict[str, Any]) -> tuple[Any, Any]:
    left, right, *_ = arguments.values()
    return left, right


def _merge(class_name: str, inputs: list[Any]) -> Substitute | None:
    """A merging layer; they broadcast within one rank only, and so must the operator."""
    same = len({(tensor.shape.rank, tensor.dtype) for tensor in inputs}) == 1
    return (
        Substitute(getattr(keras.layers, class_name), {}, inputs)
        if same and _is_float(*inputs)
        else None
    )


def _scaling(
    tensor: Any, shape: tf.TensorShape, scale: Any = 1.0, offset: Any = 0.0
) -> Substitute | None:
    if not _is_float(tensor) or _grows(tensor, shape):
        return None
    line = {"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()}
    return Substitute(keras.layers.Rescaling, {**line, "dtype": tensor.dtype.name}, tensor)


def _grows(tensor: Any, shape: tf.TensorShape) -> bool:
    """Whether broadcasting to `shape` may copy `tensor`. `shape` may know less of the sizes, if a
    model is reused.
    """
    before, after = tensor.shape.as_list(), shape.as_list()
    return len(before) != len(after) or any(
        new not in (None, old) for old, new in zip(before, after, strict=True)
    )


def _arithmetic(class_name: str, line: Callable[[np.ndarray, bool], dict[str, Any]]) -> Rule:
    """Two tensors merge; one and a constant are the line `scale * x + offset`.

    Args:
      class_name: The merging layer.
      line: `line(constant, on_left)` gives `scale` and `offset`; `on_left` says that the constant
        is the left operand.
    """

    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        left, right = _operands(arguments)
        if _is_symbolic(left) and _is_symbolic(right):
            return _merge(class_name, [left, right])
        tensor, other = (left, right) if _is_symbolic(left) else (right, left)
        constant = _constant(other, tensor)
        return (
            None
            if constant is None
            else _scaling(tensor, shape, **line(np.asarray(constant), tensor is right))
        )

    return rule


_add = _arithmetic("Add", lambda constant, on_left: {"offset": constant})
_multiply = _arithmetic("Multiply", lambda constant, on_left: {"scale": constant})
_subtract = _arithmetic(
    "Subtract",
    lambda constant, on_left: (
        {"scale": -1.0, "offset": constant} if on_left else {"offset": -constant}
    ),
)


def _divide(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    left, right = _operands(arguments)
    divisor = _constant(right, left) if _is_float(left) else None
    if divisor is None or not np.all(divisor) or _grows(left, shape):
        return None
    return Substitute(Division, {"divisor": divisor, "dtype": left.dtype.name}, left)


def _extremum(
    class_name: str,
) -> Rule:
    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        left, right = _operands(arguments)
        if _is_symbolic(left) and _is_symbolic(right):
            return _merge(class_name, [left, right])
        tensor, constant = (left, right) if _is_symbolic(left) else (right, left)
        is_relu = (
            class_name == "Maximum" and _is_float(tensor) and _constant(constant, tensor) == 0.0
        )
        return Substitute(keras.layers.ReLU, {}, tensor) if is_relu else None

    return rule


def _unary(class_name: str, **config: Any) -> Rule:
    """A function of one tensor; further arguments must have the value that `config` cannot express
    otherwise.
    """

    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        tensor, *_ = arguments.values()
        usual = arguments.get("beta", 1.0) == 1.0 and arguments.get("approximate", False) is False
        return (
            Substitute(getattr(keras.layers, class_name), config, tensor)
            if usual and _is_float(tensor)
            else None
        )

    return rule


def _leaky_relu(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, alpha = arguments["features"], arguments["alpha"]
    usual = _is_float(tensor) and isinstance(alpha, (int, float))
    return Substitute(keras.layers.LeakyReLU, {"alpha": float(alpha)}, tensor) if usual else None


def _softmax(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    tensor, axis = arguments["logits"], arguments["axis"]
    axis = -1 if axis is None else axis
    usual = _is_float(tensor) and isinstance(axis, int) and axis % shape.rank != 0
    return Substitute(keras.layers.Softmax, {"axis": axis}, tensor) if usual else None


def _clip(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, low, high, *_ = arguments.values()
    usual = (
        _is_float(tensor)
        and _constant(low, tensor) == 0.0
        and isinstance(_constant(high, tensor), float)
    )
    return (
        Substitute(keras.layers.ReLU, {"max_value": _constant(high, tensor)}, tensor)
        if usual
        else None
    )


def _add_n(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    inputs = arguments["inputs"]
    # Longer sums: the kernel's order of additions is its own affair.
    return (
        _merge("Add", list(inputs))
        if isinstance(inputs, (list, tuple)) and len(inputs) == 2
        else None
    )


def _concat(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    values, axis = arguments["values"], arguments["axis"]
    usual = (
        isinstance(values, (list, tuple))
        and len(values) > 1
        and isinstance(axis, int)
        and axis % shape.rank != 0
    )
    if not usual or not _is_float(*values) or len({tensor.dtype for tensor in values}) != 1:
        return None
    return Substitute(keras.layers.Concatenate, {"axis": axis}, list(values))


def _reshape(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """Reshape keeps the batch axis; so does any operator whose other dimensions hold as many values
    as the input's.
    """
    tensor, *_ = arguments.values()
    before, after = tensor.shape.as_list()[1:], shape.as_list()[1:]
    unknown = None in before or None in after
    if unknown or not _is_float(tensor) or shape.rank == 0 or math.prod(before) != math.prod(after):
        return None
    return Substitute(keras.layers.Reshape, {"target_shape": tuple(after)}, tensor)


def _at_batch(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """`tf.expand_dims` and `tf.squeeze`: reshapes, unless they work on the batch axis."""
    tensor, axis, *_ = arguments.values()
    rank = max(tensor.shape.rank, shape.rank)
    axes = [] if axis is None else tf.nest.flatten(axis)
    if not axes or any(not isinstance(number, int) or number % rank == 0 for number in axes):
        return None
    return _reshape(arguments, shape)


def _transpose(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, order = next(iter(arguments.values())), arguments.get("perm")
    plain = (
        _is_float(tensor)
        and isinstance(order, (list, tuple))
        and all(isinstance(axis, int) for axis in order)
    )
    return (
        Substitute(keras.layers.Permute, {"dims": tuple(order[1:])}, tensor)
        if plain and order[0] == 0
        else None
    )


def _global_pooling(
    class_name: str,
) -> Rule:
    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        tensor, axis = arguments["input_tensor"], arguments["axis"]
        rank = tensor.shape.rank
        if axis is None or rank not in (3, 4, 5) or not _is_float(tensor):
            return None
        axes = tf.nest.flatten(axis)
        if any(not isinstance(number, int) for number in axes) or {n % rank for n in axes} != set(
            range(1, rank - 1)
        ):
            return None
        config = {
            "keepdims": bool(arguments["keepdims"]),
            "data_format": "channels_last",
        }
        return Substitute(getattr(keras.layers, f"{class_name}{rank - 2}D"), config, tensor)

    return rule


def _pad(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, paddings, mode = (
        arguments["tensor"],
        arguments["paddings"],
        arguments["mode"],
    )
    fill = arguments.get("constant_values", 0)
    symbolic = any(_is_symbolic(value) for value in tf.nest.flatten([paddings, fill]))
    if (
        symbolic
        or mode.upper() != "CONSTANT"
        or fill not in (0, None)
        or tensor.shape.rank != 4
        or not _is_float(tensor)
    ):
        return None
    batch, height, width, channels = np.asarray(paddings).tolist()
    if batch != [0, 0] or channels != [0, 0]:
        return None
    return Substitute(
        keras.layers.ZeroPadding2D,
        {"padding": (tuple(height), tuple(width)), "data_format": "channels_last"},
        tensor,
    )


def _square(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, *_ = arguments.values()
    return _merge("Multiply", [tensor, tensor])


def _negate(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    tensor, *_ = arguments.values()
    return _scaling(tensor, shape, scale=-1.0)


def _activation(
    name: str,
) -> Rule:
    return _unary("Activation", activation=name)


_RULES: dict[str, Rule] = {
    "__operators__.add": _add,
    "math.add": _add,
    "math.subtract": _subtract,
    "math.multiply": _multiply,
    "math.divide": _divide,
    "math.truediv": _divide,
    "math.negative": _negate,
    "math.square": _square,
    "math.add_n": _add_n,
    "math.maximum": _extremum("Maximum"),
    "math.minimum": _extremum("Minimum"),
    "clip_by_value": _clip,
    "nn.relu": _unary("ReLU"),
    "nn.relu6": _unary("ReLU", max_value=6.0),
    "nn.leaky_relu": _leaky_relu,
    "nn.softmax": _softmax,
    "nn.silu": _activation("swish"),
    "nn.gelu": _activation("gelu"),
    "nn.elu": _activation("elu"),
    "nn.selu": _activation("selu"),
    "nn.softsign": _activation("softsign"),
    "math.softplus": _activation("softplus"),
    "math.sigmoid": _activation("sigmoid"),
    "math.tanh": _activation("tanh"),
    "math.exp": _activation("exponential"),
    "identity": _activation("linear"),
    "concat": _concat,
    "reshape": _reshape,
    "expand_dims": _at_batch,
    "compat.v1.squeeze": _at_batch,
    "squeeze": _at_batch,
    "transpose": _transpose,
    "compat.v1.transpose": _transpose,
    "math.reduce_mean": _global_pooling("GlobalAveragePooling"),
    "math.reduce_max": _global_pooling("GlobalMaxPooling"),
    "pad": _pad,
    "compat.v1.pad": _pad,
}
