"""What targets ask, on exports, on hand-made networks and on a file of TensorFlow's converter."""

import dataclasses
import pathlib
import subprocess
import sys
import warnings

from ai_edge_litert import interpreter as litert
import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
from tests.tflite_export.kernels import kernel_cases as cases
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import targets
from tflite_export.flatbuffer import metadata, reader, writer
from tflite_export.lowering import io_types, signature

DATA = pathlib.Path(__file__).parent / "data"
NETWORK = small_network.residual_network()
layers = keras.layers


def found(name, network=NETWORK, **facts):
    return targets.violations(network, targets.find(name), metadata.Metadata(**facts))


def fixed(network=NETWORK, **fields):
    return dataclasses.replace(network, fixed_batch=True, **fields)


def per_tensor(network=NETWORK):
    weights = network.tensors["logits/weights"]
    scalar = dataclasses.replace(weights, scale=weights.scale[0], axis=None)
    return dataclasses.replace(network, tensors={**network.tensors, weights.name: scalar})


def test_every_target_says_where_its_constraints_come_from():
    for name, target in targets.TARGETS.items():
        assert target.name == name and target.title and len(target.source) > 10
    with pytest.raises(ValueError, match="target must be one of litert, .*Received: target='tpu'"):
        targets.find("tpu")


def test_the_current_runtime_takes_all():
    assert found("litert") == []


@pytest.mark.parametrize("name", ["tflite_2_14", "tflm_2023", "esp_nn"])
def test_old_runtimes_want_one_scale_of_a_dense_layer(name):
    (first, *_) = found(name, fixed())
    assert first.where == "logits" and "FULLY_CONNECTED" in first.message
    assert "QuantRule('logits/weights', ..., per_channel=False)" in first.fix
    assert [v for v in found(name, fixed(per_tensor())) if "multiple" not in v.message] == []


def test_the_version_that_counts_is_the_file_s():
    """TensorFlow's converter wrote it; a version raised by hand is not seen in its types."""
    model = reader.read(DATA / "ptq_int8.tflite")
    assert targets.violations(model, targets.find("tflite_2_14")) == []
    dense = dataclasses.replace(model.operators[-1], version=12)
    later = dataclasses.replace(model, operators=(*model.operators[:-1], dense))
    (violation,) = targets.violations(later, targets.find("tflite_2_14"))
    assert "FULLY_CONNECTED version 12 needs TensorFlow Lite 2.17.0" in violation.message


def test_esp_nn_wants_multiples_of_eight():
    network = fixed(per_tensor())
    (violation,) = found("esp_nn", network)
    assert "10 outputs of 8 inputs: both must be multiples of 8" in violation.message
    assert found("esp_nn", fixed(per_tensor(small_network.residual_network(classes=16)))) == []


def test_npus_want_a_fixed_batch_int8_borders_and_no_packed_weights():
    assert found("vela", fixed()) == found("edge_tpu", fixed()) == []
    (batch,) = found("vela")
    assert batch.where == "image" and "-1" in batch.message and "target='vela'" in batch.fix
    borders = found("vela", fixed(io_types.with_io(NETWORK, "float32", "float32")))
    assert [v.where for v in borders] == ["image_float32", "probabilities_float32"]
    assert "Export with output_type='int8'." in borders[1].fix
    packed = dataclasses.replace(NETWORK.tensors["project/weights"], dtype="int4")
    network = fixed(tensors={**NETWORK.tensors, packed.name: packed})
    (violation,) = found("vela", network)
    assert violation.where == "project/weights" and "weights='int8'" in violation.fix


def test_vela_wants_few_dimensions_and_one_grid():
    inputs = [cases.activation("x", (1, 2, 2, 2, 2), 0.5, 3)]
    inputs.append(cases.constant("shape", np.array([1, 16], np.int32)))
    network = cases.one_operator("RESHAPE", inputs, cases.activation("y", (1, 16), 0.25, 3))
    rank, grid = found("vela", fixed(network))
    assert rank.where == "x" and "5 dimensions; 4 are taken" in rank.message
    assert grid.where == "y" and "RESHAPE changes the grid" in grid.message


