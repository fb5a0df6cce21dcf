"""Data that would train the wrong thing, or end in an error from inside TensorFlow: one sentence
each."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import KnowledgeDistillation
from tf_fpq.training import data_checks
from tf_fpq.training.qat_model import QatModel

ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def student() -> keras.Model:
    return pair()[1]


def as_dataset(x, y) -> tuple:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8), None


def as_arrays(x, y) -> tuple:
    return x, y


@pytest.mark.parametrize("form", [as_arrays, as_dataset])
@pytest.mark.parametrize(
    ("x", "y", "loss", "message"),
    [
        (
            images()[..., 0],
            labels(),
            LOSS,
            r"x must be numbers of shape \(None, 8, 8, 1\).*Received: x of shape \(.*, 8, 8\)",
        ),
        (np.repeat(images(), 3, -1), labels(), LOSS, r"x must be .* Received: x of shape .*8, 3\)"),
        (images()[:, :4], labels(), LOSS, r"x must be numbers of shape .*4, 8, 1\)"),
        (images(), np.array(["cat"] * 32), LOSS, "y must be numbers.*type string"),
        (images(), np.eye(4)[labels()], LOSS, "y must hold a class number for each image.*One-hot"),
        (
            images(),
            np.eye(4)[labels()],
            "sparse_categorical_crossentropy",
            "y must hold a class number",
        ),
        (images(), labels(), ONE_HOT, "y must be one-hot"),
    ],
)
def test_shapes_and_types(student, x, y, loss, message, form):
    with pytest.raises(ValueError, match=message):
        data_checks.check(student, loss, *form(x, y))


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (labels() + 1, LOSS, "y must be class numbers from 0 to 3.*Received: y from 1 to 4"),
        (labels() - 1, LOSS, "y must be class numbers.* y from -1 to 2"),
        (np.full((32, 4), np.nan), ONE_HOT, "y must be finite.*NaN"),
    ],
)
def test_values_of_arrays(student, y, loss, message):
    with pytest.raises(ValueError, match=message):
        data_checks.check(student, loss, images(), y)


@pytest.mark.parametrize("form", [as_arrays, as_dataset])
@pytest.mark.parametrize(
    ("y", "loss"),
    [
        (labels(), LOSS),
        (labels()[:, None], LOSS),
        (labels().astype(np.float32), LOSS),
        (np.eye(4)[labels()], ONE_HOT),
        (np.zeros((32, 4)), "mse"),
        (labels(), lambda y, p: 0.0 * p),
    ],
)
def test_what_keras_takes_passes(student, y, loss, form):
    data_checks.check(student, loss, *form(images(), y))


def test_views_and_unknown_shapes_pass(student):
    views = {"weak": images(), "strong": images()}
    data_checks.check(student, LOSS, *as_dataset(views, labels()))
    unknown = tf.data.Dataset.from_generator(lambda: iter([]), output_types=(tf.float32, tf.int32))
    data_checks.check(student, LOSS, unknown, None)
    data_checks.check(student, LOSS, iter([]), None)


def test_labels_of_a_dataset_that_are_no_classes_are_explained(student):
    model = QatModel(student)
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="y must be class numbers from 0 to 3.*Received: y from 9"):
        model.fit(as_dataset(images(), np.full(32, 9))[0], verbose=0)


def test_such_labels_are_explained_under_op_determinism_too(student):
    # As TensorFlow 2.21 says it; op determinism cannot be switched off again in a process.
    words = (
        "indices[0] = 9 is not in [0, 4)\n\t [[{{node sparse_categorical_crossentropy/"
        "SparseSoftmaxCrossEntropyWithLogits/GatherV2}}]] [Op:__inference_train_function_256871]"
    )
    with pytest.raises(ValueError, match="from 0 to 3.*Received: y from 9"):
        with data_checks.explained(student):
            raise tf.errors.InvalidArgumentError(None, None, words)


def test_images_far_outside_the_calibrated_range_are_pointed_out_once():
    _, student = pair()
    model = QatModel(student)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    bytes_ = (255 * images()).astype(np.uint8)
    with pytest.warns(UserWarning, match="far outside the range .*square is 1[45]") as found:
        model.fit(bytes_, labels(), 16, 2, verbose=0)
    assert len([w for w in found if "far outside" in str(w.message)]) == 1


def test_without_a_loss_no_labels_are_needed():
    """As docs/two-views.md has it: the losses of the methods are all there is."""
    teacher, student = pair()
    model = QatModel(student, teacher, [KnowledgeDistillation()])
    model.compile(keras.optimizers.SGD(0.01))
    history = model.fit(images(8), verbose=0).history
    assert history["loss"] == pytest.approx(history["kd_loss"], rel=1e-5)
    data_checks.check(student, None, images(8), None)
    with pytest.raises(ValueError, match="y must be given"):
        data_checks.check(student, LOSS, images(8), None)
