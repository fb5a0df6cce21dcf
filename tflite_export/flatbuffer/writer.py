"""Writes a `DeployedModel` as a `.tflite` file, without the converter.

Every scale, zero point, bias and code is already known.
"""

from collections.abc import Mapping
import os

from ai_edge_litert import schema_py_generated as schema
import flatbuffers
import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import atomic_files, operator_options, operator_versions

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
SIGNATURE_KEY = "serving_default"
# The runtime reads constants in place; XNNPACK and TFLM want them aligned so (the schema's
# force_align).
BUFFER_ALIGNMENT = 16
# A flatbuffer addresses with 31 bits.
MAX_FILE_BYTES = 2**31 - 1

NUMPY_TYPES = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": np.int8,
    "int32": np.int32,
    "float32": np.float32,
}


def to_bytes(
    deployed: deployed_lib.DeployedModel, metadata: Mapping[str, bytes] | None = None
) -> bytes:
    """The model as the bytes of a `.tflite` file.

    Activations are written with the batch dimension 1 and, unless the model has a fixed batch, the
    signature -1, so that an interpreter can be resized to any batch. The signature
    "serving_default" has the names `deployed.signature`.

    Args:
      deployed: The network.
      metadata: Further metadata buffers by name.

    Raises:
      ValueError: If the records contradict each other (unknown tensor, tensor that nothing
        produces, wrong shape of a constant, code outside its dtype, unknown option) or the file
        would pass 2 GiB.
    """
    check(deployed)
    buffers = _Buffers()
    indices = {name: index for index, name in enumerate(deployed.tensors)}
    codes, code_of = _operator_codes(deployed)
    subgraph = schema.SubGraphT(
        name=deployed.name,
        tensors=[
            _tensor(tensor, buffers, deployed.fixed_batch) for tensor in deployed.tensors.values()
        ],
        inputs=_int32([indices[name] for name in deployed.inputs]),
        outputs=_int32([indices[name] for name in deployed.outputs]),
        operators=[
            _operator(op, indices, code_of[index]) for index, op in enumerate(deployed.operators)
        ],
    )
    entries = {
        operator_versions.METADATA_NAME: operator_versions.metadata(deployed),
        **(metadata or {}),
    }
    model = schema.ModelT(
        version=SCHEMA_VERSION,
        operatorCodes=codes,
        subgraphs=[subgraph],
        description="written by tflite_export",
        buffers=buffers.list,
        metadata=[
            schema.MetadataT(name=name, buffer=buffers.add(data)) for name, data in entries.items()
        ],
        signatureDefs=[_signature(deployed, indices)],
    )
    if buffers.bytes > MAX_FILE_BYTES - 2**24:
        raise ValueError(
            f"A .tflite file holds at most 2 GiB. Received: {buffers.bytes} bytes of constants."
        )
    builder = flatbuffers.Builder(buffers.bytes + 2**16 + 512 * len(deployed.tensors))
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def write(
    deployed: deployed_lib.DeployedModel,
    path: str | os.PathLike[str],
    metadata: Mapping[str, bytes] | None = None,
) -> int:
    """Writes the model to `path` whole or not at all, and returns the number of bytes.

    Raises:
      ValueError: See `to_bytes`.
      OSError: If the path cannot be written; what was there before is untouched.
    """
    return write_bytes(to_bytes(deployed, metadata), path)


def write_bytes(data: bytes, path: str | os.PathLike[str]) -> int:
    """Writes the bytes of a `.tflite` file to `path` whole or not at all, and returns their number.

    Raises:
      OSError: If the path cannot be written; what was there before is untouched.
    """
    return atomic_files.write_whole(data, path, "the .tflite file")


def check(deployed: deployed_lib.DeployedModel) -> None:
    """Checks that the records are a well-formed graph.

    Raises:
      ValueError: Naming the tensor or operator that is not.
    """
    for name, tensor in deployed.tensors.items():
        _check_tensor(name, tensor)
    known = {name for name, tensor in deployed.tensors.items() if tensor.data is not None} | set(
        deployed.inputs
    )
    missing = sorted(set(deployed.inputs) - set(deployed.tensors))
    if missing:
        raise ValueError(f"The model has no tensors {missing}, which are its inputs.")
    for operator in deployed.operators:
        if operator.kind not in operator_options.OPTIONS:
            raise ValueError(
                f"Cannot write operator {operator.kind!r}; known:"
                f" {sorted(operator_options.OPTIONS)}."
            )
        unknown = [
            name for name in (*operator.inputs, *operator.outputs) if name not in deployed.tensors
        ]
        early = [name for name in operator.inputs if name not in known]
        if unknown or early:
            raise ValueError(
                f"{operator.kind} reads or writes {unknown or early}, which nothing before it"
                " produces."
            )
        known.update(operator.outputs)
    unproduced = [name for name in deployed.outputs if name not in known]
    if unproduced:
        raise ValueError(f"No operator produces the outputs {unproduced}.")


