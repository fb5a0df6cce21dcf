"""Real Keras layers in place of the operator layers that Keras records.

Keras records those for `x + y`, `tf.nn.relu(x)` and the like.

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

from collections.abc import Callable
import inspect
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.conversion import operator_shapes
from tf_fpq.conversion.substitutes import (
    Division,
    Rule,
    Substitute,
    constant_like,
    grows,
    is_float,
    is_symbolic,
    merge,
    scaling,
)
from tf_fpq.keras_compat import keras


def is_operator(layer: keras.layers.Layer) -> bool:
    """Whether Keras recorded `layer` for an operator on symbolic tensors."""
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
        not _is_plain(tensor) for tensor in tf.nest.flatten([args, kwargs]) if is_symbolic(tensor)
    ):
        return None
    bound = inspect.signature(layer.function).bind(*args, **kwargs)
    bound.apply_defaults()
    return rule(dict(bound.arguments), shape)


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is dense, of known rank and without a mask.

    Integer tensors may only be shapes, which the rules check themselves.
    """
    return (
        tensor.shape.rank is not None
        and getattr(tensor, "_keras_mask", None) is None
        and tf.is_tensor(tensor)
    )


def _operands(arguments: dict[str, Any]) -> tuple[Any, Any]:
    left, right, *_ = arguments.values()
    return left, right


def _arithmetic(class_name: str, line: Callable[[np.ndarray, bool], dict[str, Any]]) -> Rule:
    """Two tensors merge; one and a constant are the line `scale * x + offset`.

    Args:
      class_name: The merging layer.
      line: `line(constant, on_left)` gives `scale` and `offset`; `on_left` says that the constant
        is the left operand.
    """

    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        left, right = _operands(arguments)
        if is_symbolic(left) and is_symbolic(right):
            return merge(class_name, [left, right])
        tensor, other = (left, right) if is_symbolic(left) else (right, left)
        constant = constant_like(other, tensor)
        return (
            None
            if constant is None
            else scaling(tensor, shape, **line(np.asarray(constant), tensor is right))
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
    divisor = constant_like(right, left) if is_float(left) else None
    if divisor is None or not np.all(divisor) or grows(left, shape):
        return None
    return Substitute(Division, {"divisor": divisor, "dtype": left.dtype.name}, left)


def _extremum(
    class_name: str,
) -> Rule:
    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        left, right = _operands(arguments)
        if is_symbolic(left) and is_symbolic(right):
            return merge(class_name, [left, right])
        tensor, constant = (left, right) if is_symbolic(left) else (right, left)
        is_relu = (
            class_name == "Maximum" and is_float(tensor) and constant_like(constant, tensor) == 0.0
        )
        return Substitute(keras.layers.ReLU, {}, tensor) if is_relu else None

    return rule


def _unary(class_name: str, **config: Any) -> Rule:
    """The rule of a function of one tensor.

    Further arguments must have the value that `config` cannot express otherwise.
    """

    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        tensor, *_ = arguments.values()
        usual = arguments.get("beta", 1.0) == 1.0 and arguments.get("approximate", False) is False
        return (
            Substitute(getattr(keras.layers, class_name), config, tensor)
            if usual and is_float(tensor)
            else None
        )

    return rule


def _leaky_relu(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, alpha = arguments["features"], arguments["alpha"]
    usual = is_float(tensor) and isinstance(alpha, (int, float))
    return Substitute(keras.layers.LeakyReLU, {"alpha": float(alpha)}, tensor) if usual else None


def _softmax(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    tensor, axis = arguments["logits"], arguments["axis"]
    axis = -1 if axis is None else axis
    usual = is_float(tensor) and isinstance(axis, int) and axis % shape.rank != 0
    return Substitute(keras.layers.Softmax, {"axis": axis}, tensor) if usual else None


def _clip(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, low, high, *_ = arguments.values()
    usual = (
        is_float(tensor)
        and constant_like(low, tensor) == 0.0
        and isinstance(constant_like(high, tensor), float)
    )
    return (
        Substitute(keras.layers.ReLU, {"max_value": constant_like(high, tensor)}, tensor)
        if usual
        else None
    )


def _add_n(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    inputs = arguments["inputs"]
    # Longer sums: the kernel's order of additions is its own affair.
    return (
        merge("Add", list(inputs))
        if isinstance(inputs, (list, tuple)) and len(inputs) == 2
        else None
    )


def _square(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    del shape
    tensor, *_ = arguments.values()
    return merge("Multiply", [tensor, tensor])


def _negate(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    tensor, *_ = arguments.values()
    return scaling(tensor, shape, scale=-1.0)


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
    "concat": operator_shapes.concat,
    "reshape": operator_shapes.reshape,
    "expand_dims": operator_shapes.at_batch,
    "compat.v1.squeeze": operator_shapes.at_batch,
    "squeeze": operator_shapes.at_batch,
    "transpose": operator_shapes.transpose,
    "compat.v1.transpose": operator_shapes.transpose,
    "math.reduce_mean": operator_shapes.global_pooling("GlobalAveragePooling"),
    "math.reduce_max": operator_shapes.global_pooling("GlobalMaxPooling"),
    "pad": operator_shapes.pad,
    "compat.v1.pad": operator_shapes.pad,
}
