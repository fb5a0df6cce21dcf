"""Reading files back: what was written, what others wrote, and what is no model at all."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export import small_network
from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.flatbuffer import reader, writer
from tflite_export.lowering import io_types

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
        "import sys; from tflite_export import parameters; parameters.read(sys.argv[1]); "
        "assert not {'tensorflow', 'tf_keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.tflite")], check=True)
