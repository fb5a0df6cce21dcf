"""The written file: what the interpreter and the schema see, and how writing fails."""

import dataclasses
import errno
import os
import time

from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
import numpy as np
import pytest

from tests.tflite_export import small_network
from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export import deployed as deployed_lib
from tflite_export import kernels
from tflite_export.flatbuffer import operator_options, writer
from tflite_export.twin import integer_twin as twin_lib

MODEL = small_network.residual_network()


def test_interpreter_sees_names_scales_and_signature():
    interpreter = litert.Interpreter(model_content=writer.to_bytes(MODEL))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["probabilities"]}
    }
    details = {entry["name"]: entry for entry in interpreter.get_tensor_details()}
    for name, tensor in MODEL.tensors.items():
        assert tuple(details[name]["shape"]) == tensor.shape
        if tensor.scale is not None:
            parameters = details[name]["quantization_parameters"]
            np.testing.assert_array_equal(parameters["scales"], np.reshape(tensor.scale, (-1,)))
            assert set(parameters["zero_points"]) == {tensor.zero_point}
            if tensor.axis is not None:
                assert parameters["quantized_dimension"] == tensor.axis


def test_signature_runner_equals_the_twin():
    codes = cases.random_codes(np.random.default_rng(0), MODEL, 1)
    runner = litert.Interpreter(model_content=writer.to_bytes(MODEL)).get_signature_runner(
        "serving_default"
    )
    expected = twin_lib.IntegerTwin(MODEL).run_codes(codes)["probabilities"]
    np.testing.assert_array_equal(runner(**codes)["probabilities"], expected.numpy())


def test_writing_is_deterministic():
    assert writer.to_bytes(MODEL) == writer.to_bytes(small_network.residual_network())


def test_xnnpack_takes_the_network():
    """All operators but SOFTMAX: the default interpreter is XNNPACK's arithmetic, which the single
    twin promises."""
    interpreter = litert.Interpreter(model_content=writer.to_bytes(MODEL))
    interpreter.allocate_tensors()
    kinds = [entry["op_name"] for entry in interpreter._get_ops_details()]
    assert "DELEGATE" in kinds
    original = len(MODEL.operators)
    assert kinds[original:].count("DELEGATE") == 1


def test_versions_and_minimum_runtime():
    model = schema.ModelT.InitFromPackedBuf(writer.to_bytes(MODEL), 0)
    found = {
        operator_options.enum_name(schema.BuiltinOperator, code.builtinCode): code.version
        for code in model.operatorCodes
    }
    # int8 versions of op_version.cc; FULLY_CONNECTED with one scale per channel is version 12, of
    # TensorFlow 2.17.
    assert found == {
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "ADD": 2,
        "PAD": 2,
        "MAX_POOL_2D": 2,
        "MEAN": 2,
        "FULLY_CONNECTED": 12,
        "SOFTMAX": 2,
    }
    entry = next(m for m in model.metadata if m.name == b"min_runtime_version")
    assert bytes(model.buffers[entry.buffer].data).rstrip(b"\0") == b"2.17.0"


def test_constants_are_aligned():
    data = writer.to_bytes(MODEL)
    for tensor in MODEL.tensors.values():
        if tensor.data is not None and tensor.data.size > 32:
            assert data.find(tensor.data.tobytes()) % writer.BUFFER_ALIGNMENT == 0


def test_int4_takes_half_the_bytes():
    weights = np.random.default_rng(0).integers(-7, 8, (64, 3, 3, 64)).astype(np.int8)

    def size(dtype: str) -> int:
        scale = np.full(64, 0.01, np.float32)
        inputs = [
            cases.activation("x", (1, 4, 4, 64)),
            cases.constant("w", weights, scale, axis=0, dtype=dtype),
            cases.constant("b", np.zeros(64, np.int32), scale * np.float32(0.05), axis=0),
        ]
        return len(
            writer.to_bytes(
                cases.one_operator("CONV_2D", inputs, cases.activation("y", (1, 4, 4, 64)))
            )
        )

    assert size("int8") - size("int4") == weights.size // 2


