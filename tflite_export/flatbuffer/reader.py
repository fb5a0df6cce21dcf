"""Reads a `.tflite` file back into the records of `deployed.py`, so that trained = exported is one
comparison of records.

Imports neither TensorFlow nor Keras. Any file is read: tensors of all types, operators of all kinds
(those without an entry in `operator_options` keep the schema's own option names). Only the first
subgraph is returned.
"""

import dataclasses
import os
import pathlib
from typing import Any

from ai_edge_litert import schema_py_generated as schema
import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import operator_options

FILE_IDENTIFIER = b"TFL3"
_NUMPY_TYPES = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}


def read(path: str | os.PathLike[str]) -> deployed_lib.DeployedModel:
    """Tensors, scales, zero points, axes, codes and operators of a `.tflite` file.

    Raises:
      OSError: If the file cannot be opened.
      ValueError: If it is not a whole TFLite model.
    """
    return from_bytes(pathlib.Path(path).read_bytes(), str(path))


def from_bytes(data: bytes, source: str = "<bytes>") -> deployed_lib.DeployedModel:
    """As `read`, from the file's bytes; `source` is its name in errors."""
    if len(data) < 8 or data[4:8] != FILE_IDENTIFIER:
        raise ValueError(
            f"{source} is not a TFLite file: identifier TFL3 expected. Received: {data[4:8]!r}."
        )
    try:
        return _model(schema.ModelT.InitFromPackedBuf(data, 0))
    except ValueError as error:
        raise ValueError(f"{source} is not a whole TFLite file: {error}") from error
    # A damaged flatbuffer leads the generated reader anywhere: wrong offsets, types, lengths.
    except Exception as error:
        raise ValueError(
            f"{source} is truncated or corrupt: {type(error).__name__}: {error}"
        ) from error


def differences(a: deployed_lib.DeployedModel, b: deployed_lib.DeployedModel) -> list[str]:
    """What differs between two models, one line each; empty if they are the same network.

    Compared are inputs, outputs, operators with all options, and of every tensor shape, type,
    scale, zero point, axis and contents, bit for bit.
    """
    found = [
        f"{field}: {getattr(a, field)} != {getattr(b, field)}"
        for field in ("name", "inputs", "outputs")
        if getattr(a, field) != getattr(b, field)
    ]
    for name in sorted(set(a.tensors) ^ set(b.tensors)):
        found.append(f"tensor {name!r} is in one model only")
    for name in [name for name in a.tensors if name in b.tensors]:
        found += _tensor_differences(a.tensors[name], b.tensors[name])
    if len(a.operators) != len(b.operators):
        found.append(f"{len(a.operators)} operators != {len(b.operators)} operators")
    for index, (left, right) in enumerate(zip(a.operators, b.operators, strict=False)):
        if _operator_key(left) != _operator_key(right):
            found.append(f"operator {index}: {_operator_key(left)} != {_operator_key(right)}")
    return found


def unpack_int4(packed: np.ndarray, count: int) -> np.ndarray:
    """int8 array of `count` codes from bytes that hold two int4 codes each, the first in the low
    half.
    """
    halves = np.stack([packed << 4, packed & 0xF0], -1).reshape(-1).view(np.int8)
    return (halves >> 4)[:count]


def _tensor_differences(a: deployed_lib.Tensor, b: deployed_lib.Tensor) -> list[str]:
    a, b = _one_scale_as_scalar(a), _one_scale_as_scalar(b)
    found = [
        f"tensor {a.name!r}: {field} {getattr(a, field)} != {getattr(b, field)}"
        for field in ("shape", "dtype", "zero_point", "axis")
        if getattr(a, field) != getattr(b, field)
    ]
    for field in ("scale", "data"):
        left, right = getattr(a, field), getattr(b, field)
        if (left is None) != (right is None):
            found.append(f"tensor {a.name!r}: {field} is in one model only")
        elif left is not None and not _same_array(left, right):
            found.append(f"tensor {a.name!r}: {field} differs{_count(left, right)}")
    return found


def _one_scale_as_scalar(tensor: deployed_lib.Tensor) -> deployed_lib.Tensor:
    """A file does not tell one scale per tensor from one scale per channel of a single channel."""
    if tensor.scale is None or np.size(tensor.scale) != 1:
        return dataclasses.replace(tensor, shape=tuple(tensor.shape))
    return dataclasses.replace(
        tensor, shape=tuple(tensor.shape), scale=np.reshape(tensor.scale, ()), axis=None
    )


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _count(a: np.ndarray, b: np.ndarray) -> str:
    a, b = np.asarray(a), np.asarray(b)
    return (
        f" in {np.sum(a != b)} of {a.size} values"
        if a.shape == b.shape
        else f": shape {a.shape} != {b.shape}"
    )


