"""Reading files back: what was written, what others wrote, and what is no model at all."""

import dataclasses
import json
import pathlib
import subprocess
import sys

from ai_edge_litert import schema_py_generated as schema
import flatbuffers
import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export import small_network
from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.flatbuffer import file_summary, metadata, reader, writer
from tflite_export.lowering import io_types
from tflite_export.runtimes import litert as runtime

DATA = pathlib.Path(__file__).parents[1] / "data"

MODEL = small_network.residual_network()


@pytest.mark.parametrize("input_type", io_types.IO_TYPES)
def test_round_trip(tmp_path, input_type):
    model = io_types.with_io(MODEL, input_type, "float32")
    writer.write(model, tmp_path / "m.tflite")
    assert reader.differences(model, reader.read(tmp_path / "m.tflite")) == []


def test_round_trip_of_one_channel_and_packed_int4():
    rng = np.random.default_rng(0)
    for units, features in ((1, 7), (3, 5)):
        scale = np.full(units, 0.01, np.float32)
        inputs = [
            cases.activation("x", (1, features)),
            cases.constant(
                "w",
                rng.integers(-8, 8, (units, features)).astype(np.int8),
                scale,
                axis=0,
                dtype="int4",
            ),
        ]
        model = cases.one_operator(
            "FULLY_CONNECTED", inputs, cases.activation("y", (1, units)), activation="RELU"
        )
        assert reader.differences(model, reader.from_bytes(writer.to_bytes(model))) == []


def test_int4_packing_is_golden():
    """Low half first: 1, -2 -> 0xE1; 7 alone -> 0x07."""
    packed = writer.pack_int4(np.array([1, -2, 7], np.int8))
    assert packed.tolist() == [0xE1, 0x07]
    assert reader.unpack_int4(packed, 3).tolist() == [1, -2, 7]


def test_differences_names_what_differs():
    def changed(name, **fields):
        return dataclasses.replace(
            MODEL,
            tensors={**MODEL.tensors, name: dataclasses.replace(MODEL.tensors[name], **fields)},
        )

    weights = MODEL.tensors["stem/weights"]
    flipped = weights.data.copy()
    flipped[0, 0, 0, 0] += 1
    assert reader.differences(MODEL, changed("stem/weights", data=flipped)) == [
        "tensor 'stem/weights': data differs in 1 of 216 values"
    ]
    scaled = changed("stem/weights", scale=weights.scale * np.float32(1.01))
    assert reader.differences(MODEL, scaled) == [
        "tensor 'stem/weights': scale differs in 8 of 8 values"
    ]
    assert reader.differences(MODEL, changed("stem", zero_point=111)) == [
        "tensor 'stem': zero_point 112 != 111"
    ]
    operators = (
        dataclasses.replace(MODEL.operators[0], options={"activation": "RELU6"}),
        *MODEL.operators[1:],
    )
    assert (
        "operator 0"
        in reader.differences(MODEL, dataclasses.replace(MODEL, operators=operators))[0]
    )
    defaults = (
        dataclasses.replace(MODEL.operators[0], options={"activation": "RELU", "padding": "SAME"}),
    )
    assert (
        reader.differences(
            MODEL, dataclasses.replace(MODEL, operators=defaults + MODEL.operators[1:])
        )
        == []
    )


def test_reads_what_the_converter_wrote():
    """A foreign file: its operators, float and integer tensors, and kinds outside our table under
    the schema's names.
    """

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 3))])
    def function(x):
        return tf.one_hot(
            tf.argmax(tf.nn.relu(tf.nn.conv2d(x, tf.ones((1, 1, 3, 2)), 1, "SAME")), -1), 5
        )

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    model = reader.from_bytes(converter.convert())
    kinds = [operator.kind for operator in model.operators]
    assert kinds == ["CONV_2D", "ARG_MAX", "ONE_HOT"]
    assert model.operators[0].options["activation"] == "RELU"
    assert model.operators[1].options["output_type"] == 4  # INT64
    weights = model.tensors[model.operators[0].inputs[1]]
    assert weights.dtype == "float32"
    np.testing.assert_array_equal(weights.data, np.ones((2, 1, 1, 3), np.float32))


def packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def constants(model):
    return {name: tensor for name, tensor in model.tensors.items() if tensor.data is not None}


def test_constants_behind_the_flatbuffer_are_read():
    """ai-edge-quantizer's buffers say where in the file their bytes are: TensorFlow's weights,
    rounded.
    """
    floats = constants(reader.read(DATA / "float.tflite"))
    found = constants(reader.read(DATA / "ai_edge_quantizer_int8.tflite"))
    assert floats.keys() == found.keys() and len(found) == 9
    weights = [name for name, tensor in found.items() if tensor.dtype == "int8"]
    assert len(weights) == 4
    for name in weights:
        shape = [1] * len(found[name].shape)
        shape[found[name].axis or 0] = -1
        steps = found[name].scale.reshape(shape)
        assert np.abs(found[name].data * steps - floats[name].data).max() <= 0.51 * steps.max()


def test_a_buffer_outside_the_file_is_refused():
    data = (DATA / "ai_edge_quantizer_int8.tflite").read_bytes()
    with pytest.raises(ValueError, match="a buffer lies at bytes 4560 to 4656 of 4655"):
        reader.from_bytes(data[:4655])


