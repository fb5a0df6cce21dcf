"""What the functions of Keras 3 (`keras.ops`, `keras.activations`) compute, in TensorFlow.

Keras 3 stores a function applied to a symbolic tensor as an `Operation` node, named by its class.
The TensorFlow functions here act on tf_keras' symbolic tensors, which records them as operator
layers; `flatten` makes real layers of them.
"""

from collections.abc import Callable, Mapping
import itertools
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras


class UnsupportedError(ValueError):
    """A part of a Keras 3 model that has no counterpart in tf_keras.

    The message says which and why.
    """


def hard_sigmoid(x: Any) -> Any:
    """Keras 3's hard sigmoid, `relu6(x + 3) / 6`; Keras 2's is `clip(0.2 x + 0.5, 0, 1)`."""
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


def hard_silu(x: Any) -> Any:
    """`x * relu6(x + 3) / 6`, written as tf_keras' MobileNetV3 does.

    Both then become the same layers.
    """
    return x * hard_sigmoid(x)


# Activations that tf_keras computes under this name.
SAME_ACTIVATIONS: Mapping[str, str] = {
    name: name
    for name in (
        "linear",
        "relu",
        "relu6",
        "sigmoid",
        "tanh",
        "elu",
        "selu",
        "softplus",
        "softsign",
        "exponential",
    )
} | {"gelu": "gelu", "mish": "mish", "softmax": "softmax", "silu": "swish", "swish": "swish"}

# Activations that tf_keras lacks, or means otherwise.
OTHER_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "hard_tanh": lambda x: tf.clip_by_value(x, -1.0, 1.0),
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.2),
    "log_sigmoid": tf.math.log_sigmoid,
    "log_softmax": tf.nn.log_softmax,
    "squareplus": lambda x: (x + tf.sqrt(tf.square(x) + 4.0)) * 0.5,
    "tanh_shrink": lambda x: x - tf.tanh(x),
}


def _elu(op: Any, x: Any) -> Any:
    if op.alpha != 1.0:
        raise UnsupportedError(f"alpha={op.alpha}")
    return tf.nn.elu(x)


def _relu(op: Any, x: Any) -> Any:
    return keras.activations.relu(
        x, alpha=op.negative_slope, max_value=op.max_value, threshold=op.threshold
    )


