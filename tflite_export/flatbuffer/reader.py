"""Reads a `.tflite` file back into the records of `deployed.py`.

So "trained = exported" is one comparison of records.

Imports neither TensorFlow nor Keras. Any file is read: tensors of all types, operators of all kinds
(those without an entry in `operator_options` keep the schema's own option names). Only the first
subgraph is returned.
"""

from collections.abc import Iterable
import dataclasses
import os
import pathlib
from typing import Any

from ai_edge_litert import schema_py_generated as schema
import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import operator_options

FILE_IDENTIFIER = b"TFL3"
# Offsets 0 and 1 of a buffer stand for "none" (schema.fbs).
_LAST_RESERVED_OFFSET = 1
# The index of an optional tensor that is absent.
_ABSENT = -1
# A size that is left open in a tensor's shape signature.
_OPEN = -1
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

        for operator in tflite_export.read("x.tflite").operators:
            print(operator.kind, operator.outputs)

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
        return _model(schema.ModelT.InitFromPackedBuf(data, 0), data)
    except ValueError as error:
        raise ValueError(f"{source} is not a whole TFLite file: {error}") from error
    # A damaged flatbuffer leads the generated reader anywhere: wrong offsets, types, lengths.
    except Exception as error:
        raise ValueError(
            f"{source} is truncated or corrupt: {type(error).__name__}: {error}"
        ) from error


def differences(a: deployed_lib.DeployedModel, b: deployed_lib.DeployedModel) -> list[str]:
    """What differs between two models, one line each; empty if they are the same network.

    Compared are inputs, outputs, their names in the signature, whether the batch is fixed,
    operators with all options, and of every tensor shape, type, scale, zero point, axis and
    contents, bit for bit.
    """
    found = [
        f"{field}: {getattr(a, field)} != {getattr(b, field)}"
        for field in ("name", "inputs", "outputs", "signature", "fixed_batch")
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
    """int8 array of `count` codes from bytes that hold two int4 codes each.

    The first code is in the low half. A worked number: the byte 0xF7 holds 7 and -1.
    """
    halves = np.stack([packed << 4, packed & 0xF0], -1).reshape(-1).view(np.int8)
    return (halves >> 4)[:count]


def _tensor_differences(a: deployed_lib.Tensor, b: deployed_lib.Tensor) -> list[str]:
    a, b = _one_scale_as_scalar(a), _one_scale_as_scalar(b)
    found = [
        f"tensor {a.name!r}: {field} {getattr(a, field)} != {getattr(b, field)}"
        for field in ("shape", "dtype", "zero_point", "axis")
        if not np.array_equal(getattr(a, field), getattr(b, field))
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


def buffer_contents(buffer: schema.BufferT, file: bytes) -> np.ndarray | None:
    """The bytes of a buffer, or None where it is empty.

    A buffer holds its bytes itself, or says with `offset` and `size` where in the file they are,
    behind the flatbuffer: files above 2 GiB need that, and ai-edge-quantizer writes all its files
    so.

    Args:
      buffer: A buffer of the file's model.
      file: The whole file.

    Raises:
      ValueError: If the place is not inside the file.
    """
    if buffer.offset > _LAST_RESERVED_OFFSET and buffer.size:
        if buffer.offset + buffer.size > len(file):
            raise ValueError(
                f"a buffer lies at bytes {buffer.offset} to {buffer.offset + buffer.size} of"
                f" {len(file)}."
            )
        return np.frombuffer(file, np.uint8, buffer.size, buffer.offset)
    if buffer.data is None or len(buffer.data) == 0:
        return None
    return np.asarray(buffer.data, np.uint8)


def unique_names(names: Iterable[str]) -> list[str]:
    """Names of a file's tensors in its order, each once.

    A repeated or empty name gets its index appended.
    """
    found: dict[str, None] = {}
    for index, name in enumerate(names):
        while not name or name in found:
            name = f"{name}#{index}"
        found[name] = None
    return list(found)


def _model(model: schema.ModelT, file: bytes) -> deployed_lib.DeployedModel:
    if not model.subgraphs:
        raise ValueError("it has no subgraph.")
    graph = model.subgraphs[0]
    names = unique_names(_text(tensor.name) for tensor in graph.tensors or [])
    signature = next((s for s in model.signatureDefs or [] if s.subgraphIndex == 0), None)
    buffers = [buffer_contents(buffer, file) for buffer in model.buffers or []]
    tensors = {
        name: _tensor(name, tensor, buffers)
        for name, tensor in zip(names, graph.tensors or [], strict=True)
    }

    def named(indices: Any) -> tuple[str, ...]:
        return tuple(
            "" if index == _ABSENT else names[_index(index, len(names))] for index in _list(indices)
        )

    return deployed_lib.DeployedModel(
        tensors=tensors,
        operators=tuple(
            _operator(op, model.operatorCodes or [], named) for op in graph.operators or []
        ),
        inputs=_present(named(graph.inputs)),
        outputs=_present(named(graph.outputs)),
        name=_text(graph.name) or "main",
        input_keys=_keys(graph.inputs, signature and signature.inputs),
        output_keys=_keys(graph.outputs, signature and signature.outputs),
        fixed_batch=not any(_OPEN in _list(t.shapeSignature) for t in graph.tensors or []),
    )


def _keys(tensors: Any, maps: list[schema.TensorMapT] | None) -> tuple[str, ...]:
    """The signature's names of some tensors; none where it leaves one out."""
    names: dict[int, list[str]] = {}
    for entry in maps or []:
        names.setdefault(int(entry.tensorIndex), []).append(_text(entry.name))
    # A tensor that is two outputs has two names, in their order.
    unused = {index: iter(found) for index, found in names.items()}
    indices = [int(index) for index in _list(tensors) if index != _ABSENT]
    keys = tuple(next(unused.get(index, iter(())), "") for index in indices)
    return keys if all(keys) else ()


def _tensor(
    name: str, tensor: schema.TensorT, buffers: list[np.ndarray | None]
) -> deployed_lib.Tensor:
    dtype = operator_options.enum_name(schema.TensorType, tensor.type).lower()
    shape = tuple(int(size) for size in _list(tensor.shape))
    scale, zero_point, axis = _quantization(tensor.quantization)
    raw = buffers[_index(tensor.buffer, len(buffers))]
    if raw is None or tensor.sparsity is not None:
        data = raw
    else:
        data = _contents(name, raw, dtype, shape)
    return deployed_lib.Tensor(name, shape, dtype, scale, zero_point, axis, data)


def _contents(name: str, raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Constant contents in the tensor's own type and shape.

    They are raw bytes for types that NumPy lacks, such as strings.
    """
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
    quantization: schema.QuantizationParametersT | None,
) -> tuple[np.ndarray | None, int | np.ndarray, int | None]:
    """Scale, zero point and axis of a tensor."""
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return None, 0, None
    scale = np.asarray(quantization.scale, np.float32)
    zero_points = np.asarray(_list(quantization.zeroPoint), np.int64)
    same = not zero_points.size or (zero_points == zero_points[0]).all()
    per_channel = scale.size > 1
    return (
        scale if per_channel else scale.reshape(()),
        int(zero_points[0] if zero_points.size else 0) if same else zero_points,
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
    outputs = _present(named(operator.outputs))
    return deployed_lib.Operator(kind, named(operator.inputs), outputs, options, int(code.version))


def _present(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _index(index: int, size: int) -> int:
    """The index, if it is one: Python would take a negative index for another element."""
    if not 0 <= index < size:
        raise ValueError(f"index {index} is outside its table of {size}.")
    return int(index)