def test_classifiers_want_metadata_that_fits():
    floats = fixed(io_types.with_io(NETWORK, "float32", "uint8"))
    assert found("mediapipe", floats, mean=(127.5,), std=(127.5,)) == []
    (missing,) = found("mediapipe", floats)
    assert "needs its normalization" in missing.message
    (channels,) = found("mediapipe", floats, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    assert "no normalization per channel" in channels.message
    messages = [str(violation) for violation in found("mediapipe", fixed())]
    assert len(messages) == 2 and "take uint8 or float32 images, not int8" in messages[0]
    assert "take uint8 or float32 scores, not int8" in messages[1]
    two = fixed(io_types.with_io(small_student_network(), "uint8", "float32"))
    assert "3 channels, not [1, 8, 8, 2]" in str(found("mediapipe", two)[0])


def small_student_network():
    image = dataclasses.replace(NETWORK.tensors["image"], shape=(1, 8, 8, 2))
    return dataclasses.replace(NETWORK, tensors={**NETWORK.tensors, "image": image})


def test_an_export_for_a_target_is_refused_with_the_way_out(tmp_path):
    student = small_student.student()
    before = [weight.numpy() for weight in student.weights]
    path = tmp_path / "x.tflite"
    with pytest.raises(ValueError, match=r"QuantRule\('logits', ..., per_channel=False\)") as error:
        tflite_export.export(student, path, target="tflite_2_14")
    assert "Received: target='tflite_2_14'." in str(error.value)
    with pytest.raises(ValueError, match="packed INT4"):
        tflite_export.export(student, path, target="vela", weights="int4")
    with pytest.raises(ValueError, match="target must be one of"):
        tflite_export.export(student, path, target="phone")
    assert not list(tmp_path.iterdir())
    for weight, old in zip(student.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_an_export_for_vela_has_a_fixed_batch(tmp_path):
    student = small_student.student()
    exported = tflite_export.export(student, tmp_path / "x.tflite", target="vela")
    assert (exported.input_type, exported.output_type) == ("int8", "int8")
    file = reader.read(exported.path)
    assert file.fixed_batch and targets.violations(file, targets.find("vela")) == []
    details = litert.Interpreter(exported.path).get_input_details()[0]
    assert details["shape_signature"].tolist() == [1, 8, 8, 2]
    open_batch = tflite_export.export(student, tmp_path / "y.tflite")
    assert not reader.read(open_batch.path).fixed_batch
    assert tflite_export.open_exported(student, exported.path).deployed.fixed_batch
    codes = [litert_run(path) for path in (exported.path, open_batch.path)]
    np.testing.assert_array_equal(*codes)


def litert_run(path):
    interpreter = litert.Interpreter(path)
    interpreter.allocate_tensors()
    image = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, 2)).astype(np.int8)
    return interpreter.get_signature_runner()(image=image)["logits"]


def test_signature_names_are_keras_names_and_tensors_keep_theirs(tmp_path):
    """The keys that TensorFlow's converter gives the same float model."""
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    own, theirs = (
        litert.Interpreter(str(path)).get_signature_list()["serving_default"]
        for path in (exported.path, DATA / "float.tflite")
    )
    assert own == theirs == {"inputs": ["image"], "outputs": ["logits"]}
    assert exported.deployed.inputs == ("image_quantize",)
    for kind in ("uint8", "float32"):
        exported = tflite_export.export(
            small_student.student(), tmp_path / "x.tflite", input_type=kind, output_type=kind
        )
        assert litert.Interpreter(exported.path).get_signature_list()["serving_default"] == theirs


def test_signature_names_of_several_inputs_and_of_split_activations():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    x = layers.Dense(4, name="hidden", activation="relu")(layers.Concatenate()([left, right]))
    shared = layers.Dense(3, name="shared")
    outputs = [
        layers.Dense(3, activation="softmax", name="probabilities")(x),
        layers.Softmax(name="soft")(layers.Dense(3, name="logits")(x)),
        layers.Reshape((3, 1), name="column")(layers.Dense(3, name="row")(x)),
        shared(x),
        shared(layers.ReLU(name="other")(x)),
    ]
    model = keras.Model([left, right], outputs)
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(".*")])
    inputs, outputs = signature.keys(student)
    assert inputs == ("left", "right")
    assert outputs == ("probabilities", "soft", "column", "shared", "shared_1")


def test_signature_names_are_read_back_and_compared():
    named = dataclasses.replace(NETWORK, input_keys=("photo",), output_keys=("classes",))
    again = reader.from_bytes(writer.to_bytes(named))
    assert again.signature == (("photo",), ("classes",))
    assert reader.differences(named, again) == []
    (line,) = reader.differences(named, NETWORK)
    assert "signature" in line and "photo" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "uint8 or float32 images, not int8"),
        ({"input_type": "uint8"}, "uint8 or float32 scores, not int8"),
        ({"input_type": "float32", "output_type": "float32"}, "a float32 image needs its norm"),
    ],
)
def test_labels_beside_a_border_that_their_readers_refuse_are_warned_of(
    tmp_path, arguments, message
):
    labels = ["a", "b", "c", "d", "e"]
    with pytest.warns(UserWarning, match=message):
        tflite_export.export(
            small_student.student(), tmp_path / "x.tflite", labels=labels, **arguments
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite_export.export(
            small_student.student(),
            tmp_path / "x.tflite",
            labels=labels,
            input_type="float32",
            output_type="float32",
            normalization=(127.5, 127.5),
        )


def test_inspection_lists_what_a_target_does_not_take(tmp_path):
    path = tmp_path / "x.tflite"
    writer.write(NETWORK, path)
    command = [sys.executable, "-m", "tflite_export.inspect", str(path)]
    run = subprocess.run([*command, "--target=esp_nn"], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout.splitlines()[0].endswith("ESP32-S3: 3 violations")
    assert "  logits: 10 outputs of 8 inputs" in run.stdout
    run = subprocess.run([*command, "--target=litert"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "nothing to change" in run.stdout
