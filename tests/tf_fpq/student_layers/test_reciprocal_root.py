"""The fixed-point reciprocal root: how exact it is, and worked levels of the operator around it."""

import numpy as np
import tensorflow as tf

from tf_fpq.student_layers import reciprocal_root


def test_the_fixed_point_root_is_within_two_millionths():
    values = np.arange(2, 2**16, 37)
    multiplier, shift = reciprocal_root.inverse_root(values, 0)
    np.testing.assert_allclose(multiplier * 2.0 ** (shift - 31), 1 / np.sqrt(values), rtol=2e-6)


def levels(x, epsilon, zero_point=-128.0):
    """On an input in steps of 1/16 and an output in steps of 1/32."""
    steps = [tf.constant(1 / 16), tf.constant(zero_point), tf.constant(1 / 32)]
    return reciprocal_root.levels(tf.constant(x, tf.int64), epsilon, *steps).numpy().tolist()


def test_levels_by_hand():
    # sqrt(16 / x) * 32; nothing below half a step is added, and 0 is beyond every code.
    assert levels([0, 1, 4, 9, 16], 1e-3) == [512, 128, 64, 43, 32]
    # One step is added: sqrt(16 / (x + 1)) * 32, on a grid that is 1/255 coarser.
    assert levels([0, 3, 8, 15], 1 / 16) == [128, 64, 43, 32]
    # Where the input's zero point is another, the file adds nothing.
    assert levels([1, 4], 1 / 16, zero_point=-127.0) == [128, 64]
