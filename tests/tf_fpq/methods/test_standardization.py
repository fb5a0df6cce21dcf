"""Standardized features and their distance: the defining properties, and the formula."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.methods.standardization import standardize, standardized_distance

layers = keras.layers


def features(seed: int, shape=(8, 6, 6, 5)) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def test_standardized_features_have_mean_0_and_variance_1_per_channel():
    scaled = features(0) * [1.0, 10.0, 0.1, 3.0, 1.0] + [0.0, 5.0, -3.0, 100.0, 1.0]
    result = standardize(scaled).numpy()
    np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(result.var(axis=(0, 1, 2)), 1, atol=2e-3)


def test_standardize_equals_its_formula():
    z = features(1).numpy()
    expected = (z - z.mean(axis=(0, 1, 2))) / np.sqrt(z.var(axis=(0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(standardize(tf.constant(z), 1e-3), expected, atol=1e-5)


def test_a_constant_channel_stays_finite():
    assert np.isfinite(standardize(tf.ones([2, 3, 3, 4]))).all()


def test_distance_of_equal_features_is_zero():
    assert float(standardized_distance(features(0), features(0))) == 0.0


def test_distance_ignores_affine_maps_of_channels_with_positive_slope():
    a, b = features(0), features(1)
    slope, offset = tf.constant([0.5, 2.0, 30.0, 1.0, 4.0]), tf.constant([0.0, -3.0, 7.0, 1.0, 0.5])
    plain = float(standardized_distance(a, b, 1e-8))
    assert plain > 0.5
    assert float(standardized_distance(a * slope + offset, b, 1e-8)) == pytest.approx(
        plain, rel=1e-4
    )
    assert float(standardized_distance(a, b * slope + offset, 1e-8)) == pytest.approx(
        plain, rel=1e-4
    )
    assert float(standardized_distance(a, a * slope + offset, 1e-8)) == pytest.approx(0.0, abs=1e-6)


def test_distance_of_opposite_features_is_four():
    assert float(standardized_distance(features(0), -features(0), 1e-8)) == pytest.approx(
        4.0, rel=1e-4
    )


def test_gradient_equals_that_of_the_formula():
    student, teacher = features(0), features(1)

    def formula(z):
        mean, variance = tf.nn.moments(z, [0, 1, 2], keepdims=True)
        return (z - mean) / tf.sqrt(variance + 1e-5)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        ours = standardized_distance(student, teacher)
        plain = tf.reduce_mean((formula(student) - formula(teacher)) ** 2)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    # What is left out has the share epsilon / variance, 1e-5, of norm(z) * 2 / 1440.
    np.testing.assert_allclose(
        tape.gradient(ours, student), tape.gradient(plain, student), rtol=1e-4, atol=1e-7
    )


def test_the_statistics_of_a_batch_norm_that_reads_the_features_serve():
    """Its epsilon, gamma, beta and momentum are its own, and the features' moments are the same."""
    norm = layers.BatchNormalization(epsilon=0.3, momentum=0.7, name="norm")
    norm.build((None, 6, 6, 5))
    norm.set_weights(
        [np.arange(1.0, 6.0), *np.random.default_rng(5).normal(size=(2, 5)), np.ones(5)]
    )

    @tf.function
    def all_of(student, teacher, training):
        with tf.GradientTape() as tape:
            tape.watch(student)
            norm(student, training=training)
            distance = standardized_distance(student, teacher)
        return distance, tape.gradient(distance, student)

    def kernels(training: bool) -> int:
        function = all_of.get_concrete_function(features(0), features(1), training)
        types = [operation.type for operation in function.graph.get_operations()]
        return types.count("FusedBatchNormV3") - 1  # without the batch norm's own

    # One for the teacher; moving statistics are not those of the features.
    assert kernels(training=True) == 1
    assert kernels(training=False) == 2
    student, teacher = features(0) * 3.0 + 2.0, features(1)
    expected = all_of(student, teacher, False)
    for one, other in zip(all_of(student, teacher, True), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)


def test_the_weight_is_a_factor_of_distance_and_gradient():
    student, teacher = features(0), features(1)

    def all_of(function):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = function()
        return value, tape.gradient(value, student)

    inside = all_of(lambda: 3.0 * standardized_distance(student, teacher, weight=0.25))
    outside = all_of(lambda: 0.75 * standardized_distance(student, teacher))
    for one, other in zip(inside, outside, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_hessian_vector_products_are_those_of_the_formula():
    student, teacher = features(0, (4, 3, 3, 2)), features(1, (4, 3, 3, 2))
    direction = features(2, (4, 3, 3, 2))

    def formula(z):
        mean, variance = tf.nn.moments(z, [0, 1, 2], keepdims=True)
        return (z - mean) / tf.sqrt(variance + 1e-5)

    def product(loss):
        with tf.GradientTape() as outer:
            outer.watch(student)
            with tf.GradientTape() as inner:
                inner.watch(student)
                value = loss()
            along = tf.reduce_sum(inner.gradient(value, student) * direction)
        return outer.gradient(along, student)

    ours = product(lambda: 2.0 * standardized_distance(student, teacher))
    plain = product(lambda: 2.0 * tf.reduce_mean((formula(student) - formula(teacher)) ** 2))
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-6)


def test_a_constant_channel_of_the_student_is_drawn_towards_the_teachers():
    teacher = features(1, (8, 2, 2, 3))
    student = teacher * [1.0, 0.0, 1.0]
    with tf.GradientTape() as tape:
        tape.watch(student)
        distance = standardized_distance(student, teacher)
    np.testing.assert_allclose(distance, 1 / 3, rtol=1e-4)  # one of three channels, at variance 1
    gradient = tape.gradient(distance, student).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[..., 1] * standardize(teacher).numpy()[..., 1] <= 1e-6).all()


def test_rank_two_features_are_standardized_over_the_batch():
    z = features(2, (16, 7)).numpy()
    np.testing.assert_allclose(
        standardize(tf.constant(z)), (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), atol=1e-5
    )


def test_half_precision_is_computed_in_float32():
    assert standardize(tf.cast(features(0), tf.float16)).dtype == tf.float32
