"""Operators that move values or reduce over space, as layers: rules of `operator_layers`."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.conversion.substitutes import Rule, Substitute, is_float, is_symbolic
from tf_fpq.keras_compat import keras


def concat(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """`tf.concat`: a Concatenate, unless it works on the batch axis."""
    values, axis = arguments["values"], arguments["axis"]
    usual = (
        isinstance(values, (list, tuple))
        and len(values) > 1
        and isinstance(axis, int)
        and axis % shape.rank != 0
    )
    if not usual or not is_float(*values) or len({tensor.dtype for tensor in values}) != 1:
        return None
    return Substitute(keras.layers.Concatenate, {"axis": axis}, list(values))


def reshape(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """The rule of operators that reshape, for Keras' Reshape, which keeps the batch axis.

    An operator keeps it too if its other dimensions hold as many values as the input's.
    """
    tensor, *_ = arguments.values()
    before, after = tensor.shape.as_list()[1:], shape.as_list()[1:]
    unknown = None in before or None in after
    if unknown or not is_float(tensor) or shape.rank == 0 or math.prod(before) != math.prod(after):
        return None
    return Substitute(keras.layers.Reshape, {"target_shape": tuple(after)}, tensor)


def at_batch(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """`tf.expand_dims` and `tf.squeeze`: reshapes, unless they work on the batch axis."""
    tensor, axis, *_ = arguments.values()
    rank = max(tensor.shape.rank, shape.rank)
    axes = [] if axis is None else tf.nest.flatten(axis)
    if not axes or any(not isinstance(number, int) or number % rank == 0 for number in axes):
        return None
    return reshape(arguments, shape)


def transpose(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """`tf.transpose`: a Permute, unless it moves the batch axis."""
    del shape
    tensor = next(iter(arguments.values()))
    order: Any = arguments.get("perm")
    plain = (
        is_float(tensor)
        and isinstance(order, (list, tuple))
        and all(isinstance(axis, int) for axis in order)
    )
    return (
        Substitute(keras.layers.Permute, {"dims": tuple(order[1:])}, tensor)
        if plain and order[0] == 0
        else None
    )


def global_pooling(
    class_name: str,
) -> Rule:
    """The rule for a mean or maximum over all of space."""

    def rule(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
        del shape
        tensor, axis = arguments["input_tensor"], arguments["axis"]
        rank = tensor.shape.rank
        if axis is None or rank not in (3, 4, 5) or not is_float(tensor):
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


def pad(arguments: dict[str, Any], shape: tf.TensorShape) -> Substitute | None:
    """`tf.pad` with zeros in height and width: a ZeroPadding2D."""
    del shape
    tensor, paddings, mode = (
        arguments["tensor"],
        arguments["paddings"],
        arguments["mode"],
    )
    fill = arguments.get("constant_values", 0)
    symbolic = any(is_symbolic(value) for value in tf.nest.flatten([paddings, fill]))
    if (
        symbolic
        or mode.upper() != "CONSTANT"
        or fill not in (0, None)
        or tensor.shape.rank != 4
        or not is_float(tensor)
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
