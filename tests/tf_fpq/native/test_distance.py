"""The operations of CSD, against the formula in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.native.native_library import needs_native
from tf_fpq.methods.standardization import standardized_distance
from tf_fpq.native import library, tracing
from tf_fpq.placement.feature_taps import FeatureTap

pytestmark = needs_native
EPSILON = 1e-5


def formula(student: np.ndarray, teacher: np.ndarray) -> tuple[float, np.ndarray]:
    """Distance and gradient as `standardized_distance` prints them."""
    s, t = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (student, teacher))
    s, t = s - s.mean(0), t - t.mean(0)
    v_s, v_t = (x.var(0) + EPSILON for x in (s, t))
    r = (s * t).mean(0) / np.sqrt(v_s * v_t)
    distance = (s.var(0) / v_s + t.var(0) / v_t - 2 * r).mean()
    gradient = 2 / s.size * (r * s / np.sqrt(v_s) - t / np.sqrt(v_t)) / np.sqrt(v_s)
    return distance, gradient.reshape(student.shape)


def by_operations(student, teacher, weight=1.0, of_others=0.0):
    student, layer = tf.constant(student), FeatureTap("conv")
    with tracing.training_step(), tf.GradientTape() as tape:
        tape.watch(student)
        output = layer(student)
        tap = layer.latest()
        value = standardized_distance(student, tf.constant(teacher), EPSILON, weight, tap)
        loss = value + tf.reduce_sum(of_others * output)
    return float(value), tape.gradient(loss, student).numpy()


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (12, 16), (3, 40, 64), (8, 9, 9, 16), (10, 5000)])
def test_value_and_gradient_are_the_formulas(shape):
    random = np.random.default_rng(0)
    teacher = random.normal(3.0, random.uniform(0.1, 5.0, shape[-1:]), shape).astype(np.float32)
    student = (teacher + random.normal(size=shape)).astype(np.float32)
    value, gradient = by_operations(student, teacher, weight=0.5)
    expected, slope = formula(student, teacher)
    assert value == pytest.approx(0.5 * expected, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.5 * slope, rtol=1e-3, atol=1e-5 * np.abs(slope).max())


def test_the_gradient_is_added_to_that_of_the_network():
    student, teacher = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
    value, alone = by_operations(student, teacher)
    same, both = by_operations(student, teacher, of_others=2.0)
    assert same == value
    np.testing.assert_array_equal(both, np.float32(2.0) + alone)


def test_a_mean_far_from_zero_costs_no_digits():
    random = np.random.default_rng(0)
    student, teacher = random.normal(1000.0, 1.0, (2, 64, 8, 8, 4)).astype(np.float32)
    value, gradient = by_operations(student, teacher)
    expected, slope = formula(student, teacher)
    assert value == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-2, atol=1e-3 * np.abs(slope).max())


def test_equal_features_and_constant_channels_have_no_distance():
    features = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    features[..., 1] = 2.0
    value, gradient = by_operations(features, 3.0 * features + 1.0)
    assert value == pytest.approx(0.0, abs=1e-4) and np.abs(gradient).max() < 1e-4
    assert by_operations(features, features)[0] >= 0.0


def test_what_is_no_number_is_no_number():
    features = np.ones((4, 2), np.float32)
    broken = features.copy()
    broken[2, 1] = np.nan
    for pair in ((features, broken), (broken, features)):
        value, gradient = by_operations(*pair)
        assert np.isnan(value) and np.isnan(gradient[:, 1]).all()


def test_features_that_do_not_pair_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="student and teacher must have one"):
        library.operations().tf_fpq_standardized_distance(
            student=tf.ones([4, 3]), teacher=tf.ones([4, 2]), epsilon=EPSILON
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="added and coefficients must be"):
        library.operations().tf_fpq_add_distance_gradient(
            added=tf.ones([4, 3]),
            of_loss=1.0,
            student=tf.ones([4, 3]),
            teacher=tf.ones([4, 3]),
            coefficients=tf.ones([4, 2]),
        )
