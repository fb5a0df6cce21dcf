"""The types a network shows to the outside.

They are int8 as trained, or uint8 or float32 by QUANTIZE and DEQUANTIZE operators at the border.
"""

import dataclasses
from typing import Literal

import numpy as np

from tflite_export import deployed as deployed_lib

IoType = Literal["int8", "uint8", "float32"]
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8", "float32")
# A uint8 grid with the same scale: codes and zero point 128 higher. The int8 code 118 on the zero
# point -10 is the uint8 code 246 on 118, and both are 128 steps.
UINT8_OFFSET = 128


def with_io(
    deployed: deployed_lib.DeployedModel, input_type: IoType = "int8", output_type: IoType = "int8"
) -> deployed_lib.DeployedModel:
    """The same network with other types at its border.

    Every int8 input `x` becomes an input `x_float32` or `x_uint8` and a QUANTIZE operator that
    writes `x`; every int8 output `y` feeds a DEQUANTIZE operator that writes `y_float32`, or a
    QUANTIZE operator that writes `y_uint8`. Inner tensors keep their names. The uint8 border has
    the same scale with the zero point 128 higher, so it changes no value.

    Args:
      deployed: A network with int8 borders.
      input_type: "int8" (unchanged), "uint8" or "float32".
      output_type: Likewise.

    Raises:
      ValueError: If a type is not one of these, or a border tensor is not int8.
    """
    for argument, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in IO_TYPES:
            raise ValueError(
                f"{argument} must be one of {IO_TYPES}. Received: {argument}={value!r}."
            )
    tensors = dict(deployed.tensors)
    before, after, inputs, outputs = [], [], list(deployed.inputs), list(deployed.outputs)
    if input_type != "int8":
        inputs = [_border(tensors, name, input_type) for name in deployed.inputs]
        pairs = zip(inputs, deployed.inputs, strict=True)
        before = [deployed_lib.Operator("QUANTIZE", (outer,), (inner,)) for outer, inner in pairs]
    if output_type != "int8":
        outputs = [_border(tensors, name, output_type) for name in deployed.outputs]
        kind = "DEQUANTIZE" if output_type == "float32" else "QUANTIZE"
        pairs = zip(deployed.outputs, outputs, strict=True)
        after = [deployed_lib.Operator(kind, (inner,), (outer,)) for inner, outer in pairs]
    return dataclasses.replace(
        deployed,
        tensors=tensors,
        operators=(*before, *deployed.operators, *after),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _border(tensors: dict[str, deployed_lib.Tensor], name: str, dtype: str) -> str:
    """Adds the border tensor of `name` and returns its name."""
    inner = tensors[name]
    if inner.dtype != "int8" or inner.scale is None or np.size(inner.scale) != 1:
        raise ValueError(
            f"Border tensor {name!r} must be int8 with one scale. Received: dtype={inner.dtype!r}."
        )
    outer_name = f"{name}_{dtype}"
    if outer_name in tensors:
        raise ValueError(f"The model already has a tensor {outer_name!r}.")
    outer = deployed_lib.Tensor(outer_name, inner.shape, dtype)
    if dtype != "float32":
        zero_point = inner.one_zero_point + UINT8_OFFSET
        outer = dataclasses.replace(outer, scale=inner.scale, zero_point=zero_point)
    tensors[outer_name] = outer
    return outer_name
