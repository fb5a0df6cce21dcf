"""Class labels and input normalisation inside a `.tflite` file.

Google's Task Library and ML Kit read them.

TFLite metadata is a flatbuffer of its own (`metadata_schema.fbs` of tflite-support, identifier
M001) in the model's metadata entry "TFLITE_METADATA". Files it names, here the labels, are a zip
archive behind the model: a `.tflite` file is both at once.

Note: Written by hand: tflite-support, which has a writer, pins protobuf below 4, weighs 60 MB and
does not import without libusb. Its reader and its Task Library read these files.
"""

from collections.abc import Callable, Sequence
import dataclasses
import io
import os
import pathlib
from typing import Any
import zipfile

from ai_edge_litert import schema_py_generated as schema
import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table
import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import reader

NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS_FILE = "labels.txt"
# First version of the readers that knows all fields used here.
MIN_PARSER_VERSION = "1.0.0"
PIXEL_MAX = 255.0

# metadata_schema.fbs: positions of the fields, values of enums and unions.
_MODEL_NAME, _MODEL_SUBGRAPHS, _MODEL_MIN_PARSER_VERSION = 0, 3, 7
_SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS = 2, 3
_TENSOR_NAME, _TENSOR_CONTENT, _TENSOR_PROCESS_UNITS, _TENSOR_STATS, _TENSOR_FILES = 0, 3, 4, 5, 6
_FEATURE, _IMAGE = 1, 2
_COLOR_SPACES = {3: 1, 1: 2}
_NORMALIZATION = 1
_TENSOR_AXIS_LABELS = 2


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says about its borders.

        tflite_export.read_metadata("x.tflite").labels

    Attributes:
      labels: Class names in the order of the output's last axis, or None.
      mean: Of the normalisation `x = (pixel - mean) / std` of pixels 0..255: one value, or one per
        channel; None without.
      std: Likewise.
    """

    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """`(mean, std)`, or None without."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return self != Metadata()


def make(
    deployed: deployed_lib.DeployedModel,
    labels: Sequence[str] | None = None,
    normalization: tuple[Any, Any] | None = None,
) -> Metadata:
    """Checked metadata for a network.

    Args:
      deployed: The network.
      labels: Class names, one for each value of the output's last axis.
      normalization: `(mean, std)` on the scale of pixels 0..255, each a number or one number per
        channel.

    Raises:
      TypeError: If a label is no string.
      ValueError: If a label is empty or has a line break, or numbers do not fit the network.
    """
    mean = std = None
    if labels is not None:
        labels = _labels(deployed, labels)
    if normalization is not None:
        mean, std = _normalization(deployed, normalization)
    return Metadata(labels, mean, std)


def entries(deployed: deployed_lib.DeployedModel, metadata: Metadata) -> dict[str, bytes]:
    """The model's metadata entries: one, or none where there is nothing to say."""
    return {NAME: _to_flatbuffer(deployed, metadata)} if metadata else {}


def append_files(data: bytes, metadata: Metadata) -> bytes:
    """The bytes of a `.tflite` file with the label file behind them."""
    if metadata.labels is None:
        return data
    file = io.BytesIO(data)
    # Stored, not compressed: readers map the file. A fixed date: the same network gives the same
    # bytes.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(
            zipfile.ZipInfo(LABELS_FILE, (1980, 1, 1, 0, 0, 0)), "\n".join(metadata.labels)
        )
    return file.getvalue()


def read_metadata(model: str | os.PathLike[str] | bytes) -> Metadata:
    """The metadata of a `.tflite` file, also of other writers; empty where it has none.

        tflite_export.read_metadata("x.tflite").labels

    Of several inputs or outputs the first with a normalisation and the first with labels count.

    Args:
      model: Path or contents.

    Raises:
      ValueError: If it is no TFLite file, or the metadata is damaged.
      OSError: If the file cannot be read.
    """
    data = model if isinstance(model, bytes) else pathlib.Path(model).read_bytes()
    what = "These bytes" if isinstance(model, bytes) else repr(os.fspath(model))
    if data[4:8] != reader.FILE_IDENTIFIER:
        raise ValueError(f"{what} is not a TFLite file: identifier TFL3 expected.")
    try:
        buffer = _entry(data)
        return Metadata() if buffer is None else _from_flatbuffer(buffer, data)
    # A damaged flatbuffer or archive leads its reader anywhere.
    except Exception as error:
        raise ValueError(f"{what} has damaged metadata: {type(error).__name__}: {error}") from error


