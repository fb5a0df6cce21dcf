"""SAM: the step of its formula, and what it leaves alone."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, bytes_of, fit, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.sharpness_aware import SharpnessAwareMinimization
from tf_fpq.student_layers.quantized_layers import quantizer_variables
from tf_fpq.training.qat_model import QatModel


def test_rho_zero_is_plain_training_bit_for_bit():
    _, student = pair()
    fit(QatModel(student))
    _, other = pair()
    fit(QatModel(other, methods=[SharpnessAwareMinimization(0.0)]))
    assert bytes_of(student) == bytes_of(other)


def test_a_step_equals_the_formula():
    rho, rate, x, y = 0.5, 0.1, images(16), labels(16)
    _, reference = pair()
    steps = {id(variable) for variable in quantizer_variables(reference)}
    weights = reference.trainable_weights

    def gradients():
        with tf.GradientTape() as tape:
            loss = LOSS(y, reference(x, training=True))
        return tape.gradient(loss, weights)

    start = [weight.numpy() for weight in weights]
    first = gradients()
    moved = [weight for weight in weights if id(weight) not in steps]
    norm = np.sqrt(
        sum((g.numpy() ** 2).sum() for w, g in zip(weights, first) if id(w) not in steps)
    )
    for weight, gradient in zip(weights, first):
        if id(weight) not in steps:
            weight.assign_add(rho * gradient / norm)
    second = gradients()
    expected = {w.name: s - rate * g.numpy() for w, s, g in zip(weights, start, second)}

    _, student = pair()
    model = QatModel(
        student, methods=[SharpnessAwareMinimization(rho)], step_size_learning_rate_factor=1.0
    )
    model.compile(keras.optimizers.SGD(rate), loss=LOSS)
    model.fit(x, y, batch_size=16, verbose=0)
    assert len(moved) < len(weights)
    for weight in student.trainable_weights:
        np.testing.assert_allclose(weight, expected[weight.name], rtol=1e-4, atol=1e-5)


def test_moving_statistics_are_those_of_the_first_pass():
    statistics = []
    for methods in ([], [SharpnessAwareMinimization(1.0)]):
        _, student = pair()
        fit(QatModel(student, methods=methods), epochs=1, batch_size=32)
        statistics.append([weight.numpy().tobytes() for weight in student.non_trainable_weights])
    assert statistics[0] == statistics[1]


def test_bad_rho():
    with pytest.raises(ValueError, match="rho must not be negative. Received: rho=-1"):
        SharpnessAwareMinimization(-1)


def test_config_makes_an_equal_method():
    assert (
        SharpnessAwareMinimization.from_config(SharpnessAwareMinimization(0.2).get_config()).rho
        == 0.2
    )


def test_weights_come_back_if_the_second_pass_fails():
    _, student = pair()
    method = SharpnessAwareMinimization(0.5)
    QatModel(student, methods=[method])
    before = bytes_of(student)
    gradients = [tf.ones_like(weight) for weight in student.trainable_weights]
    with pytest.raises(RuntimeError, match="out of memory"):
        with method.perturbed(student.trainable_weights, gradients):
            assert bytes_of(student) != before
            raise RuntimeError("out of memory")
    assert bytes_of(student) == before
