"""The deployed model: a network as the phone sees it, in plain frozen records.

Everything the exporter knows about a network is here: integer codes, scales, zero points and a list
of operators in execution order. The records import neither TensorFlow nor Keras. One and the same
`DeployedModel` is

*   built from a trained student (`lowering/builder.py`),
*   executed as the integer twin (`twin/integer_twin.py`),
*   written to a `.tflite` file (`flatbuffer/writer.py`),
*   read back out of a `.tflite` file (`flatbuffer/reader.py`),

so that "trained integers are exported integers" is a comparison of two records.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import numpy as np

# Operators that LiteRT runs with packed INT4 weights, and their largest code.
INT4_KINDS = ("CONV_2D", "FULLY_CONNECTED")
INT4_LIMIT = 7
WeightType = Literal["int8", "int4"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a deployed model.

    A quantized value is `scale * (code - zero_point)`.

    Attributes:
      name: Unique name in the model.
      shape: Shape with the batch dimension written as 1. Weights in TFLite's layout: CONV_2D `[out,
        height, width, in]`, DEPTHWISE_CONV_2D `[1, height, width, out]`, FULLY_CONNECTED `[out,
        in]`.
      dtype: "int8", "uint8", "int4", "int32" or "float32".
      scale: float32 array of shape `[]` (per-tensor) or `[channels]` (per-channel); None for a
        tensor that is not quantized.
      zero_point: Zero point of all channels (0 for per-channel weights, as TFLite demands). In
        files of others an int64 array, one per channel, where they differ.
      axis: Quantized dimension of a per-channel scale, else None.
      data: Constant contents as an array (int8 for "int4"), or None for an activation.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray | None = None
    zero_point: int | np.ndarray = 0
    axis: int | None = None
    data: np.ndarray | None = None

    @property
    def one_scale(self) -> np.float32:
        """The scale of a per-tensor quantized tensor.

        Raises:
          ValueError: If it has none, or one per channel.
        """
        if self.scale is None or np.size(self.scale) != 1:
            raise ValueError(
                f"Tensor {self.name!r} must have one scale. Received: scale={self.scale}."
            )
        return np.float32(np.reshape(self.scale, ()))

    @property
    def one_zero_point(self) -> int:
        """The zero point of all channels.

        Raises:
          ValueError: If the channels differ.
        """
        if isinstance(self.zero_point, np.ndarray):
            raise ValueError(
                f"Tensor {self.name!r} must have one zero point. Received:"
                f" zero_point={self.zero_point}."
            )
        return self.zero_point

    @property
    def constant(self) -> np.ndarray:
        """The contents of a constant.

        Raises:
          ValueError: If the tensor is an activation.
        """
        if self.data is None:
            raise ValueError(f"Tensor {self.name!r} must be constant. Received: data=None.")
        return self.data


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One operator.

    `kind` is TFLite's builtin operator name, such as "CONV_2D"; see `kernels/` for each kind's
    options. Among the inputs "" stands for an optional one that is absent. `version` is the one a
    file was written with, and 0 in a model that is not from a file.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class DeployedModel:
    """A network: its tensors, its operators and its borders.

    Attributes:
      tensors: Tensors by name.
      operators: Operators in execution order.
      inputs: Tensor names of the graph's inputs.
      outputs: Tensor names of its outputs.
      name: Name of the network.
      input_keys: Names of the inputs in the signature, in their order; empty for those of the
        tensors.
      output_keys: Names of the outputs in the signature, likewise.
      fixed_batch: Whether the file promises the batch size 1; else its signature says -1, so that
        an interpreter can be resized.
    """

    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str = "main"
    input_keys: tuple[str, ...] = ()
    output_keys: tuple[str, ...] = ()
    fixed_batch: bool = False

    @property
    def signature(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of inputs and outputs as a signature shows them."""
        return self.input_keys or tuple(self.inputs), self.output_keys or tuple(self.outputs)
