"""SQuaT: its distance restated, its null case, and training with it."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import bytes_of, fit, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.student_grid_distillation import (
    StudentGridDistillation,
    grid_distance,
    quantized_pairs,
)
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, quantizer_variables
from tf_fpq.training.qat_model import QatModel


def a_grid(bits=2):
    teacher, student = pair(bits)
    return quantized_pairs(student, teacher)[0].layer, teacher, student


def test_distance_is_in_shares_of_the_grids_range():
    layer, *_ = a_grid()
    step = float(layer.quantizer.grid(layer.variables_of_quantizer)[0])
    # Zero point 0 behind a ReLU: codes 0 to 3. Theirs become 0, 1, 3, 3; ours are a code off twice.
    theirs = step * tf.constant([[-0.7, 1.2, 2.8, 9.0]])
    ours = step * tf.constant([[1.0, 1.0, 3.0, 2.0]])
    np.testing.assert_allclose(grid_distance(layer, ours, theirs), 2 / 4 / 9, rtol=1e-5)


def test_a_student_that_is_where_the_teacher_would_be_has_no_loss():
    layer, *_ = a_grid()
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 8)), tf.float32)
    assert float(grid_distance(layer, layer(x), x)) == 0.0
    assert float(grid_distance(layer, layer(x), x + 1.0)) > 0


def test_there_is_a_gradient_to_the_student_alone():
    layer, *_ = a_grid()
    ours, theirs = (tf.random.stateless_uniform([2, 4], [seed, 0]) for seed in (1, 2))
    step = layer.trainable_weights
    with tf.GradientTape() as tape:
        tape.watch([ours, theirs])
        value = grid_distance(layer, ours, theirs)
    gradient, *none = tape.gradient(value, [ours, theirs, *step])
    size = float(layer.quantizer.grid(layer.variables_of_quantizer)[0]) * 3
    expected = 2 / 8 * (ours - layer(theirs)) / size**2
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert none == [None] * len(none) and step


def test_pairs_are_all_quantized_tensors_but_images_and_outputs():
    teacher, student = pair()
    pairs = quantized_pairs(student, teacher)
    assert [p.teacher for p in pairs] == [
        *("stem_relu", "depthwise_relu", "pointwise_bn", "add_relu")
    ]
    layers = [x for x in student.layers if isinstance(x, QuantizeActivation)]
    # The first is of the images, the last two of the mean and the outputs.
    assert [p.layer for p in pairs] == layers[1:5], [x.name for x in layers]


def test_training_lowers_the_loss_and_leaves_the_teacher():
    teacher, student = pair(3)
    before, grids = bytes_of(teacher), len(quantizer_variables(student))
    model = QatModel(student, teacher, [StudentGridDistillation(weight=10.0)])
    losses = fit(model, epochs=6)["squat_loss"]
    assert losses[-1] < losses[0] and grids
    assert bytes_of(teacher) == before


def test_weight_scales_the_loss_and_is_saved():
    teacher, student = pair(3)
    features = [tf.ones([2, 8, 8, 8]) * n for n in (1.0, 2.0)]
    losses = []
    for weight in (1.0, 3.0):
        method = StudentGridDistillation(weight=weight)
        method.attach(student, teacher)
        method([features[:1] * 4, features[1:] * 4])
        losses.append(float(method.losses[0]))
    np.testing.assert_allclose(losses[1], 3 * losses[0], rtol=1e-5)
    assert losses[0] > 0
    method = StudentGridDistillation(weight=0.5, name="x")
    again = StudentGridDistillation.from_config(method.get_config())
    assert (again.weight, again.name) == (0.5, "x")


def test_another_network_as_teacher_is_refused():
    _, student = pair()
    inputs = keras.Input((8, 8, 1))
    other = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="other")(inputs))
    with pytest.raises(ValueError, match="No quantized tensor.*same name"):
        quantized_pairs(student, other)
    x = keras.layers.Conv2D(4, 3, name="stem_relu")(inputs)
    with pytest.raises(ValueError, match="'stem_relu' must have the student's shape"):
        quantized_pairs(student, keras.Model(inputs, x))
    with pytest.raises(ValueError, match="weight=-1"):
        StudentGridDistillation(weight=-1)
