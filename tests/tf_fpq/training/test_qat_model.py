"""QatModel: plain without methods, named losses, clear errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import (
    LOSS,
    bytes_of,
    fit,
    images,
    labels,
    network,
    pair,
    student_of,
)
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import ChannelStandardizedDistillation
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.native import tracing
from tf_fpq.student_layers.quantized_layers import quantizer_variables
from tf_fpq.training.qat_model import QatModel


def test_no_method_is_the_plain_student_bit_for_bit():
    _, student = pair(regularizer=1e-3)
    with tracing.training_step():  # the operations that a QatModel uses
        fit(student)
    _, other = pair(regularizer=1e-3)
    fit(QatModel(other, step_size_learning_rate_factor=1.0))
    assert bytes_of(student) == bytes_of(other)


@pytest.mark.slow
@pytest.mark.parametrize(("onednn", "largest"), [("0", 0.0), ("1", 1e-6)])
def test_no_method_is_the_plain_student_but_for_the_rounding_of_onednn(onednn, largest):
    command = [sys.executable, "-m", "tests.tf_fpq.training.plain_training"]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) <= largest


def test_step_sizes_learn_at_a_fraction_of_the_rate():
    moves = {}
    for factor in (1.0, 0.1):
        _, student = pair()
        before = [variable.numpy() for variable in quantizer_variables(student)]
        kernel = student.get_layer("stem").layer.kernel.numpy()
        fit(QatModel(student, step_size_learning_rate_factor=factor), epochs=1, batch_size=32)
        moved = [
            variable.numpy() - old for variable, old in zip(quantizer_variables(student), before)
        ]
        moves[factor] = np.concatenate([move.ravel() for move in moved])
        moves[f"kernel {factor}"] = student.get_layer("stem").layer.kernel.numpy() - kernel
    assert np.abs(moves[1.0]).max() > 0
    np.testing.assert_allclose(moves[0.1], 0.1 * moves[1.0], atol=1e-6)
    np.testing.assert_array_equal(moves["kernel 0.1"], moves["kernel 1.0"])


def test_fpq_logs_every_loss_under_its_name_and_only_in_training():
    teacher, student = pair(regularizer=1e-3)
    model = QatModel(
        student, teacher, [FeaturePerturbation(), ChannelStandardizedDistillation(name="follow")]
    )
    history = fit(model, validation_data=(images(8), labels(8)))
    assert set(history) == {
        "loss",
        "accuracy",
        "task_loss",
        "follow_loss",
        "val_loss",
        "val_accuracy",
    }
    assert (
        history["loss"][0] > history["task_loss"][0] + history["follow_loss"][0]
    )  # and the kernels' regularization


def test_training_and_evaluation_are_those_of_the_student():
    teacher, student = pair()
    model = QatModel(
        student,
        teacher,
        tf_fpq_methods := [FeaturePerturbation(1.0), ChannelStandardizedDistillation()],
    )
    fit(model)
    assert model.methods == tf_fpq_methods
    x = images()
    np.testing.assert_array_equal(model.predict(x, verbose=0), student.predict(x, verbose=0))
    student.compile(loss=LOSS, metrics=["accuracy"])
    assert model.evaluate(x, labels(), verbose=0)[1] == student.evaluate(x, labels(), verbose=0)[1]


def test_the_teacher_is_neither_trained_nor_saved_nor_regularised():
    teacher, student = pair(regularizer=1e-3)
    model = QatModel(
        student, teacher, [FeaturePerturbation(0.5), ChannelStandardizedDistillation()]
    )
    before = bytes_of(teacher)
    fit(model)
    assert bytes_of(teacher) == before
    owned = {id(weight) for weight in model.weights}
    assert not owned & {id(weight) for weight in teacher.weights}
    assert {id(weight) for weight in student.weights} <= owned
    assert [w.name for w in model.trainable_weights] == [w.name for w in student.trainable_weights]


def test_a_student_that_was_trained_can_be_saved(tmp_path):
    teacher, student = pair()
    fit(QatModel(student, teacher, [FeaturePerturbation(0.5), ChannelStandardizedDistillation()]))
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(again(images()), student(images()))


def test_weight_decay_leaves_quantizers_alone():
    _, student = pair()
    before = [variable.numpy() for variable in quantizer_variables(student)]
    kernel = student.get_layer("stem").layer.kernel.numpy()
    model = QatModel(student, step_size_learning_rate_factor=1.0)
    model.compile(keras.optimizers.SGD(0.1, weight_decay=0.5), loss=lambda y, p: 0.0 * p[:, 0])
    model.fit(images(), labels(), epochs=1, verbose=0)
    for variable, old in zip(quantizer_variables(student), before):
        np.testing.assert_array_equal(variable, old)
    assert np.abs(student.get_layer("stem").layer.kernel.numpy()).sum() < np.abs(kernel).sum()


def test_sample_weights_reach_the_task_loss():
    _, student = pair()
    model = QatModel(student)
    history = fit(model, epochs=1, sample_weight=np.zeros(32, np.float32))
    assert history["task_loss"] == [0.0]


def test_the_step_is_traced_once():
    teacher, student = pair()
    model = QatModel(
        student, teacher, [FeaturePerturbation(0.5), ChannelStandardizedDistillation()]
    )
    traces = []
    original = model.train_step
    model.train_step = lambda data: (traces.append(1), original(data))[1]
    fit(model, epochs=3)
    # Keras itself traces a step function twice: once when it is made, once when the variables of
    # optimizer and metrics exist.
    assert len(traces) == 1


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda t, s: QatModel(s, methods=[ChannelStandardizedDistillation()]),
            ValueError,
            "teacher must be given: csd",
        ),
        (lambda t, s: QatModel(s, t, ["fpq"]), TypeError, "methods must be tf_fpq methods"),
        (
            lambda t, s: QatModel(
                s, t, [FeaturePerturbation(), FeaturePerturbation(0.2, name="b")]
            ),
            ValueError,
            "at most one of each class and of each name. Received twice: FeaturePerturbation",
        ),
        (
            lambda t, s: QatModel(s, step_size_learning_rate_factor=0.0),
            ValueError,
            "step_size_learning_rate_factor must be positive.*=0.0",
        ),
    ],
)
def test_errors(make, error, message):
    teacher, student = pair()
    with pytest.raises(error, match=message):
        make(teacher, student)


def test_an_uncalibrated_student_is_pointed_out():
    student = tf_fpq.quantize_model(network(), [tf_fpq.QuantRule(".*")])
    with pytest.warns(UserWarning, match="Not calibrated: image_quantize"):
        QatModel(student)
    assert student_of(network()).name


def test_a_frozen_layer_keeps_its_step_sizes():
    _, student = pair()
    layer = student.get_layer("stem_relu_quantize")
    layer.trainable = False
    before = layer.get_weights()
    model = QatModel(student)
    fit(model)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(model.trainable_weights) == len(student.trainable_weights)


def test_weight_decay_spares_what_the_user_excluded_too():
    _, student = pair()
    gamma = student.get_layer("stem_bn").gamma
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[gamma], var_names=["beta"])
    model = QatModel(student, step_size_learning_rate_factor=1.0)
    model.compile(optimizer, loss=lambda y, p: 0.0 * p[:, 0])
    before = {weight.name: weight.numpy() for weight in student.trainable_weights}
    model.fit(images(), labels(), verbose=0)
    model.compile(optimizer, loss=lambda y, p: 0.0 * p[:, 0])  # an optimizer that is built
    model.fit(images(), labels(), verbose=0)
    moved = {w.name for w in student.trainable_weights if (w.numpy() != before[w.name]).any()}
    assert not {name for name in moved if "beta" in name or "step_size" in name}
    assert gamma.name not in moved
    assert student.get_layer("depthwise_bn").gamma.name in moved


def test_step_sizes_of_layers_that_are_unfrozen_later_learn_slowly_too():
    moves = {}
    for frozen in (False, True):
        _, student = pair()
        for layer in student.layers:
            layer.trainable = not frozen
        model = QatModel(student)
        for layer in student.layers:
            layer.trainable = True
        before = [variable.numpy() for variable in quantizer_variables(student)]
        fit(model, epochs=1)
        moves[frozen] = [
            variable.numpy() - old for variable, old in zip(quantizer_variables(student), before)
        ]
    for early, late in zip(moves[False], moves[True], strict=True):
        np.testing.assert_array_equal(early, late)


def test_two_views_are_evaluated_and_predicted_on_the_weak_one():
    _, student = pair()
    model = QatModel(student)
    model.compile(loss=LOSS, metrics=["accuracy"])
    views = {"weak": images(), "strong": images(seed=7)}
    unlabeled = {"unlabeled_weak": images(16), "unlabeled_strong": images(16)}
    data = tf.data.Dataset.from_tensors(({**views, **unlabeled}, labels()))
    expected = model.evaluate(images(), labels(), verbose=0)
    assert model.evaluate(data, verbose=0) == expected
    np.testing.assert_array_equal(
        model.predict(data, verbose=0), model.predict(images(), verbose=0)
    )


def classifier(*heads: str) -> keras.Model:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="stem")(image))
    outputs = [
        keras.layers.Dense(4, activation=head, name=f"head{i}")(x) for i, head in enumerate(heads)
    ]
    return keras.Model(image, outputs)


def test_methods_that_compare_class_scores_are_told_what_the_student_ends_in():
    teacher = classifier("softmax")
    student = student_of(teacher)
    loss = keras.losses.SparseCategoricalCrossentropy()
    with pytest.raises(ValueError, match="kd, cr must get from_logits=False: .* softmax"):
        QatModel(student, teacher, tf_fpq.methods_from_names("kd,cr")).compile("sgd", loss)
    told = {"kd": {"from_logits": False}, "cr": {"from_logits": False}}
    QatModel(student, teacher, tf_fpq.methods_from_names("kd,cr", **told)).compile("sgd", loss)
    with pytest.warns(UserWarning, match="takes the softmax of a student that ends in a softmax"):
        QatModel(student).compile("sgd", LOSS)


def test_class_scores_of_several_outputs_are_not_compared():
    teacher = classifier("linear", "linear")
    model = QatModel(student_of(teacher), teacher, tf_fpq.methods_from_names("kd,cr"))
    with pytest.raises(ValueError, match="kd, cr compares the class scores of one output"):
        model.compile("sgd", [LOSS, LOSS])


def test_an_optimizer_of_another_keras_is_refused():
    model = QatModel(pair()[1])
    keras3 = pytest.importorskip("keras")
    for optimizer in (keras.optimizers.legacy.SGD(), keras3.optimizers.SGD()):
        with pytest.raises(TypeError, match="optimizer must be a name or one of tf_keras"):
            model.compile(optimizer, LOSS)
