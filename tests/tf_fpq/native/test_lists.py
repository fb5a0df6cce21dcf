"""Operations of many small tensors at once, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.native.native_library import needs_native
from tf_fpq.native import lists, tracing
from tf_fpq.training import optimizers

pytestmark = needs_native


def test_half_the_squares_of_each_tensor():
    random = np.random.default_rng(0)
    arrays = [
        random.normal(size=shape).astype(np.float32) for shape in ((), (3,), (100, 100), (0,))
    ]
    found = lists.half_squares([tf.constant(a) for a in arrays])
    expected = [np.square(a.astype(np.float64)).sum() / 2 for a in arrays]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for bad in (np.nan, np.inf):
        arrays[2][50, 50] = bad
        found = lists.half_squares([tf.constant(a) for a in arrays])
        np.testing.assert_array_equal(np.isfinite(found), [True, True, False, True])


def test_part_of_the_way_is_the_same_by_either():
    random = np.random.default_rng(0)
    shapes = [(), (3,), (1, 1, 1, 5)]
    before = [tf.constant(random.normal(size=shape), tf.float32) for shape in shapes]
    variables = [tf.Variable(random.normal(size=shape), dtype=tf.float32) for shape in shapes]
    plain = optimizers.part_of_the_way(before, variables, 0.1)
    with tracing.training_step():
        native = optimizers.part_of_the_way(before, variables, 0.1)
        assert optimizers.part_of_the_way([], [], 0.1) == []
    for one, other in zip(native, plain, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        lists.interpolate([tf.constant(1.0)], [tf.constant(3.0)], 0.1), [1.2]
    )


def test_shapes_that_do_not_pair_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have the same shapes"):
        lists.interpolate([tf.zeros([2])], [tf.zeros([3])], 0.1)
