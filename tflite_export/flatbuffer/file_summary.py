"""What is in a `.tflite` file: tensors, grids, operators, sizes. Needs no TensorFlow."""

from collections.abc import Mapping
import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export import text_tables
from tflite_export.flatbuffer import metadata as metadata_lib
from tflite_export.flatbuffer import reader

_BITS = {
    "int4": 4,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "float16": 16,
    "int32": 32,
    "float32": 32,
    "int64": 64,
    "float64": 64,
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """A file in figures.

    Attributes:
      path: The file.
      bytes: Its size.
      model: Its records.
      weight_bits: Bits that the largest code of each constant int8 or int4 tensor with a scale
        needs, by tensor name.
      constant_bytes: Bytes of all constants as stored.
      arena_bytes: Largest sum of activations alive at once: no runtime can do with less.
      macs: Multiplications and additions of one run, in convolutions and fully connected layers.
      metadata: Class labels and input normalisation, if the file holds them.
    """

    path: str
    bytes: int
    model: deployed_lib.DeployedModel
    weight_bits: Mapping[str, int]
    constant_bytes: int
    arena_bytes: int
    macs: int
    metadata: metadata_lib.Metadata = metadata_lib.Metadata()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: figures, tensors without their contents, operators."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "constant_bytes": self.constant_bytes,
            "arena_bytes": self.arena_bytes,
            "macs": self.macs,
            "inputs": list(self.model.inputs),
            "outputs": list(self.model.outputs),
            "metadata": dataclasses.asdict(self.metadata),
            "tensors": [self._tensor(tensor) for tensor in self.model.tensors.values()],
            "operators": [dataclasses.asdict(operator) for operator in self.model.operators],
        }

    def text(self) -> str:
        """Aligned tables for a terminal."""
        heading = (
            f"{self.model.name}: {self.path}, {self.bytes:,} bytes ({self.constant_bytes:,} of"
            f" constants), {self.macs:,} multiply-adds, activations need {self.arena_bytes:,} bytes"
        )
        rows = [self._row(index, operator) for index, operator in enumerate(self.model.operators)]
        header = (
            "#",
            "operator",
            "output",
            "shape",
            "type",
            "scale",
            "zero point",
            "weights",
            "bits",
        )
        borders = [
            f"{what} {name}: {tensor.dtype}{list(tensor.shape)}{_grid(tensor)}"
            for what, names in (("input", self.model.inputs), ("output", self.model.outputs))
            for name, tensor in ((n, self.model.tensors[n]) for n in names)
        ]
        borders += self._metadata()
        return "\n".join([heading, *borders, "", text_tables.table(header, rows)])

    def _metadata(self) -> list[str]:
        lines = []
        if self.metadata.normalization is not None:
            mean, std = self.metadata.normalization
            lines.append(f"normalization: x = (pixel - {list(mean)}) / {list(std)}")
        if self.metadata.labels is not None:
            lines.append(f"labels: {', '.join(self.metadata.labels)}")
        return lines

    def _row(self, index: int, operator: deployed_lib.Operator) -> tuple[str, ...]:
        weights = [n for n in operator.inputs if n in self.weight_bits]
        return (
            f"{index}",
            operator.kind,
            *_output(self.model.tensors[operator.outputs[0]] if operator.outputs else None),
            ", ".join(
                f"{self.model.tensors[n].dtype}{list(self.model.tensors[n].shape)}" for n in weights
            ),
            ", ".join(str(self.weight_bits[n]) for n in weights),
        )

    def _tensor(self, tensor: deployed_lib.Tensor) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "scale": None if tensor.scale is None else np.asarray(tensor.scale).tolist(),
            "zero_point": np.asarray(tensor.zero_point).tolist(),
            "axis": tensor.axis,
            "constant": tensor.data is not None,
            **(
                {"weight_bits": self.weight_bits[tensor.name]}
                if tensor.name in self.weight_bits
                else {}
            ),
        }


@dataclasses.dataclass(frozen=True)
class OperatorCost:
    """What one operator of a file costs.

    Attributes:
      tensor: The tensor that it writes.
      kind: The operator.
      weight_bits: Bits that the largest of its weights' codes needs; None without weights.
      weight_bytes: Bytes of its weights as stored.
      macs: Multiplications and additions of one run.
    """

    tensor: str
    kind: str
    weight_bits: int | None
    weight_bytes: int
    macs: int


