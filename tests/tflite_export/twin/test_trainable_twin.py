import numpy as np
import pytest

from tests.integration import exactness
from tests.tflite_export import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.lowering import builder

IMAGES = small_student.images(192)
# Any fixed function of the images that a network can learn.
LABELS = (IMAGES.mean((1, 2)) @ np.array([[1, 0, -1, 0.5, 0.2], [0, 1, 0.3, -1, 0.4]])).argmax(-1)


def compiled(student, *arguments, **named):
    twin = tflite_export.TrainableTwin(student, *arguments, **named)
    twin.compile(
        keras.optimizers.Adam(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return twin


def values(variables):
    return {variable.name: variable.numpy().copy() for variable in variables}


def differing(student, images=IMAGES):
    """Codes of a tensor in which student and integer twin differ, of all tensors the most."""
    return max(int((gap > 0).sum()) for gap in exactness.student_lsb(student, images).values())


# XNNPACK's ADD has 20-bit multipliers: a sum within 2^-12 of a tie may go the other way. Of 74,000
# sums.
TIES = 20


def test_a_last_epoch_trains_what_is_deployed(tmp_path):
    student = small_student.make_student(4, 4)
    assert differing(student) > 1_000  # what a training does not see
    twin = compiled(student)
    assert differing(student) <= TIES
    trained, kept = values(student.trainable_variables), values(student.non_trainable_variables)
    losses = twin.fit(IMAGES, LABELS, epochs=3, batch_size=32, verbose=0).history["loss"]
    assert losses[2] < 0.9 * losses[0]
    for name, value in trained.items():
        assert np.any(student_value(student, name) != value), f"{name} did not train"
    for name, value in kept.items():
        np.testing.assert_array_equal(
            student_value(student, name), value
        )  # moving statistics are frozen

    exported = tflite_export.export(student, tmp_path / "x.tflite", round_biases=False)
    gaps = exactness.student_lsb(student, IMAGES)
    assert (gaps.pop("add_quantize") > 0).sum() <= TIES
    assert not any(gap.any() for gap in gaps.values())
    np.testing.assert_array_equal(exported.twin(IMAGES).numpy(), student(IMAGES).numpy())
    # `evaluate` is what the phone does.
    exported.twin.compile(loss=twin.loss)
    assert twin.evaluate(IMAGES, LABELS, verbose=0) == pytest.approx(
        exported.twin.evaluate(IMAGES, LABELS, verbose=0)
    )


def student_value(student, name):
    return next(variable for variable in student.variables if variable.name == name).numpy()


def test_updates_smaller_than_a_bias_step_add_up():
    """Straight through the rounding: at a learning rate whose steps are below half a grid step,
    biases still move."""
    student = small_student.make_student(4, 4)
    twin = tflite_export.TrainableTwin(student)
    bias = student.get_layer("logits").layer.bias
    deployed = builder.deploy(student).tensors["logits_kernel_bias"]
    # The gradient of the sum of all outputs by a bias is 1 inside the output's grid, so each step
    # is -rate.
    rate = 0.3 * float(deployed.scale.min())
    for layer in student.layers:
        layer.trainable = layer.name == "logits"
    twin.compile(keras.optimizers.SGD(rate), loss=lambda _, outputs: keras.backend.sum(outputs, -1))
    start = bias.numpy().copy()
    twin.fit(IMAGES[:8], LABELS[:8], epochs=10, batch_size=8, verbose=0)
    assert np.all(bias.numpy() < start)
    step = builder.deploy(student).tensors["logits_kernel_bias"].scale
    steps = bias.numpy() / step
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_batch_statistics_and_dropout_are_off_in_fit():
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    x = keras.layers.Dropout(0.9)(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    model = exactness.randomize(
        keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    )
    student = exactness.student_of(model)
    twin = tflite_export.TrainableTwin(student)
    twin.compile(keras.optimizers.SGD(0.0), loss="mse")
    images = exactness.images_for(model, 16)
    targets = np.zeros((16, 2), np.float32)
    seen = twin.fit(images, targets, batch_size=16, verbose=0).history["loss"][0]
    assert seen == pytest.approx(np.square(deploy_outputs(student, images)).mean(), rel=1e-5)


def deploy_outputs(student, images):
    return tflite_export.IntegerTwin(builder.deploy(student))(images).numpy()


def test_probabilities_are_rounded_in_evaluate_and_not_in_fit():
    keras.utils.set_random_seed(0)
    image = keras.Input((6,))
    model = exactness.randomize(
        keras.Model(image, keras.layers.Dense(3, activation="softmax")(image))
    )
    student = exactness.student_of(model)
    twin = tflite_export.TrainableTwin(student)
    twin.compile(keras.optimizers.SGD(0.0), loss="sparse_categorical_crossentropy")
    images = exactness.images_for(model, 8)
    # Logits far apart: a probability below 1/512 becomes 0, whose logarithm Keras clips at 1e-7 and
    # gives no gradient.
    images, labels = 20 * images, student(20 * images).numpy().argmin(-1)
    with pytest.warns(UserWarning, match="far outside the range"):  # as they are meant to be
        fitted = twin.fit(images, labels, verbose=0).history["loss"][0]
    assert abs(fitted - twin.evaluate(images, labels, verbose=0)) > 1e-4


def test_a_teacher_and_methods_work_as_in_training():
    student = small_student.make_student(4, 4)
    twin = compiled(student, small_student.float_model(), [tf_fpq.KnowledgeDistillation()])
    assert "kd_loss" in twin.fit(IMAGES[:64], LABELS[:64], verbose=0).history
    assert differing(student) <= TIES


def test_a_shared_bias_stays_as_it_is():
    conv = keras.layers.Conv2D(2, 1, name="conv")
    image = keras.Input((4, 4, 2))
    model = exactness.randomize(keras.Model(image, conv(keras.layers.ReLU()(conv(image)))))
    student = exactness.student_of(model)
    bias = student.get_layer("conv").layer.bias.numpy().copy()
    tflite_export.TrainableTwin(student)
    np.testing.assert_array_equal(student.get_layer("conv").layer.bias.numpy(), bias)


def test_several_steps_at_once_are_refused():
    twin = tflite_export.TrainableTwin(small_student.make_student())
    with pytest.raises(ValueError, match="steps_per_execution must be 1"):
        twin.compile(loss="mse", steps_per_execution=4)
