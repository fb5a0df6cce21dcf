"""The rounding of the phone in the student: ties of a pooling by hand, gradients restated, and what
does not change."""

import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.student_layers.deployed_rounding import DeployedRounding
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, observing

layers = keras.layers
STEP = 0.25


def student_of(make=layers.AveragePooling2D, bits=8, zero_point=0.0):
    """A student whose image and what `make()` makes of it lie on grids with steps of 1/4."""
    image = keras.Input((2, 2, 1), name="image")
    x = make(name="op")(image)
    model = keras.Model(image, [x, layers.Conv2D(1, 1, name="conv")(image)])
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(activation_bits=bits)])
    for layer in student.layers:
        if isinstance(layer, QuantizeActivation):
            layer.quantizer.set_grid(
                layer.variables_of_quantizer, np.float32(STEP), np.float32(zero_point)
            )
    return student


def pooled(student, levels, **arguments):
    """Levels of the pooling of four levels."""
    images = np.reshape(levels, (-1, 2, 2, 1)).astype(np.float32) * STEP
    return (student(images, **arguments)[0].numpy() / STEP).ravel().tolist()


# Means 0.5, 1.5, 2.5, 2.25, 2.75 and 3.
LEVELS = [[0, 0, 1, 1], [0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 3], [2, 3, 3, 3], [3, 3, 3, 3]]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("bits", "zero_point", "expected"),
    [
        (8, 0, [0, 1, 2, 2, 3, 3]),  # raw codes from -128: away from zero is down
        (8, 200, [1, 2, 3, 2, 3, 3]),  # zero point 200 - 128 = 72: up
        (4, 0, [1, 2, 3, 2, 3, 3]),  # raw codes from 112: up
        (2, 0, [1, 2, 3, 2, 3, 3]),
    ],
)
def test_ties_of_a_pooling_go_away_from_zero_of_the_raw_code(bits, zero_point, expected, training):
    student = student_of(bits=bits, zero_point=zero_point)
    levels = np.minimum(LEVELS, 2**bits - 1)
    if bits == 2:  # its codes end at 3
        levels, expected = levels[[0, 1, 3, 4, 5]], [1, 2, 2, 3, 3]
    assert pooled(student, levels, training=training) == expected


def test_a_tie_at_raw_code_zero_goes_to_both_sides():
    """Raw means -0.5 and 0.5 become -1 and 1."""
    student = student_of(zero_point=128)
    assert pooled(student, [[-1, -1, 0, 0], [0, 0, 1, 1]]) == [-1, 1]


def test_padding_is_not_counted():
    student = student_of(lambda name: layers.AveragePooling2D(2, 1, "same", name=name), bits=4)
    # All four, the right column, the bottom row, the corner.
    assert pooled(student, [[0, 1, 2, 4]]) == [2, 3, 3, 4]


@pytest.mark.parametrize(("ratio", "expected"), [(0.7, 171), (1.0, 245)])
def test_a_slope_has_eight_bits(ratio, expected):
    """245 * 0.7 is 171.5, which rounds to 172; the kernel computes (245 * 179 + 128) >> 8 = 171."""
    student = student_of(lambda name: layers.LeakyReLU(0.2, name=name))
    output = student.get_layer("op_quantize")
    output.quantizer.set_grid(
        output.variables_of_quantizer, np.float32(STEP / ratio), np.float32(0)
    )
    images = np.full((1, 2, 2, 1), 245 * STEP, np.float32)
    assert np.all(np.rint(student(images)[0] / (STEP / ratio)) == expected)


def gradients(student, images, upstream):
    """Of the pooled output by the images, and by the step size."""
    (step,) = (v for v in student.get_layer("image_quantize").variables if "step" in v.name)
    with tf.GradientTape() as tape:
        tape.watch(step)
        x = tf.Variable(images)
        loss = tf.reduce_sum(student(x)[0] * upstream)
    return [np.asarray(gradient) for gradient in tape.gradient(loss, [x, step])]


def test_gradients_are_those_of_lsq_with_the_deployed_rounding():
    student = student_of(bits=4)
    levels = np.array(LEVELS, np.float32).reshape(-1, 2, 2, 1)
    images, upstream = levels * STEP, np.arange(1, 7, dtype=np.float32).reshape(-1, 1, 1, 1)
    by_image, by_step = gradients(student, images, upstream)
    # Straight through the rounding, a quarter for each pixel, where its own level is inside: the
    # image's quantizer blocks what lies on the first code.
    inside = (levels > 0) & (levels < 15)
    np.testing.assert_array_equal(by_image, upstream / 4 * inside)
    mean = levels.mean(axis=(1, 2, 3), keepdims=True)
    deployed = np.floor(mean + 0.5)
    # LSQ's (round(v) - v) g at both calls of the grid; levels of the image are integers already.
    expected = np.sum(upstream * (deployed - mean)) / np.sqrt(1 * 15)
    np.testing.assert_allclose(by_step, expected, atol=2e-3)


def test_second_derivatives_exist():
    student = student_of(bits=4)
    x = tf.Variable(np.array(LEVELS, np.float32).reshape(-1, 2, 2, 1) * STEP + 0.01)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(student(x)[0] ** 2)
        (first,) = [inner.gradient(loss, x)]
        total = tf.reduce_sum(first)
    assert np.any(outer.gradient(total, x).numpy())


def test_observing_passes_the_mean_as_it_is():
    student = student_of()
    with observing(student):
        assert pooled(student, [[0, 0, 1, 1]]) == [0.5]


def test_it_saves_loads_clones_and_compiles(tmp_path):
    student = student_of()
    student.save(tmp_path / "s.keras")
    loaded = keras.models.load_model(tmp_path / "s.keras")
    clone = keras.models.clone_model(student)
    clone.set_weights(student.get_weights())
    images = np.array(LEVELS, np.float32).reshape(-1, 2, 2, 1) * STEP
    graph = training_graph(loaded)
    for run in (
        loaded,
        clone,
        tf.function(loaded, jit_compile=True),
        lambda x: graph(x, training=True)["predictions"],
    ):
        np.testing.assert_array_equal(run(images)[0], student(images)[0])
    assert sum(isinstance(layer, DeployedRounding) for layer in loaded.layers) == 1


def test_only_operators_that_round_by_a_rule_of_their_own_have_one():
    image = keras.Input((4, 4, 2), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(2, 1, name="conv")(image))
    x = layers.MaxPooling2D(name="max")(layers.Add(name="add")([x, x]))
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.Dense(2, name="dense")(layers.GlobalAveragePooling2D(name="mean")(x))
    student = tf_fpq.quantize_model(keras.Model(image, x), [tf_fpq.QuantRule()])
    names = [layer.name for layer in student.layers if isinstance(layer, DeployedRounding)]
    assert names == ["leaky_rounding", "mean_rounding"]
    rules = [tf_fpq.QuantRule(activation_bits=None)]
    floats = tf_fpq.quantize_model(keras.Model(image, x), rules)
    assert not any(isinstance(layer, DeployedRounding) for layer in floats.layers)