def _labels(deployed: deployed_lib.DeployedModel, labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels must be a list of strings. Received: labels={labels!r}.")
    if len(deployed.outputs) != 1:
        raise ValueError(
            f"labels need a model with one output. Received: outputs {', '.join(deployed.outputs)}."
        )
    classes = deployed.tensors[deployed.outputs[0]].shape[-1]
    if len(labels) != classes:
        raise ValueError(
            f"labels must be one per class, {classes}. Received: {len(labels)} labels."
        )
    for label in labels:
        if not label.strip() or len(label.splitlines()) != 1:
            raise ValueError(f"A label is one line of text. Received: {label!r}.")
    return tuple(labels)


def _normalization(
    deployed: deployed_lib.DeployedModel, normalization: tuple[Any, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(deployed.inputs) != 1:
        raise ValueError(
            "normalization needs a model with one input. Received: inputs"
            f" {', '.join(deployed.inputs)}."
        )
    if not isinstance(normalization, tuple | list) or len(normalization) != 2:
        raise ValueError(
            f"normalization must be a pair (mean, std). Received: normalization={normalization!r}."
        )
    mean, std = (np.asarray(part, np.float32).reshape(-1) for part in normalization)
    channels = deployed.tensors[deployed.inputs[0]].shape[-1]
    for name, part in (("mean", mean), ("std", std)):
        if (
            part.size not in (1, channels)
            or not np.isfinite(part).all()
            or (name == "std" and (part <= 0).any())
        ):
            raise ValueError(
                f"{name} of the normalization must be one {'positive ' * (name == 'std')}number, or"
                f" one per channel ({channels}). Received: {name}={part.tolist()}."
            )
    size = max(mean.size, std.size)  # readers want as many of one as of the other
    return tuple(np.resize(mean, size).tolist()), tuple(np.resize(std, size).tolist())


def _to_flatbuffer(deployed: deployed_lib.DeployedModel, metadata: Metadata) -> bytes:
    writer = _Writer()
    inputs = [_input(writer, deployed.tensors[name], metadata) for name in deployed.inputs]
    outputs = [_output(writer, name, metadata) for name in deployed.outputs]
    subgraph = writer.table(
        {_SUBGRAPH_INPUTS: writer.vector(inputs), _SUBGRAPH_OUTPUTS: writer.vector(outputs)},
    )
    fields = {
        _MODEL_NAME: writer.text(deployed.name),
        _MODEL_SUBGRAPHS: writer.vector([subgraph]),
        _MODEL_MIN_PARSER_VERSION: writer.text(MIN_PARSER_VERSION),
    }
    writer.builder.Finish(writer.table(fields), IDENTIFIER)
    return bytes(writer.builder.Output())


def _input(writer: "_Writer", tensor: deployed_lib.Tensor, metadata: Metadata) -> int:
    color_space = _COLOR_SPACES.get(tensor.shape[-1]) if len(tensor.shape) == 4 else None
    properties = writer.table({}, {0: color_space} if color_space else {})
    kind = _IMAGE if color_space else _FEATURE
    fields = {
        _TENSOR_NAME: writer.text(tensor.name),
        _TENSOR_CONTENT: writer.table({1: properties}, {0: kind}),
    }
    if metadata.normalization is not None:
        mean, std = (np.asarray(numbers, np.float32) for numbers in metadata.normalization)
        options = writer.table({0: writer.floats(mean), 1: writer.floats(std)})
        units = [writer.table({1: options}, {0: _NORMALIZATION})]
        fields[_TENSOR_PROCESS_UNITS] = writer.vector(units)
        fields[_TENSOR_STATS] = writer.table(
            {0: writer.floats((PIXEL_MAX - mean) / std), 1: writer.floats(-mean / std)}
        )
    return writer.table(fields)


def _output(writer: "_Writer", name: str, metadata: Metadata) -> int:
    fields = {
        _TENSOR_NAME: writer.text(name),
        _TENSOR_CONTENT: writer.table({1: writer.table({})}, {0: _FEATURE}),
    }
    if metadata.labels is not None:
        file = writer.table({0: writer.text(LABELS_FILE)}, {2: _TENSOR_AXIS_LABELS})
        fields[_TENSOR_FILES] = writer.vector([file])
    return writer.table(fields)


class _Writer:
    """Builds flatbuffer tables by field position; a table's parts must be written before it."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return self.builder.CreateString(value)

    def floats(self, values: np.ndarray) -> int:
        return self.builder.CreateNumpyVector(np.asarray(values, np.float32))

    def vector(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def table(self, parts: dict[int, int], numbers: dict[int, int] | None = None) -> int:
        """A table of other parts and of one-byte numbers, each by field position.

        Parts are given by their offsets.
        """
        numbers = numbers or {}
        self.builder.StartObject(max((*parts, *numbers), default=-1) + 1)
        for field, offset in parts.items():
            self.builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        for field, number in numbers.items():
            self.builder.PrependUint8Slot(field, number, 0)
        return self.builder.EndObject()


def _entry(data: bytes) -> bytes | None:
    """The metadata flatbuffer of a model."""
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == NAME.encode():
            buffer = schema.BufferT.InitFromObj(model.Buffers(entry.Buffer()))
            contents = reader.buffer_contents(buffer, data)
            return None if contents is None else contents.tobytes()
    return None


def _from_flatbuffer(buffer: bytes, data: bytes) -> Metadata:
    if buffer[4:8] != IDENTIFIER:
        raise ValueError(f"identifier {IDENTIFIER!r} expected, found {buffer[4:8]!r}")
    root = Table(buffer, int.from_bytes(buffer[:4], "little"))
    labels = mean = std = None
    for subgraph in _tables(root, _MODEL_SUBGRAPHS)[:1]:
        for tensor in _tables(subgraph, _SUBGRAPH_INPUTS):
            for unit in _tables(tensor, _TENSOR_PROCESS_UNITS):
                if mean is None and _number(unit, 0) == _NORMALIZATION:
                    options = _table(unit, 1)
                    mean, std = _floats(options, 0), _floats(options, 1)
        for tensor in _tables(subgraph, _SUBGRAPH_OUTPUTS):
            for file in _tables(tensor, _TENSOR_FILES):
                if labels is None and _number(file, 2) == _TENSOR_AXIS_LABELS:
                    labels = _archived_lines(data, _text(file, 0))
    return Metadata(labels, mean, std)


def _archived_lines(data: bytes, name: str) -> tuple[str, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple(archive.read(name).decode().splitlines())


def _field(table: Table, field: int, read_at: Callable[[int], Any], default: Any = None) -> Any:
    """What `read_at` finds at a field, by its position in the table.

    It is the default where the field is absent.
    """
    offset = table.Offset(4 + 2 * field)
    return read_at(table.Pos + offset) if offset else default


def _number(table: Table, field: int) -> int:
    return _field(table, field, lambda at: table.Get(number_types.Uint8Flags, at), 0)


def _text(table: Table, field: int) -> str:
    return _field(table, field, lambda at: table.String(at).decode(), "")


def _table(table: Table, field: int) -> Table:
    return _field(table, field, lambda at: Table(table.Bytes, table.Indirect(at)))


def _tables(table: Table, field: int) -> list[Table]:
    offset = table.Offset(4 + 2 * field)
    if not offset:
        return []
    start = table.Vector(offset)
    return [
        Table(table.Bytes, table.Indirect(start + 4 * index))
        for index in range(table.VectorLen(offset))
    ]


def _floats(table: Table, field: int) -> tuple[float, ...]:
    offset = table.Offset(4 + 2 * field)
    return (
        tuple(table.GetVectorAsNumpy(number_types.Float32Flags, offset).tolist()) if offset else ()
    )