def _check_tensor(name: str, tensor: deployed_lib.Tensor) -> None:
    if name != tensor.name:
        raise ValueError(f"Tensor {tensor.name!r} is listed under the name {name!r}.")
    if tensor.dtype not in NUMPY_TYPES:
        raise ValueError(
            f"Tensor {name!r}: dtype must be one of {sorted(NUMPY_TYPES)}. Received:"
            f" {tensor.dtype!r}."
        )
    scale = None if tensor.scale is None else np.asarray(tensor.scale)
    if scale is not None and not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
        raise ValueError(
            f"Tensor {name!r}: scales must be finite and positive. Received:"
            f" {scale.min()}..{scale.max()}."
        )
    if (
        scale is not None
        and scale.ndim
        and (tensor.axis is None or scale.shape != (tensor.shape[tensor.axis],))
    ):
        raise ValueError(
            f"Tensor {name!r}: needs one scale per channel of its axis. Received:"
            f" axis={tensor.axis}, {scale.size} scales, shape={tensor.shape}."
        )
    if tensor.data is None:
        return
    if tuple(np.shape(tensor.data)) != tuple(tensor.shape):
        raise ValueError(
            f"Tensor {name!r}: shape={tensor.shape} but its data has shape {np.shape(tensor.data)}."
        )
    expected = NUMPY_TYPES[tensor.dtype]
    if tensor.data.dtype != expected:
        raise ValueError(
            f"Tensor {name!r}: data must be {np.dtype(expected)}. Received: {tensor.data.dtype}."
        )
    if (
        tensor.dtype == "int4"
        and tensor.data.size
        and (tensor.data.min() < -8 or tensor.data.max() > 7)
    ):
        raise ValueError(
            f"Tensor {name!r}: int4 codes lie in -8..7. Received:"
            f" {tensor.data.min()}..{tensor.data.max()}."
        )


class _Buffers:
    """The file's buffers; number 0 is the empty one that activations share."""

    def __init__(self) -> None:
        self.list = [schema.BufferT()]
        self.bytes = 0

    def add(self, data: bytes | np.ndarray) -> int:
        self.list.append(_AlignedBuffer(np.frombuffer(data, np.uint8)))
        self.bytes += len(self.list[-1].data) + BUFFER_ALIGNMENT
        return len(self.list) - 1


class _AlignedBuffer(schema.BufferT):
    """A buffer whose contents start at a multiple of `BUFFER_ALIGNMENT`, copied in one piece."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        length = len(self.data)
        builder.StartVector(1, length, BUFFER_ALIGNMENT)
        builder.head = builder.Head() - length
        builder.Bytes[builder.Head() : builder.Head() + length] = self.data.tobytes()
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Two int4 codes a byte, the first in the low half; an odd count is padded with 0."""
    flat = codes.reshape(-1)
    padded = np.concatenate([flat, np.zeros(flat.size % 2, np.int8)]).view(np.uint8)
    return (padded[0::2] & 15) | (padded[1::2] << 4)


def _tensor(tensor: deployed_lib.Tensor, buffers: _Buffers, fixed_batch: bool) -> schema.TensorT:
    written = schema.TensorT(
        name=tensor.name,
        shape=_int32(tensor.shape),
        type=getattr(schema.TensorType, tensor.dtype.upper()),
        quantization=_quantization(tensor),
        hasRank=True,
    )
    if tensor.data is None:
        if tensor.shape and not fixed_batch:
            written.shapeSignature = _int32((-1, *tensor.shape[1:]))
        return written
    data = np.ascontiguousarray(tensor.data)
    packed = (
        pack_int4(data)
        if tensor.dtype == "int4"
        else data.astype(data.dtype.newbyteorder("<"), copy=False)
    )
    written.buffer = buffers.add(packed.reshape(-1).view(np.uint8))
    return written


def _quantization(tensor: deployed_lib.Tensor) -> schema.QuantizationParametersT | None:
    if tensor.scale is None:
        return None
    scale = np.reshape(np.asarray(tensor.scale, np.float32), (-1,))
    return schema.QuantizationParametersT(
        scale=scale,
        zeroPoint=np.full(scale.shape, tensor.zero_point, np.int64),
        quantizedDimension=tensor.axis or 0,
    )


def _operator_codes(
    deployed: deployed_lib.DeployedModel,
) -> tuple[list[schema.OperatorCodeT], list[int]]:
    """The distinct (kind, version) codes and, per operator, the index of its own."""
    keys = [(op.kind, operator_versions.version(op, deployed.tensors)) for op in deployed.operators]
    distinct = list(dict.fromkeys(keys))
    codes = []
    for kind, version in distinct:
        number = getattr(schema.BuiltinOperator, kind)
        codes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version
            )
        )
    return codes, [distinct.index(key) for key in keys]


def _operator(
    operator: deployed_lib.Operator, indices: Mapping[str, int], code: int
) -> schema.OperatorT:
    options_type, options = operator_options.encode(operator.kind, operator.options)
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=_int32([indices[name] for name in operator.inputs]),
        outputs=_int32([indices[name] for name in operator.outputs]),
        builtinOptionsType=options_type,
        builtinOptions=options,
    )


def _signature(
    deployed: deployed_lib.DeployedModel, indices: Mapping[str, int]
) -> schema.SignatureDefT:
    def maps(keys: tuple[str, ...], names: tuple[str, ...]) -> list[schema.TensorMapT]:
        return [
            schema.TensorMapT(name=key, tensorIndex=indices[name])
            for key, name in zip(keys, names, strict=True)
        ]

    input_keys, output_keys = deployed.signature
    return schema.SignatureDefT(
        inputs=maps(input_keys, deployed.inputs),
        outputs=maps(output_keys, deployed.outputs),
        signatureKey=SIGNATURE_KEY,
        subgraphIndex=0,
    )


def _int32(values) -> np.ndarray:
    return np.asarray(values, np.int32)