def _extremum(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(op: Any, x: Any) -> Any:
        if op.initial is not None:
            raise UnsupportedError(f"initial={op.initial}")
        return function(x, axis=op.axis, keepdims=op.keepdims)

    return apply


def _pad(op: Any, x: Any, constant_values: Any = None) -> Any:
    return tf.pad(x, op.pad_width, mode=op.mode.upper(), constant_values=constant_values or 0)


def _matmul(op: Any, x1: Any, x2: Any) -> Any:
    if len(x1.shape) < 2 or len(x2.shape) < 2:
        raise UnsupportedError("matmul of vectors")
    return tf.linalg.matmul(x1, x2)


def _split(op: Any, x: Any) -> Any:
    where, size = op.indices_or_sections, x.shape[op.axis]
    if isinstance(where, int):
        return tf.split(x, where, op.axis)
    edges = [0, *where, size]
    return tf.split(x, [end - start for start, end in itertools.pairwise(edges)], op.axis)


def _flip(op: Any, x: Any) -> Any:
    axes = range(len(x.shape)) if op.axis is None else tf.nest.flatten(op.axis)
    return tf.reverse(x, [axis % len(x.shape) for axis in axes])


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda op, x1, x2: x1 + x2,
    "Subtract": lambda op, x1, x2: x1 - x2,
    "Multiply": lambda op, x1, x2: x1 * x2,
    "Divide": lambda op, x1, x2: x1 / x2,
    "TrueDivide": lambda op, x1, x2: x1 / x2,
    "Power": lambda op, x1, x2: x1**x2,
    "Maximum": lambda op, x1, x2: tf.maximum(x1, x2),
    "Minimum": lambda op, x1, x2: tf.minimum(x1, x2),
    "Negative": lambda op, x: -x,
    "Absolute": lambda op, x: tf.abs(x),
    "Abs": lambda op, x: tf.abs(x),
    "Square": lambda op, x: tf.square(x),
    "Sqrt": lambda op, x: tf.sqrt(x),
    "Rsqrt": lambda op, x: tf.math.rsqrt(x),
    "Reciprocal": lambda op, x: 1.0 / x,
    "Exp": lambda op, x: tf.exp(x),
    "Log": lambda op, x: tf.math.log(x),
    "Clip": lambda op, x: tf.clip_by_value(x, op.x_min, op.x_max),
    "Mean": lambda op, x: tf.reduce_mean(x, axis=op.axis, keepdims=op.keepdims),
    "Sum": lambda op, x: tf.reduce_sum(x, axis=op.axis, keepdims=op.keepdims),
    "Max": _extremum(tf.reduce_max),
    "Min": _extremum(tf.reduce_min),
    "Any": lambda op, x: tf.reduce_any(tf.cast(x, "bool"), axis=op.axis, keepdims=op.keepdims),
    "All": lambda op, x: tf.reduce_all(tf.cast(x, "bool"), axis=op.axis, keepdims=op.keepdims),
    "Equal": lambda op, x1, x2: tf.equal(x1, x2),
    "NotEqual": lambda op, x1, x2: tf.not_equal(x1, x2),
    "LogicalAnd": lambda op, x1, x2: tf.logical_and(x1, x2),
    "LogicalOr": lambda op, x1, x2: tf.logical_or(x1, x2),
    "LogicalNot": lambda op, x: tf.logical_not(x),
    "Matmul": _matmul,
    "Cast": lambda op, x: tf.cast(x, op.dtype),
    "StopGradient": lambda op, variable: tf.stop_gradient(variable),
    "Reshape": lambda op, x: tf.reshape(x, [-1 if size is None else size for size in op.newshape]),
    "Transpose": lambda op, x: tf.transpose(x, op.axes),
    "ExpandDims": lambda op, x: tf.expand_dims(x, op.axis),
    "Squeeze": lambda op, x: tf.squeeze(x, op.axis),
    "Concatenate": lambda op, xs: tf.concat(xs, axis=op.axis),
    "Stack": lambda op, x: tf.stack(x, axis=op.axis),
    "Split": _split,
    "Flip": _flip,
    "Tile": lambda op, x: tf.tile(x, op.repeats),
    "Pad": _pad,
    "GetItem": lambda op, x, key: x[key],
    "Relu": lambda op, x: tf.nn.relu(x),
    "Relu6": lambda op, x: tf.nn.relu6(x),
    "ReLU": _relu,
    "LeakyRelu": lambda op, x: tf.nn.leaky_relu(x, op.negative_slope),
    "Sigmoid": lambda op, x: tf.sigmoid(x),
    "Tanh": lambda op, x: tf.tanh(x),
    "Silu": lambda op, x: tf.nn.silu(x),
    "Gelu": lambda op, x: tf.nn.gelu(x, approximate=op.approximate),
    "Elu": _elu,
    "Selu": lambda op, x: tf.nn.selu(x),
    "Softplus": lambda op, x: tf.math.softplus(x),
    "Softsign": lambda op, x: tf.nn.softsign(x),
    "HardSigmoid": lambda op, x: hard_sigmoid(x),
    "HardSilu": lambda op, x: hard_silu(x),
    "Softmax": lambda op, x: tf.nn.softmax(x, axis=op.axis),
    "LogSoftmax": lambda op, x: tf.nn.log_softmax(x, axis=op.axis),
}


def check(operation: Any) -> None:
    """Raises `UnsupportedError` if `operation` is not in the table."""
    if type(operation).__name__ not in _OPERATIONS:
        raise UnsupportedError("no counterpart is known")


def apply(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Computes a Keras 3 `Operation` on tensors of tf_keras."""
    return _OPERATIONS[type(operation).__name__](operation, *args, **kwargs)