def _operator_key(operator: deployed_lib.Operator) -> tuple[Any, ...]:
    options = operator_options.options_of(operator.kind, operator.options)
    # Options are stored as float32.
    rounded = {
        key: np.float32(value) if isinstance(value, float) else value
        for key, value in options.items()
    }
    return (
        operator.kind,
        tuple(operator.inputs),
        tuple(operator.outputs),
        tuple(sorted(rounded.items())),
    )


def _model(model: schema.ModelT) -> deployed_lib.DeployedModel:
    if not model.subgraphs:
        raise ValueError("it has no subgraph.")
    graph = model.subgraphs[0]
    names = _unique_names(graph.tensors or [])
    tensors = {
        name: _tensor(name, tensor, model.buffers)
        for name, tensor in zip(names, graph.tensors or [], strict=True)
    }

    def named(indices: Any) -> tuple[str, ...]:
        # -1 stands for an optional input that is absent.
        return tuple(
            "" if index == -1 else names[_index(index, len(names))] for index in _list(indices)
        )

    return deployed_lib.DeployedModel(
        tensors=tensors,
        operators=tuple(
            _operator(op, model.operatorCodes or [], named) for op in graph.operators or []
        ),
        inputs=named(graph.inputs),
        outputs=named(graph.outputs),
        name=_text(graph.name) or "main",
    )


def _tensor(
    name: str, tensor: schema.TensorT, buffers: list[schema.BufferT]
) -> deployed_lib.Tensor:
    dtype = operator_options.enum_name(schema.TensorType, tensor.type).lower()
    shape = tuple(int(size) for size in _list(tensor.shape))
    scale, zero_point, axis = _quantization(name, tensor.quantization)
    contents = buffers[_index(tensor.buffer, len(buffers))].data
    data = (
        None if contents is None or len(contents) == 0 else _contents(name, contents, dtype, shape)
    )
    return deployed_lib.Tensor(name, shape, dtype, scale, zero_point, axis, data)


def _contents(name: str, contents: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Constant contents in the tensor's own type and shape; raw bytes for types NumPy lacks, e.g.
    strings.
    """
    raw = np.asarray(contents, np.uint8)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == "int4":
        size = -(-count // 2)
    elif dtype in _NUMPY_TYPES:
        size = count * np.dtype(_NUMPY_TYPES[dtype]).itemsize
    else:
        return raw.copy()
    if raw.size != size:
        raise ValueError(
            f"tensor {name!r} of type {dtype}, shape {shape} needs {size} bytes and has {raw.size}."
        )
    values = (
        unpack_int4(raw, count)
        if dtype == "int4"
        else np.frombuffer(raw.tobytes(), _NUMPY_TYPES[dtype])
    )
    return values.reshape(shape)


def _quantization(
    name: str, quantization: schema.QuantizationParametersT | None
) -> tuple[np.ndarray | None, int, int | None]:
    """Scale, zero point and axis of a tensor."""
    scale = None if quantization is None else quantization.scale
    if scale is None or len(scale) == 0:
        return None, 0, None
    scale = np.asarray(scale, np.float32)
    zero_points = {int(value) for value in _list(quantization.zeroPoint)} or {0}
    if len(zero_points) > 1:
        raise ValueError(
            f"tensor {name!r} has different zero points per channel, which TFLite kernels do not"
            " run."
        )
    per_channel = scale.size > 1
    return (
        scale if per_channel else scale.reshape(()),
        zero_points.pop(),
        int(quantization.quantizedDimension) if per_channel else None,
    )


def _operator(
    operator: schema.OperatorT, codes: list[schema.OperatorCodeT], named: Any
) -> deployed_lib.Operator:
    code = codes[_index(operator.opcodeIndex, len(codes))]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kind = operator_options.enum_name(schema.BuiltinOperator, number)
    options = operator_options.decode(kind, operator.builtinOptions)
    if kind == "CUSTOM":
        options = {"custom_code": _text(code.customCode)}
    return deployed_lib.Operator(kind, named(operator.inputs), named(operator.outputs), options)


def _unique_names(tensors: list[schema.TensorT]) -> list[str]:
    """Tensor names; a repeated or empty one gets its index appended."""
    names: list[str] = []
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        name = _text(tensor.name)
        if not name or name in seen:
            name = f"{name}#{index}"
        seen.add(name)
        names.append(name)
    return names


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _index(index: int, size: int) -> int:
    """The index, if it is one: Python would take a negative index for another element."""
    if not 0 <= index < size:
        raise ValueError(f"index {index} is outside its table of {size}.")
    return int(index)
