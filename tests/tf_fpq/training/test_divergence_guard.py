"""A step that is not finite stops the training, changes nothing, and is explained."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, bytes_of, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.consistency import ConsistencyRegularization
from tf_fpq.methods.distillation import KnowledgeDistillation
from tf_fpq.training.divergence_guard import DivergenceError
from tf_fpq.training.qat_model import QatModel


def data(batch: int, **changes) -> tf.data.Dataset:
    """Four batches of 8; `changes` replace an array of batch number `batch` by NaN."""
    arrays = {
        "images": images().reshape(4, 8, 8, 8, 1),
        "labels": np.eye(4, dtype=np.float32)[labels()].reshape(4, 8, 4),
        "sample_weight": np.ones((4, 8), np.float32),
    }
    for name in changes:
        arrays[name][batch].flat[3] = changes[name]
    return tf.data.Dataset.from_tensor_slices(tuple(arrays.values()))


def stopped(model: QatModel, dataset: tf.data.Dataset, optimizer=None, **arguments):
    """The error, and the weights as they were after the steps before it."""
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.01, momentum=0.9), loss, **arguments)
    with pytest.raises(DivergenceError) as caught:
        model.fit(dataset, epochs=2, verbose=0)
    return caught.value


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        pytest.param({"steps_per_execution": 4}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
    ],
)
def test_a_batch_with_nan_stops_before_it_changes_anything(arguments):
    results = []
    broken = data(2, images=np.nan)
    for steps in (2, 4):
        _, student = pair()
        method = ConsistencyRegularization(ramp_up=0)
        model = QatModel(student, methods=[method])
        if steps == 2:
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
            model.fit(broken.take(2), verbose=0)
        else:
            error = stopped(model, broken, **arguments)
            assert (error.step, error.layer) == (3, None)
            assert "the images of this batch contain NaN" in str(error)
            assert "the weights are those of before it" in str(error)
        variables = [*student.weights, *method.weights, *model.optimizer.variables]
        results.append([variable.numpy() for variable in variables])
    for one, other in zip(*results, strict=True):
        if "jit_compile" in arguments:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        else:
            np.testing.assert_array_equal(one, other)


def test_what_is_wrong_with_a_batch_is_named():
    teacher, student = pair()
    model = QatModel(student, teacher, [KnowledgeDistillation()])
    before = bytes_of(student)
    for name, words in (("labels", "the labels"), ("sample_weight", "the sample weights")):
        error = stopped(model, data(0, **{name: np.nan}))
        assert (error.step, error.layer) == (1, None) and words in str(error)
    error = stopped(model, data(0), keras.optimizers.SGD(float("inf")))
    assert (error.step, error.layer) == (1, None) and "learning rate" in str(error)
    # A teacher whose weights are no numbers is refused before; one whose sums overflow is not.
    kernel = teacher.get_layer("logits").kernel
    kernel.assign(np.full(kernel.shape, np.finfo(np.float32).max))
    model.set_teacher(teacher)
    error = stopped(model, data(0))
    assert error.layer is None and "the teacher's outputs" in str(error)
    assert bytes_of(student) == before


def test_the_layer_whose_weights_are_no_numbers_is_named():
    _, student = pair()
    student.get_layer("pointwise_bn").gamma.assign(np.full(8, np.inf))
    error = stopped(QatModel(student), data(0))
    assert error.layer == "pointwise_bn" and "weights" in str(error)


def test_the_layer_whose_outputs_overflow_is_named():
    _, student = pair()
    stem = student.get_layer("stem")
    # Codes of 7, which are 1.4e38 each: nine of them times the pixels exceed float32.
    stem.layer.kernel.assign(1.4e38 * tf.ones_like(stem.layer.kernel))
    step_size = stem.quantized_weights()[0][3]["step_size"]
    step_size.assign(2e37 * tf.ones_like(step_size))
    error = stopped(QatModel(student), data(0))
    assert error.layer == "stem_bn" and "overflow" in str(error)


def test_the_layer_at_which_gradients_overflow_is_named():
    _, student = pair()
    student.get_layer("depthwise_bn").gamma.assign(np.full(8, 1e-30))
    student.get_layer("pointwise").layer.kernel.assign(
        1e30 * student.get_layer("pointwise").layer.kernel
    )
    step = student.get_layer("pointwise").quantized_weights()[0][3]["step_size"]
    step.assign(1e30 * step)
    error = stopped(QatModel(student), data(0))
    assert error.layer in ("depthwise_bn", "pointwise_bn", "pointwise"), str(error)


def test_training_goes_on_after_the_cause_is_gone():
    _, student = pair()
    model = QatModel(student)
    model.compile("sgd", LOSS)
    with pytest.raises(DivergenceError, match="step 1: the images"):
        model.train_on_batch(np.full((8, 8, 8, 1), np.nan, np.float32), labels(8))
    history = model.fit(images(), labels(), verbose=0).history
    assert np.isfinite(history["loss"]).all()
