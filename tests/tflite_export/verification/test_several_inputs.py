"""Networks of two inputs and two outputs through export, interpreter, verification and the
comparison of files."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import command_line, image_batches, model_inputs
from tflite_export.flatbuffer import reader, writer
from tflite_export.runtimes import litert
from tflite_export.verification import file_pair

layers = keras.layers
COUNT = 24
RNG = np.random.default_rng(0)
STATE = RNG.normal(0, 2, (COUNT, 6)).astype(np.float32)
IMAGE = RNG.normal(0, 1, (COUNT, 8, 8, 2)).astype(np.float32)
LABELS = np.arange(COUNT) % 3


def network() -> keras.Model:
    """`state` is the first input, and the last one that a layer reads."""
    keras.utils.set_random_seed(0)
    state, image = keras.Input((6,), name="state"), keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.Conv2D(4, 3, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Concatenate(name="both")([x, layers.Dense(4, name="of_state")(state)])
    return keras.Model(
        [state, image],
        [layers.Dense(3, name="scores")(x), layers.Dense(2, name="position")(x)],
        name="several",
    )


def quantized(model: keras.Model, images, bits: int = 8) -> keras.Model:
    result = tf_fpq.quantize_model(
        model, [tf_fpq.QuantRule(".*", weight_bits=bits, activation_bits=bits)]
    )
    tf_fpq.calibrate(result, images, verbose=0)
    return result


@functools.cache
def student(bits: int) -> keras.Model:
    return quantized(network(), [STATE, IMAGE], bits)


def verify(exported, images, bits=8, **arguments):
    arguments = {
        "kernels": ("xnnpack", "reference"),
        "tensor_images": 16,
        "verbose": 0,
        **arguments,
    }
    return tflite_export.verify(
        student(bits), exported, images, min_top1_agreement=0.9, **arguments
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tflite_export.export(student(8), tmp_path_factory.mktemp("several") / "x.tflite")


@pytest.mark.parametrize(("bits", "input_type"), [(8, "int8"), (3, "float32")])
def test_the_file_is_its_twin_on_both_outputs(tmp_path, bits, input_type):
    exported = tflite_export.export(student(bits), tmp_path / "x.tflite", input_type=input_type)
    report = verify(exported, (STATE, IMAGE), bits)
    assert report.passed and report.images == COUNT and report.tensor_images == 16
    for pair in (("twin", "xnnpack"), ("twin_double", "reference")):
        found = [c for c in report.outputs if (c.left, c.right) == pair]
        assert [c.tensor for c in found] == ["scores_quantize", "position_quantize"]
        assert [(c.codes, c.differing) for c in found] == [(COUNT * 3, 0), (COUNT * 2, 0)]
        assert report.first_diverging(*pair) is None


def test_the_files_order_is_the_students(exported):
    assert [name.removesuffix("_quantize") for name in exported.deployed.inputs] == [
        "state",
        "image",
    ]


def test_all_structures_are_the_same_images(exported):
    reference = verify(exported, (STATE, IMAGE), kernels=("xnnpack",), tensor_images=0)
    by_name = {"image": IMAGE, "state": STATE}
    dataset = tf.data.Dataset.from_tensor_slices(((STATE, IMAGE), LABELS))
    named = tf.data.Dataset.from_tensor_slices(by_name)
    for images in (
        [STATE, IMAGE],
        by_name,
        ((STATE, IMAGE), LABELS),
        (by_name, LABELS),
        dataset.batch(7),
        named.batch(7),
    ):
        report = verify(exported, images, kernels=("xnnpack",), tensor_images=0)
        assert [c.histogram for c in report.outputs] == [c.histogram for c in reference.outputs]
    labelled = verify(
        exported,
        ((STATE, IMAGE), (LABELS, np.zeros((COUNT, 2)))),
        kernels=("xnnpack",),
        tensor_images=0,
    )
    classes = student(8).predict([STATE, IMAGE], verbose=0)[0].argmax(-1)
    assert labelled.accuracy["student"] == pytest.approx((classes == LABELS).mean())
    assert not reference.accuracy
    # Of several outputs the labelled one is scores of classes.
    assert labelled.output_kinds == {"scores_quantize": "classes", "position_quantize": "values"}
    assert set(reference.output_kinds.values()) == {"values"}


def test_a_model_of_named_inputs_and_outputs_with_a_teacher(tmp_path):
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    x = layers.Add(name="sum")([layers.Dense(4, name="da")(a), layers.Dense(4, name="db")(b)])
    outputs = {"u": layers.Dense(2, name="du")(x), "v": layers.ReLU(name="relu")(x)}
    teacher = keras.Model({"b": b, "a": a}, outputs)
    images = {name: RNG.normal(0, 1, (COUNT, 5)).astype(np.float32) for name in "ab"}
    named = quantized(teacher, [images[name] for name in teacher.input_names])
    exported = tflite_export.export(named, tmp_path / "x.tflite")
    arguments = {"kernels": ("xnnpack",), "verbose": 0, "min_top1_agreement": 0.9}
    labels = np.arange(COUNT) % 2
    report = tflite_export.verify(named, exported, (images, labels), teacher=teacher, **arguments)
    assert report.passed and all(error.sqnr_db > 20 for error in report.float_errors)
    # Labels are those of the first output.
    classes = teacher.predict(images, verbose=0)["u"].argmax(-1)
    assert report.accuracy["float"] == (classes == labels).mean() > 0


def test_a_difference_in_the_second_output_is_caught(exported, tmp_path):
    found = reader.read(exported.path)
    kernel = found.tensors["position_kernel"]
    tensors = {**found.tensors, kernel.name: dataclasses.replace(kernel, data=-kernel.data)}
    path = tmp_path / "x.tflite"
    writer.write(dataclasses.replace(found, tensors=tensors), path)
    with pytest.raises(
        tflite_export.VerificationError, match="position_kernel: data differs"
    ) as caught:
        verify(dataclasses.replace(exported, path=str(path)), (STATE, IMAGE), kernels=("xnnpack",))
    outputs = [c for c in caught.value.report.outputs if (c.left, c.right) == ("twin", "xnnpack")]
    assert outputs[0].differing == 0 and outputs[1].differing > 0
    assert caught.value.report.first_diverging("twin", "xnnpack") == "position_quantize"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            IMAGE,
            "a tuple of 2 arrays, for the inputs 'state', 'image', or a dict by these names."
            " Received: one ndarray",
        ),
        ((STATE, IMAGE, IMAGE), "Received: 3 arrays"),
        ({"state": STATE}, "an array for each input, 'state', 'image'. Received: 'state'."),
        ({"state": STATE, "picture": IMAGE}, "Received: 'state', 'picture'"),
        (
            (IMAGE, STATE),
            r"input 'state' must be numbers of shape \(None, 6\).* Received: shape \(24, 8, 8, 2\)",
        ),
        ((STATE, IMAGE[..., :1]), r"input 'image' must be numbers of shape \(None, 8, 8, 2\)"),
        ((STATE[:5], IMAGE), "as many images. Received: 5 for 'state', 24 for 'image'"),
        (((STATE, IMAGE), LABELS[:3]), "one per image"),
        ((STATE[:0], IMAGE[:0]), "images is empty"),
        ((STATE * np.float32(np.nan), IMAGE), "NaN or infinity"),
    ],
)
def test_images_that_do_not_fit_name_the_input(exported, images, message):
    with pytest.raises(ValueError, match=message):
        verify(exported, images, kernels=("xnnpack",))


def test_the_interpreter_takes_its_own_order_or_names(exported):
    runner = litert.Interpreter(exported.path)
    first, second = (details["name"] for details in runner.inputs)
    in_order = runner.run((STATE, IMAGE))
    assert {name: codes.shape for name, codes in in_order.items()} == {
        "scores_quantize": (COUNT, 3),
        "position_quantize": (COUNT, 2),
    }
    by_name = runner.run({second: IMAGE, first: STATE})
    codes = runner.to_input((STATE, IMAGE))
    assert isinstance(codes, tuple) and [part.dtype for part in codes] == [np.int8, np.int8]
    for name, found in in_order.items():
        np.testing.assert_array_equal(found, by_name[name])
        np.testing.assert_array_equal(found, runner.run(codes)[name])
    with pytest.raises(
        ValueError, match=rf"input '{first}' must have shape \(None, 6\). Received: \(24, 8, 8, 2\)"
    ):
        runner.run((IMAGE, STATE))
    with pytest.raises(ValueError, match="as many images"):
        runner.run((STATE[:2], IMAGE))


def test_two_files_of_several_inputs_are_compared(exported, tmp_path):
    floats = tflite_export.export(
        student(8), tmp_path / "f.tflite", input_type="float32", output_type="uint8"
    )
    names = exported.file_model.inputs
    for images in (None, (STATE, IMAGE), dict(zip(names, (STATE, IMAGE), strict=True))):
        report = file_pair.compare_files(
            exported.path, floats.path, images, verbose=0, tensor_images=4
        )
        assert report.passed and [c.differing for c in report.outputs] == [0, 0]
        assert report.images == (COUNT if images else file_pair.RANDOM_IMAGES)
    with pytest.raises(ValueError, match="'state_quantize' must be numbers of shape"):
        file_pair.compare_files(exported.path, floats.path, (IMAGE, STATE), verbose=0)


def test_a_file_of_arrays_by_name(tmp_path):
    path = str(tmp_path / "x.npz")
    np.savez(path, state=STATE, image=IMAGE, labels=LABELS)
    images, labels = command_line.load_images(path)
    assert set(images) == {"state", "image"} and labels.tolist() == LABELS.tolist()
    np.savez(path, images=IMAGE)
    assert command_line.load_images(path).shape == IMAGE.shape
    np.savez(path, labels=LABELS)
    with pytest.raises(ValueError, match="no array 'images', nor any by the names of inputs"):
        command_line.load_images(path)


def test_arrays_in_order():
    assert model_inputs.in_order("x", ["a"]) == ("x",) and model_inputs.in_order(
        {"a": "x"}, ["a"]
    ) == ("x",)
    assert (
        model_inputs.in_order({"b": 2, "a": 1}, ["a", "b"])
        == (1, 2)
        == model_inputs.in_order([1, 2], ["a", "b"])
    )
    assert model_inputs.packed([1]) == 1 and model_inputs.packed([1, 2]) == (1, 2)
    assert image_batches.number_of(((STATE, IMAGE), LABELS), ["state", "image"]) == COUNT