def operator_costs(model: deployed_lib.DeployedModel) -> tuple[OperatorCost, ...]:
    """The cost of each operator that writes a tensor, in execution order."""
    return tuple(
        OperatorCost(
            tensor=operator.outputs[0],
            kind=operator.kind,
            weight_bits=max((_code_bits(tensor) for tensor in weights), default=None),
            weight_bytes=sum(size_of(tensor) for tensor in weights),
            macs=_macs(operator, model.tensors),
        )
        for operator in model.operators
        if operator.outputs
        for weights in [_weights(operator, model.tensors)]
    )


def _weights(
    operator: deployed_lib.Operator, tensors: Mapping[str, deployed_lib.Tensor]
) -> list[deployed_lib.Tensor]:
    named = [tensors[name] for name in operator.inputs if name]
    return [t for t in named if _has_codes(t)]


def _has_codes(tensor: deployed_lib.Tensor) -> bool:
    """Whether it is a constant of weight codes."""
    return tensor.data is not None and tensor.dtype in ("int8", "int4") and tensor.scale is not None


def inspect_file(path: str | os.PathLike[str]) -> Summary:
    """Reads a file.

    Raises:
      ValueError: If it is no whole `.tflite` file.
      OSError: If it cannot be read.
    """
    model = reader.read(path)
    constants = [tensor for tensor in model.tensors.values() if tensor.data is not None]
    return Summary(
        path=os.fspath(path),
        bytes=pathlib.Path(path).stat().st_size,
        model=model,
        weight_bits={t.name: _code_bits(t) for t in constants if _has_codes(t)},
        constant_bytes=sum(size_of(tensor) for tensor in constants),
        arena_bytes=arena_bytes(model),
        macs=sum(_macs(operator, model.tensors) for operator in model.operators),
        metadata=metadata_lib.read_metadata(path),
    )


def size_of(tensor: deployed_lib.Tensor) -> int:
    """Bytes of a tensor's contents as stored; 0 for a type of unknown width."""
    return -(-math.prod(tensor.shape) * _BITS.get(tensor.dtype, 0) // 8)


def arena_bytes(model: deployed_lib.DeployedModel) -> int:
    """Largest sum, over the operators, of the activations that are alive while it runs."""
    steps = range(len(model.operators))
    born = dict.fromkeys(model.inputs, 0)
    dies = {name: steps.stop for name in model.outputs}
    for step, operator in enumerate(model.operators):
        born |= {name: step for name in operator.outputs}
        dies |= {name: max(step, dies.get(name, 0)) for name in operator.inputs}
    alive = [
        sum(
            size_of(model.tensors[name])
            for name, start in born.items()
            if start <= step <= dies.get(name, start)
        )
        for step in steps
    ]
    return max(alive, default=0)


def _code_bits(tensor: deployed_lib.Tensor) -> int:
    """Width of the narrowest symmetric, narrow-range grid that holds the codes.

    A factor that all codes share is divided out first. A worked number: codes -112, 48 and 112
    share 16, so they are -7, 3 and 7, which need 4 bits.
    """
    codes = np.abs(tensor.constant.astype(np.int16))
    largest = int(codes.max(initial=0)) // max(1, int(np.gcd.reduce(codes, axis=None)))
    return max(2, largest.bit_length() + 1)


def _macs(operator: deployed_lib.Operator, tensors: Mapping[str, deployed_lib.Tensor]) -> int:
    """Outputs times the length of each one's sum."""
    summed = {
        "CONV_2D": slice(1, None),
        "FULLY_CONNECTED": slice(-1, None),
        "DEPTHWISE_CONV_2D": slice(1, 3),
    }
    weights = operator.inputs[1:2]
    if operator.kind not in summed or not any(weights) or not operator.outputs:
        return 0
    # By slices: weights that the graph computes may have an unknown rank, which has no sizes.
    length = math.prod(tensors[weights[0]].shape[summed[operator.kind]])
    return math.prod(tensors[operator.outputs[0]].shape) * length


def _output(tensor: deployed_lib.Tensor | None) -> tuple[str, ...]:
    """Name, shape, type, scale and zero point; blanks for an operator without an output."""
    if tensor is None:
        return ("",) * 5
    scale = "" if tensor.scale is None else f"{float(np.max(tensor.scale)):.6g}"
    shape = "x".join(map(str, tensor.shape))
    return tensor.name, shape, tensor.dtype, scale, "" if not scale else f"{tensor.zero_point}"


def _grid(tensor: deployed_lib.Tensor) -> str:
    if tensor.scale is None or np.size(tensor.scale) != 1:
        return ""
    sign = "-" if tensor.zero_point >= 0 else "+"
    return (
        f", value = {float(np.reshape(tensor.scale, ())):.6g} * (code {sign}"
        f" {abs(tensor.zero_point)})"
    )
