"""Operators that only move codes.

They are RESHAPE, PAD, CONCATENATION, cropping, transposing and their like.

They round nothing, so both kernel sets agree by construction; each demands one scale and zero point
on both sides.
"""

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base
from tflite_export.kernels import rounding as rounding_lib


def reshape(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """RESHAPE, EXPAND_DIMS and SQUEEZE: the output record's shape behind the batch axis.

    Inputs `(x, shape int32)` with -1 for the batch; `(x, axis int32)` for EXPAND_DIMS; `(x,)` for
    SQUEEZE with option squeeze_dims=(). The batch axis stays first.
    """
    del rounding
    output = _moved(operator, tensors)
    return lambda codes: tf.reshape(codes, (-1, *output.shape[1:]))


def pad(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """PAD: inputs `(x, paddings int32 [rank, 2])`. No options.

    It pads with the zero point, which is the value 0.
    """
    del rounding
    output = _moved(operator, tensors)
    paddings = base.constant(operator, tensors, 1, "paddings").tolist()
    return lambda codes: tf.pad(codes, paddings, constant_values=output.zero_point)


def slice_(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """SLICE: inputs `(x, begin int32 [rank], size int32 [rank])`. No options.

    The batch begins at 0 with size -1.
    """
    del rounding
    _moved(operator, tensors)
    begin, size = (
        base.constant(operator, tensors, i, what).tolist()
        for i, what in ((1, "begin"), (2, "size"))
    )
    if begin[0] != 0 or size[0] != -1:
        base.fail(
            operator,
            f"must take the whole batch: begin 0, size -1. Received: {begin[0]}, {size[0]}.",
        )
    return lambda codes: tf.slice(codes, begin, size)


def strided_slice(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """STRIDED_SLICE: inputs `(x, begin, end, strides)`, int32 [rank].

    Bit 0 of both masks takes the whole batch.

    Options: begin_mask=0, end_mask=0, ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0, as in
    TensorFlow.
    """
    del rounding
    _moved(operator, tensors)
    opts = base.options(operator)
    begin, end, strides = (
        base.constant(operator, tensors, i, what)
        for i, what in ((1, "begin"), (2, "end"), (3, "strides"))
    )
    if not opts["begin_mask"] & opts["end_mask"] & 1 or strides[0] != 1:
        base.fail(
            operator,
            f"must take the whole batch: bit 0 of begin_mask and end_mask. Received: {opts}.",
        )
    return lambda codes: tf.strided_slice(codes, begin, end, strides, **opts)


def transpose(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """TRANSPOSE: inputs `(x, permutation int32 [rank])`; the batch stays first. No options."""
    del rounding
    _moved(operator, tensors)
    permutation = base.constant(operator, tensors, 1, "permutation").tolist()
    if permutation[0] != 0:
        base.fail(operator, f"must leave the batch first. Received: permutation={permutation}.")
    return lambda codes: tf.transpose(codes, permutation)


def split(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """SPLIT: inputs `(axis int32 scalar or [1], x)` into equal parts. Options: num_splits."""
    del rounding
    x = base.input_tensors(operator, tensors)[1]
    base.require_same_grid(operator, x, *(tensors[name] for name in operator.outputs))
    axis = int(np.reshape(base.constant(operator, tensors, 0, "axis"), ()))
    if axis % len(x.shape) == 0:
        base.fail(operator, f"cannot split the batch. Received: axis={axis}.")
    return lambda codes: tuple(tf.split(codes, base.options(operator)["num_splits"], axis))


def space_to_depth(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """SPACE_TO_DEPTH and DEPTH_TO_SPACE. Options: block_size=2."""
    del rounding
    _moved(operator, tensors)
    block = base.options(operator)["block_size"]
    move = tf.nn.space_to_depth if operator.kind == "SPACE_TO_DEPTH" else tf.nn.depth_to_space
    return lambda codes: move(codes, block)


def concatenation(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """CONCATENATION of any number of inputs, constants included.

    Options: axis=-1 (never the batch), activation="NONE".
    """
    del rounding
    opts = base.options(operator)
    inputs = base.input_tensors(operator, tensors)
    base.require_same_grid(operator, base.output_tensor(operator, tensors), *inputs)
    if opts["activation"] != "NONE" or opts["axis"] % len(inputs[0].shape) == 0:
        base.fail(
            operator,
            f"takes activation='NONE' and an axis that is not the batch. Received: {opts}.",
        )

    def run(*codes: tf.Tensor) -> tf.Tensor:
        batch = tf.shape(codes[0])[0]
        given = iter(codes)
        parts = [next(given) if t.data is None else _per_image(t, batch) for t in inputs]
        return tf.concat(parts, opts["axis"])

    return run


def _moved(operator: deployed.Operator, tensors: base.Tensors) -> deployed.Tensor:
    """The output's record, after the check that input and output share one grid."""
    output = base.output_tensor(operator, tensors)
    base.require_same_grid(operator, base.input_tensors(operator, tensors)[0], output)
    return output


def _per_image(tensor: deployed.Tensor, batch: tf.Tensor) -> tf.Tensor:
    return tf.repeat(tf.constant(np.asarray(tensor.data, np.int32)), batch, axis=0)
