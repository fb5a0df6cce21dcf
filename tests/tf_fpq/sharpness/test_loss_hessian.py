"""Products with the Hessian, of what is known and of students."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq import small_student
from tests.tf_fpq.sharpness import known
import tf_fpq
from tf_fpq import sharpness
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import observing


def random_vector(hessian, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=hessian.size), tf.float32)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_of_a_quadratic_product_gradient_and_loss_are_exact(batch_size):
    hessian = known.quadratic(batch_size)
    weights = np.arange(1.0, 7.0)
    np.testing.assert_allclose(hessian.loss(), weights**2 @ known.EIGENVALUES / 2, rtol=1e-5)
    np.testing.assert_allclose(hessian.gradient(), known.EIGENVALUES * weights, rtol=1e-5)
    vector = random_vector(hessian)
    np.testing.assert_allclose(hessian.product(vector), known.EIGENVALUES * vector, rtol=1e-5)


def test_of_a_dense_network_products_are_the_columns_of_the_full_hessian():
    model, images, labels = known.dense_network()
    hessian = sharpness.LossHessian(model, images, labels, batch_size=7)
    full = known.full_hessian(model, images, labels)
    assert hessian.size == len(full) == 3 * 4 + 4 * 3
    columns = [hessian.product(column) for column in np.eye(hessian.size, dtype=np.float32)]
    np.testing.assert_allclose(columns, full, atol=1e-6)


def test_a_student_whose_quantizers_pass_all_through_has_the_float_networks_hessian():
    teacher, student = small_student.pair()
    data = small_student.images(), small_student.labels()
    ours, theirs = (sharpness.LossHessian(model, *data) for model in (student, teacher))
    assert [v.shape for v in ours.variables] == [v.shape for v in theirs.variables]
    vector = random_vector(ours)
    with observing(student):
        product = ours.product(vector)
    np.testing.assert_allclose(product, theirs.product(vector), atol=1e-5)
    # The quantized student's is another one; nothing above is trivially equal.
    again = sharpness.LossHessian(student, *data)
    assert float(tf.norm(again.product(vector) - product)) > 0.01 * float(tf.norm(product))


def test_a_students_product_is_that_of_straight_through_rounding():
    inputs = keras.Input((5,), name="x")
    teacher = keras.Model(inputs, keras.layers.Dense(3, use_bias=False, name="logits")(inputs))
    teacher.layers[-1].kernel.assign(np.random.default_rng(1).normal(size=(5, 3)))
    images = np.random.default_rng(2).normal(size=(16, 5)).astype(np.float32)
    labels = np.arange(16) % 3
    student = tf_fpq.quantize_model(teacher, [tf_fpq.QuantRule(".*", weight_bits=3)])
    tf_fpq.calibrate(student, images, verbose=0)
    hessian = sharpness.LossHessian(student, images, labels)
    (kernel,) = hessian.variables
    first, dense, last = student.layers[1:]
    (weight,) = dense.quantized_weights()
    step = weight.quantizer.grid(weight.variables)[0]
    reach = weight.quantizer.spec.qmax * step

    def straight_through(value, rounded, inside):
        return inside * value + tf.stop_gradient(rounded - inside * value)

    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            inside = tf.cast(tf.abs(kernel) < reach, tf.float32)
            rounded = step * weight.codes()
            outputs = first(images) @ straight_through(kernel, rounded, inside)
            quantized = last(outputs)
            low, high = tf.reduce_min(quantized), tf.reduce_max(quantized)
            inside = tf.cast((outputs > low) & (outputs < high), tf.float32)
            # The largest and the smallest output may be on the last code without being clipped.
            inside = tf.where(tf.abs(outputs - quantized) < step[0, 0], 1.0, inside)
            value = sharpness.cross_entropy(labels, straight_through(outputs, quantized, inside))
        gradient = tf.reshape(inner.gradient(value, kernel), [-1])
    full = np.reshape(outer.jacobian(gradient, kernel), (15, 15))
    vector = random_vector(hessian)
    np.testing.assert_allclose(hessian.product(vector), full @ vector.numpy(), atol=1e-5)


def test_kernels_alone_are_varied():
    _, student = small_student.pair()
    names = [variable.name for variable in sharpness.kernels(student)]
    assert [name.split("/")[-1] for name in names] == [
        *("kernel:0", "depthwise_kernel:0", "kernel:0", "kernel:0")
    ]


def test_moved_kernels_are_put_back_to_the_bit_even_after_an_error():
    hessian = known.quadratic()
    before = hessian.variables[0].numpy()
    vector = np.full(hessian.size, 0.1)
    with pytest.raises(KeyError), hessian.moved(vector):
        np.testing.assert_allclose(hessian.variables[0].numpy(), before + 0.1, rtol=1e-6)
        raise KeyError
    assert hessian.variables[0].numpy().tobytes() == before.tobytes()


def test_the_loss_follows_the_models_present_weights():
    hessian = known.quadratic()
    first = hessian.loss()
    hessian.variables[0].assign(2 * hessian.variables[0])
    np.testing.assert_allclose(hessian.loss(), 4 * first, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "message"),
    [
        (np.zeros((0, 6)), np.zeros(0), 4, "0 images, 0 labels"),
        (np.zeros((3, 6)), np.zeros(2), 4, "3 images, 2 labels"),
        (np.zeros((3, 6)), np.zeros(3), 0, "batch_size=0"),
    ],
)
def test_wrong_arguments_are_named(images, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        sharpness.LossHessian(known.linear(6), images, labels, batch_size=batch_size)


def test_a_model_without_kernels_is_refused():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.ReLU()(inputs))
    with pytest.raises(ValueError, match="no trainable kernels"):
        sharpness.LossHessian(model, np.zeros((1, 2)), np.zeros(1))