def test_metadata_behind_the_flatbuffer_is_read():
    """The same entry, once inside the flatbuffer and once behind it."""
    entry = metadata.entries(MODEL, metadata.make(MODEL, None, (1.0, 2.0)))
    inside = writer.to_bytes(MODEL, entry)
    model = schema.ModelT.InitFromPackedBuf(inside, 0)
    index = next(m.buffer for m in model.metadata if m.name == metadata.NAME.encode())
    contents = bytes(model.buffers[index].data)

    def with_offset(offset: int) -> bytes:
        model.buffers[index] = schema.BufferT(offset=offset, size=len(contents))
        return packed(model)

    behind = with_offset(len(with_offset(2))) + contents
    assert metadata.read_metadata(behind) == metadata.read_metadata(inside) != metadata.Metadata()


def test_absent_tensors_have_no_name():
    """TensorFlow's LSTM leaves optional inputs out."""
    model = reader.read(DATA / "lstm.tflite")
    assert model.operators[0].kind == "UNIDIRECTIONAL_SEQUENCE_LSTM"
    assert "" in model.operators[0].inputs and "" not in model.tensors
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in file_summary.inspect_file(DATA / "lstm.tflite").text()


def renamed(names: list[str]) -> bytes:
    """TensorFlow's int8 file with other tensor names."""
    model = schema.ModelT.InitFromPackedBuf((DATA / "ptq_int8.tflite").read_bytes(), 0)
    for tensor, name in zip(model.subgraphs[0].tensors, names, strict=True):
        tensor.name = name
    return packed(model)


def test_missing_and_repeated_names_are_the_same_in_reader_and_interpreter():
    count = len(reader.read(DATA / "ptq_int8.tflite").tensors)
    data = renamed(["x", "x#2", "x", *[""] * (count - 3)])
    model = reader.from_bytes(data)
    assert list(model.tensors)[:4] == ["x", "x#2", "x#2#2", "#3"]
    image = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, 2)).astype(np.int8)
    interpreter = runtime.Interpreter(data, keep_all_tensors=True)
    expected = runtime.Interpreter(DATA / "ptq_int8.tflite").run(image)
    assert tuple(interpreter.run(image)) == model.outputs
    np.testing.assert_array_equal(
        *(next(iter(run.values())) for run in (interpreter.run(image), expected))
    )
    written = {name for operator in model.operators for name in operator.outputs}
    assert written | {*model.inputs} <= {*interpreter.kept}


def test_absent_outputs_and_weights_are_inspected(tmp_path):
    model = schema.ModelT.InitFromPackedBuf((DATA / "ptq_int8.tflite").read_bytes(), 0)
    graph = model.subgraphs[0]
    graph.operators[0].inputs = np.array([graph.operators[0].inputs[0], -1, -1], np.int32)
    graph.operators[1].outputs = np.array([-1], np.int32)
    graph.outputs = np.array([-1, *graph.outputs], np.int32)
    (tmp_path / "x.tflite").write_bytes(packed(model))
    summary = file_summary.inspect_file(tmp_path / "x.tflite")
    assert summary.macs == 8 * 8 * 6 * 6 + 5 * 6, "the projection's and the Dense layer's only"
    assert "DEPTHWISE_CONV_2D" in summary.text() and len(summary.model.outputs) == 1


def test_zero_points_that_differ_are_kept(tmp_path):
    model = schema.ModelT.InitFromPackedBuf((DATA / "ptq_int8.tflite").read_bytes(), 0)
    index = model.subgraphs[0].operators[0].inputs[2]
    bias = model.subgraphs[0].tensors[index]
    bias.quantization.zeroPoint = np.arange(6)
    before = reader.read(DATA / "ptq_int8.tflite")
    after = reader.from_bytes(packed(model))
    tensor = list(after.tensors.values())[index]
    assert tensor.zero_point.tolist() == list(range(6))
    (line,) = reader.differences(before, after)
    assert f"{tensor.name!r}: zero_point 0 != [0 1 2 3 4 5]" in line
    (tmp_path / "x.tflite").write_bytes(packed(model))
    json.dumps(file_summary.inspect_file(tmp_path / "x.tflite").to_dict())


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\x1c\0\0\0PK34" + b"\0" * 64, b"not a model at all"]
)
def test_foreign_files_are_refused(tmp_path, data):
    path = tmp_path / "foreign.tflite"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="foreign.tflite is not a TFLite file"):
        reader.read(path)


def test_damaged_files_never_crash():
    """Every truncation is refused; a random damage is refused or read as some model."""
    data = writer.to_bytes(MODEL)
    for length in range(8, len(data), 211):
        with pytest.raises(ValueError, match=r"truncated|not a whole TFLite file"):
            reader.from_bytes(data[:length])
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(8, len(data), 20):
            damaged[position] = int(rng.integers(256))
        try:
            reader.from_bytes(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 0


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        reader.read(tmp_path / "none.tflite")


def test_reading_does_not_import_tensorflow(tmp_path):
    writer.write(MODEL, tmp_path / "m.tflite")
    code = (
        "import sys; import tflite_export; tflite_export.read(sys.argv[1]); "
        "assert not {'tensorflow', 'tf_keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.tflite")], check=True)


def test_a_tensor_that_is_two_outputs_has_both_names():
    (output,) = MODEL.outputs
    twice = dataclasses.replace(
        MODEL, input_keys=("x",), outputs=(output, output), output_keys=("a", "b")
    )
    found = reader.from_bytes(writer.to_bytes(twice))
    assert found.signature == (("x",), ("a", "b")) and not reader.differences(twice, found)