def test_further_metadata_is_written():
    model = schema.ModelT.InitFromPackedBuf(writer.to_bytes(MODEL, {"labels": b"cat\ndog"}), 0)
    entry = next(m for m in model.metadata if m.name == b"labels")
    assert bytes(model.buffers[entry.buffer].data) == b"cat\ndog"


def test_write_replaces_atomically(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    size = writer.write(MODEL, path)
    assert path.stat().st_size == size
    assert path.read_bytes() == writer.to_bytes(MODEL)
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(
        OSError, match=r"Cannot write the .tflite file \(No space left on device\).*model.tflite"
    ):
        writer.write(MODEL, path)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert path.read_bytes() == b"old"


def test_unwritable_path_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Cannot write the .tflite file"):
        writer.write(MODEL, tmp_path / "missing" / "model.tflite")
    with pytest.raises(OSError, match="Cannot write the .tflite file"):
        writer.write(MODEL, tmp_path)
    assert os.listdir(tmp_path) == []


def changed(name: str, /, **fields) -> deployed_lib.DeployedModel:
    tensors = dict(MODEL.tensors)
    tensors[name] = dataclasses.replace(tensors[name], **fields)
    return dataclasses.replace(MODEL, tensors=tensors)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed("stem", dtype="int7"), "'stem'.*dtype must be one of.*int7"),
        (changed("stem", name="root"), "'root' is listed under the name 'stem'"),
        (changed("stem", scale=np.float32(0.0)), "finite and positive"),
        (changed("stem", scale=np.float32(np.nan)), "finite and positive"),
        (changed("stem/weights", axis=1), "one scale per channel"),
        (
            changed("stem/weights", dtype="int4", data=np.full((8, 3, 3, 3), 9, np.int8)),
            r"int4 codes lie in -8..7",
        ),
        (changed("stem/weights", shape=(8, 3, 3, 4)), "its data has shape"),
        (changed("stem/bias", data=np.zeros(8, np.int64)), "data must be int32"),
        (
            dataclasses.replace(MODEL, outputs=("nothing",)),
            r"No operator produces the outputs \['nothing'\]",
        ),
        (dataclasses.replace(MODEL, inputs=("nothing",)), r"no tensors \['nothing'\]"),
        (
            dataclasses.replace(MODEL, operators=MODEL.operators[1:]),
            r"\['stem'\], which nothing before it produces",
        ),
        (
            dataclasses.replace(
                MODEL, operators=(dataclasses.replace(MODEL.operators[0], kind="LSTM"),)
            ),
            "Cannot write operator 'LSTM'",
        ),
    ],
)
def test_contradictory_records_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        writer.to_bytes(model)


def test_what_can_be_written_has_a_twin():
    assert set(operator_options.OPTIONS) == set(kernels.KERNELS)


def test_options_are_checked():
    operator = dataclasses.replace(MODEL.operators[0], options={"padding": "same"})
    with pytest.raises(ValueError, match="padding must be one of"):
        writer.to_bytes(dataclasses.replace(MODEL, operators=(operator, *MODEL.operators[1:])))


def test_sixty_million_weights_are_written_quickly():
    """Copied as blocks: element by element this would take minutes."""
    weights = np.zeros((8192, 7500), np.int8)
    scale = np.full(8192, 0.01, np.float32)
    inputs = [cases.activation("x", (1, 7500)), cases.constant("w", weights, scale, axis=0)]
    start = time.process_time()
    data = writer.to_bytes(
        cases.one_operator("FULLY_CONNECTED", inputs, cases.activation("y", (1, 8192)))
    )
    assert len(data) > weights.size
    assert time.process_time() - start < 10, "far above the 0.2 s it takes"
