"""Noise in one pass has the numbers of TensorFlow's own generator."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.native.native_library import needs_native
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.native import library, noise, tracing

pytestmark = needs_native


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(), (3, 5), (64,), (4097,), (2, 50, 50, 7), (0, 3)])
def test_it_is_tensorflows_bit_for_bit(shape, relu):
    x = tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)
    step = tf.constant(0.37)
    # The last counter goes over into its upper half.
    for seed in ([0, 0], [12345678901, 2**40 + 7], [2**63 - 1, -1]):
        seed = tf.constant(seed, tf.int64)
        expected = tf.random.stateless_uniform(shape, seed, -0.5, 0.5) * step
        expected += tf.nn.relu(x) if relu else x
        np.testing.assert_array_equal(noise.add_uniform(x, step, seed, relu=relu), expected)


def test_a_counter_that_overflows_goes_on_in_its_upper_half():
    key, counter = tf.constant([7], tf.uint64), tf.constant([2**64 - 3, 5], tf.uint64)
    ones = tf.zeros([400])
    expected = tf.raw_ops.StatelessRandomUniformV2(
        shape=[400], key=key, counter=counter, alg=1, dtype=tf.float32
    )
    found = library.operations().tf_fpq_add_noise(
        x=ones, step=1.0, key=key, counter=counter, relu=False
    )
    np.testing.assert_array_equal(found, expected - 0.5)


def test_sfp_draws_the_same_noise_by_either():
    method = FeaturePerturbation(seed=7)
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 9, 9, 3)), tf.float32)
    step = tf.constant(0.25)
    plain = method.noisy(x, method.key(), step, "conv", relu=True)
    with tracing.training_step():
        native = method.noisy(x, method.key(), step, "conv", relu=True)
    np.testing.assert_array_equal(native, plain)


def test_the_gradient_is_that_of_what_the_noise_is_added_to():
    x, seed = tf.constant([-1.0, 0.0, 2.0]), tf.constant([1, 2], tf.int64)
    for relu, expected in ((False, [3.0, 3.0, 3.0]), (True, [0.0, 0.0, 3.0])):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = noise.add_uniform(x, tf.constant(0.5), seed, relu=relu)
        np.testing.assert_array_equal(tape.gradient(y, x, tf.fill([3], 3.0)), expected)


def test_what_is_no_number_stays_none():
    x, seed = tf.constant([np.nan, 1.0]), tf.constant([1, 2], tf.int64)
    for relu in (False, True):
        y = noise.add_uniform(x, tf.constant(0.5), seed, relu=relu)
        np.testing.assert_array_equal(np.isnan(y), [True, False])


def test_what_is_no_key_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="step and key must be one number"):
        library.operations().tf_fpq_add_noise(
            **{"x": [1.0], "step": 1.0, "relu": False},
            **{"key": tf.constant([7], tf.uint64), "counter": tf.constant([7], tf.uint64)},
        )
