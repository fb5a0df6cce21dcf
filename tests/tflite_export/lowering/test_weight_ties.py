"""Weights on rounding thresholds have one code, in the file and however the student computes."""

import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import quantized_weights
import tflite_export
from tflite_export import exported_model
from tflite_export.lowering import weight_ties


def make_student(quantizer="lsq"):
    """A 2-bit student of 16 channels: TensorFlow approximates several reciprocals at once."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    x = keras.layers.Conv2D(16, 3, use_bias=False, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.Conv2D(16, 3, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, keras.layers.Dense(5, name="logits")(x), name="ties")
    rules = [tf_fpq.QuantRule(".*", weight_bits=2)]
    student = tf_fpq.quantize_model(model, rules, quantizer=quantizer)
    images = np.random.default_rng(1).normal(0, 1, (32, 8, 8, 2)).astype(np.float32)
    tf_fpq.calibrate(student, images, verbose=0, reestimate_batch_norms=True)
    return student


def weights(student):
    return [weight for layer in student.layers for weight in quantized_weights(layer)]


def put_on_thresholds(student):
    """Every weight goes to a float next to the nearest threshold, below or above it."""
    rng = np.random.default_rng(0)
    for weight in weights(student):
        step = weight.quantizer.grid(weight.variables)[0].numpy()
        value = weight.variable.numpy()
        threshold = ((np.floor(value / step) + 0.5) * step).astype(np.float32)
        beside = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        weight.variable.assign(np.nextafter(threshold, beside))


def codes_in_a_graph(weight):
    """What `predict` computes: the quantizer's values in a graph, in steps."""
    quantizer, variables = weight.quantizer, weight.variables
    values = tf.function(lambda: quantizer(weight.variable, False, variables))().numpy()
    return np.rint(values / quantizer.grid(variables)[0].numpy())


def test_after_the_export_a_graph_has_the_codes_of_the_file(tmp_path):
    student = make_student()
    put_on_thresholds(student)
    written = [weight.codes().numpy() for weight in weights(student)]
    before = exported_model.deployed_model(student)
    # What the move is for: the last bit decides, and a graph has another one.
    assert any((codes_in_a_graph(w) != c).any() for w, c in zip(weights(student), written))
    tflite_export.export(student, tmp_path / "model.tflite")
    for weight, codes in zip(weights(student), written):
        np.testing.assert_array_equal(weight.codes().numpy(), codes)
        np.testing.assert_array_equal(codes_in_a_graph(weight), codes)
    after = exported_model.deployed_model(student)
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(tensor.data, after.tensors[name].data)


def test_a_weight_moves_by_a_share_of_at_most_two_to_the_minus_19_and_others_do_not():
    student = make_student()
    (first, *_) = weights(student)
    step = np.broadcast_to(first.quantizer.grid(first.variables)[0].numpy(), first.variable.shape)
    value = (0.25 * step).astype(np.float32)
    value[0, 0, 0, 0] = np.nextafter(np.float32(0.5 * step[0, 0, 0, 0]), np.float32(0))
    first.variable.assign(value)
    before = [weight.variable.numpy() for weight in weights(student)]
    assert weight_ties.leave(student) >= 1
    after = first.variable.numpy()
    moved = np.argwhere(after != before[0])
    assert moved.tolist() == [[0, 0, 0, 0]]
    assert 0 < abs(after[0, 0, 0, 0] / value[0, 0, 0, 0] - 1) <= 2.0**-19
    assert weight_ties.leave(student) == 0


@pytest.mark.parametrize("quantizer", ["dorefa", "min_max", "pact"])
def test_codes_stay_whatever_the_quantizer(quantizer):
    student = make_student(quantizer)
    put_on_thresholds(student)
    before = [weight.codes().numpy() for weight in weights(student)]
    weight_ties.leave(student)
    for weight, codes in zip(weights(student), before):
        np.testing.assert_array_equal(weight.codes().numpy(), codes)
