"""What the kernel modules share.

That is the kernel's type, checks of an operator's tensors, and requantization by rounding mode.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.flatbuffer import operator_options
from tflite_export.kernels import rounding as rounding_lib

# Codes of the operator's non-constant inputs, in order, batch first; returns the codes of its
# outputs.
Kernel = Callable[..., "tf.Tensor | tuple[tf.Tensor, ...]"]
Tensors = Mapping[str, deployed.Tensor]


def fail(operator: deployed.Operator, message: str) -> NoReturn:
    """Raises the ValueError of an operator that has no kernel, naming it by its output."""
    raise ValueError(f"{operator.kind} -> {operator.outputs[0]!r}: {message}")


def options(operator: deployed.Operator) -> dict[str, Any]:
    """The operator's options with defaults filled in."""
    return operator_options.options_of(operator.kind, operator.options)


def input_tensors(operator: deployed.Operator, tensors: Tensors) -> list[deployed.Tensor]:
    """Records of the operator's inputs."""
    return [tensors[name] for name in operator.inputs]


def output_tensor(operator: deployed.Operator, tensors: Tensors) -> deployed.Tensor:
    """Record of the operator's first output."""
    return tensors[operator.outputs[0]]


def constant(operator: deployed.Operator, tensors: Tensors, index: int, what: str) -> np.ndarray:
    """Contents of a constant input.

    Raises:
      ValueError: If the input is missing or not constant.
    """
    if index >= len(operator.inputs):
        fail(
            operator,
            f"needs a constant input {index} ({what}). Received: inputs={operator.inputs}.",
        )
    data = tensors[operator.inputs[index]].data
    if data is None:
        fail(
            operator, f"{what} must be constant. Received: {operator.inputs[index]!r} without data."
        )
    return data


def scalar_scale(operator: deployed.Operator, tensor: deployed.Tensor) -> np.float32:
    """The one scale of a per-tensor quantized tensor.

    Raises:
      ValueError: If it has none, or one per channel.
    """
    if tensor.scale is None or np.size(tensor.scale) != 1:
        fail(
            operator, f"tensor {tensor.name!r} must have one scale. Received: scale={tensor.scale}."
        )
    return tensor.one_scale


def require_same_grid(operator: deployed.Operator, *tensors: deployed.Tensor) -> None:
    """Checks that tensors share dtype, scale and zero point.

    Kernels that only move codes demand that.

    Raises:
      ValueError: Naming the first tensor that differs.
    """
    first = tensors[0]
    for other in tensors[1:]:
        same = other.dtype == first.dtype and other.zero_point == first.zero_point
        if first.scale is not None or other.scale is not None:
            same = same and scalar_scale(operator, other) == scalar_scale(operator, first)
        if not same:
            fail(
                operator,
                "needs one scale and zero point on both sides; requantize first. Received:"
                f" {first.name!r} ({first.dtype}, {first.scale}, {first.zero_point}) and"
                f" {other.name!r} ({other.dtype}, {other.scale}, {other.zero_point}).",
            )


def bounds(
    operator: deployed.Operator, tensors: Tensors, rounding: rounding_lib.Rounding
) -> tuple[int, int]:
    """Lowest and highest output code under the operator's fused activation."""
    output = output_tensor(operator, tensors)
    return rounding_lib.activation_bounds(
        options(operator).get("activation", "NONE"),
        scalar_scale(operator, output),
        output.one_zero_point,
        output.dtype,
        rounding,
    )


def operands(
    operator: deployed.Operator, tensors: Tensors, codes: tuple[tf.Tensor, ...]
) -> list[tf.Tensor]:
    """All inputs as int32 tensors: the given codes with the constants in their places."""
    given = iter(codes)
    return [
        next(given) if tensor.data is None else tf.constant(np.asarray(tensor.data, np.int32))
        for tensor in input_tensors(operator, tensors)
    ]
