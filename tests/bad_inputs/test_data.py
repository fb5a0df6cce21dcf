"""Images, labels and weights, in calibration, training, verification and comparison."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.bad_inputs.checks import refuses, warns
from tests.tf_fpq.small_student import LOSS, images, labels, pair
from tests.tflite_export import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export

FEW = small_student.images(8)


def spoiled(array, value=np.nan):
    array = np.array(np.asarray(array))
    array.flat[3] = value
    return array


def calibrate(data):
    return lambda m: tf_fpq.calibrate(m.student, data(), verbose=0)


def fit(*arrays, **arguments):
    return lambda m: m.trainer.fit(*(array() for array in arrays), verbose=0, **arguments)


def verify(data):
    return lambda m: tflite_export.verify(
        m.small, m.exported, data(), kernels=("xnnpack",), tensor_images=0, verbose=0
    )


def compare(data):
    return lambda m: tflite_export.compare_files(m.tflite, m.tflite, data(), verbose=0)


def batched(x, y, size=8):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


CALIBRATION = {
    "none": (lambda: images()[:0], "images is empty"),
    "nan": (lambda: spoiled(images()), "images contain NaN or infinity"),
    "infinity": (lambda: spoiled(images(), np.inf), "images contain NaN or infinity"),
    "text": (lambda: np.full((4, 8, 8, 1), "a"), "images must be numbers"),
    "objects": (lambda: np.full((4, 8, 8, 1), None), "images must be numbers"),
    "channels": (lambda: np.repeat(images(), 3, -1), "images must have shape"),
    "one image": (lambda: images()[0], "images must have shape"),
    "flat": (lambda: images().reshape(32, -1), "images must have shape"),
    "a number": (lambda: 3.0, "images must be an array"),
    "None": (lambda: None, "images must be an array"),
    "a path": (lambda: "images.npy", "images must be an array"),
    "other name": (lambda: {"picture": images()}, "images must have an array for each input"),
    "two arrays": (lambda: (images(), images(), labels()), "images must be an array"),
    "not batched": (
        lambda: tf.data.Dataset.from_tensor_slices(images()),
        "images must have shape",
    ),
    "empty dataset": (lambda: batched(images(), labels()).take(0), "images is empty"),
}

FIT = {
    "channels": (fit(lambda: np.repeat(images(), 3, -1), labels), "x must be numbers of shape"),
    "rank": (fit(lambda: images()[..., 0], labels), "x must be numbers of shape"),
    "sides": (fit(lambda: images()[:, :4], labels), "x must be numbers of shape"),
    "text": (fit(lambda: np.full((32, 8, 8, 1), "a"), labels), "x must be numbers"),
    "names": (fit(images, lambda: np.full(32, "cat")), "y must be numbers"),
    "one-hot": (fit(images, lambda: np.eye(4)[labels()]), "y must hold a class number"),
    "class 4 of 4": (fit(images, lambda: labels() + 1), "y must be class numbers from 0 to 3"),
    "class -1": (fit(images, lambda: labels() - 1), "y must be class numbers from 0 to 3"),
    "class nan": (fit(images, lambda: spoiled(labels().astype(float))), "y must be finite"),
    "class 9 in a dataset": (
        fit(lambda: batched(images(), np.full(32, 9))),
        "y must be class numbers from 0 to 3",
    ),
    "one-hot in a dataset": (
        fit(lambda: batched(images(), np.eye(4)[labels()])),
        "y must hold a class number",
    ),
    "not batched": (
        fit(lambda: tf.data.Dataset.from_tensor_slices((images(), labels()))),
        "x must be numbers of shape",
    ),
    "fewer labels": (fit(images, lambda: labels()[:20]), "as many images as labels"),
    "no images": (
        fit(lambda: images()[:0], lambda: labels()[:0]),
        "at least one. Received: 0 images",
    ),
    "no labels": (fit(images), "y must be given"),
    "nan images": (
        fit(lambda: spoiled(images()), labels),
        "DivergenceError.*the images of this batch contain NaN",
    ),
    "nan weights": (
        fit(images, labels, sample_weight=spoiled(np.ones(32, np.float32))),
        "DivergenceError.*the sample weights of this batch contain NaN",
    ),
}

VERIFICATION = {
    "none": (lambda: FEW[:0], "images is empty"),
    "nan": (lambda: spoiled(FEW), "images contain NaN or infinity"),
    "channels": (lambda: FEW[..., :1], "images must be numbers of shape"),
    "one image": (lambda: FEW[0], "images must be numbers of shape"),
    "text": (lambda: np.full(FEW.shape, "a"), "images must be numbers of shape"),
    "objects": (lambda: np.full(FEW.shape, None), "images must be numbers of shape"),
    "a number": (lambda: 3.0, "images must be numbers of shape"),
    "None": (lambda: None, "images must be numbers of shape"),
    "class -1": (lambda: (FEW, np.full(8, -1)), "labels must be class numbers 0 to 4"),
    "class 5 of 5": (lambda: (FEW, np.full(8, 5)), "labels must be class numbers 0 to 4"),
    "class 0.5": (lambda: (FEW, np.full(8, 0.5)), "labels must be class numbers 0 to 4"),
    "class nan": (lambda: (FEW, np.full(8, np.nan)), "labels must be class numbers 0 to 4"),
    "names": (lambda: (FEW, np.full(8, "cat")), "labels must be class numbers"),
    "fewer labels": (lambda: (FEW, np.zeros(3)), "labels must be one per image"),
    "four parts": (lambda: (FEW, FEW, FEW, FEW), "array or a pair"),
    "not batched": (
        lambda: tf.data.Dataset.from_tensor_slices((FEW, np.zeros(8))),
        "images must be numbers of shape",
    ),
}


def parametrized(table):
    return pytest.mark.parametrize(("made_data", "message"), table.values(), ids=table.keys())


@parametrized(CALIBRATION)
def test_calibration_refuses(made, made_data, message):
    refuses(functools.partial(calibrate(made_data), made), message)


@pytest.mark.parametrize(("call", "message"), FIT.values(), ids=FIT.keys())
def test_fit_refuses(made, call, message):
    refuses(functools.partial(call, made), message)


@parametrized(VERIFICATION)
def test_verification_refuses(made, made_data, message):
    refuses(functools.partial(verify(made_data), made), message)


# Without images a pair runs on random codes.
@parametrized({name: row for name, row in VERIFICATION.items() if name != "None"})
def test_comparison_refuses(made, made_data, message):
    refuses(functools.partial(compare(made_data), made), message)


def bytes_of_images():
    return (255 * images()).astype(np.uint8)


def test_bytes_in_calibration_are_pointed_out():
    _, student = pair()
    warns(
        lambda: tf_fpq.calibrate(student, bytes_of_images(), verbose=0),
        "are uint8, 0 to 255, and the student has no Rescaling",
    )


def test_bytes_in_fit_are_pointed_out(made):
    made.trainer.make_train_function(force=True)
    warns(
        lambda: made.trainer.fit(bytes_of_images(), labels(), verbose=0),
        "images are far outside the range of the student's input",
    )


def test_a_student_that_was_not_calibrated_is_pointed_out(made):
    student = tf_fpq.quantize_model(made.teacher, [tf_fpq.QuantRule()])
    warns(lambda: tf_fpq.QatModel(student), "^Not calibrated: ")


def spoil(model):
    model.get_layer("stem").kernel.assign(spoiled(model.get_layer("stem").kernel))


def test_a_teacher_of_nan_does_not_teach():
    """Its outputs may be finite: some kernels' ReLU makes a zero of NaN."""
    teacher, student = pair()
    spoil(teacher)
    refuses(
        lambda: tf_fpq.QatModel(student, teacher, [tf_fpq.KnowledgeDistillation()]),
        "teacher must have finite weights.*stem",
    )


def test_a_learning_rate_of_nan_stops_the_training():
    _, student = pair()
    model = tf_fpq.QatModel(student)
    model.compile(keras.optimizers.SGD(float("nan")), LOSS, run_eagerly=True)
    refuses(lambda: model.fit(images(), labels(), verbose=0), "learning rate is NaN or infinite")


def test_a_float_network_of_nan_is_not_quantized():
    teacher, _ = pair()
    spoil(teacher)
    refuses(lambda: tf_fpq.quantize_model(teacher, [tf_fpq.QuantRule()]), "stem")
