"""A method adds to a feature's gradient where the network's own arrives."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import images, pair
from tf_fpq.native import library, tracing
from tf_fpq.placement.feature_taps import FeatureTap, Tap, latest_taps
from tf_fpq.placement.training_graph import training_graph


def test_what_is_added_is_a_function_of_both_gradients():
    x = tf.constant([1.0, 2.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        tap = Tap(x)
        value = tap.loss(tf.constant(7.0), lambda upstream, of_loss: upstream + 10.0 * of_loss)
        loss = 0.5 * value + tf.reduce_sum(tap.output * tf.constant([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(tap.output, x)
    assert float(loss) == 3.5 + 14.0
    np.testing.assert_array_equal(tape.gradient(loss, x), [6.0, 7.0, 8.0])


def test_a_tap_that_no_method_uses_is_the_identity():
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.square(Tap(x).output))
    np.testing.assert_array_equal(tape.gradient(loss, x), [2.0, 4.0])


def test_a_feature_has_one_loss():
    tap = Tap(tf.ones([2]))
    tap.loss(tf.constant(1.0), lambda upstream, of_loss: upstream)
    with pytest.raises(ValueError, match="tapped by one method only"):
        tap.loss(tf.constant(1.0), lambda upstream, of_loss: upstream)


def test_there_are_taps_where_operations_of_our_own_are(monkeypatch):
    layer, x = FeatureTap("conv"), tf.ones([2, 3])
    assert layer.latest() is None
    monkeypatch.setattr(library, "operations", lambda: "compiled")
    with tracing.training_step():
        y = layer(x)
        assert layer.latest().output is y and y is not x
        layer(tf.ones([2], tf.float16))  # the layer casts it
        assert layer.latest() is not None
    assert layer(x) is x and layer.latest() is None


def test_a_training_graph_taps_the_features_that_are_shown(monkeypatch):
    _, student = pair()
    graph = training_graph(student, shown=["stem"])
    monkeypatch.setattr(library, "operations", lambda: None)
    with tracing.training_step():
        assert latest_taps(graph, graph(images())["features"]) == {"stem": None}
    names = [layer.name for layer in graph.layers]
    assert [name for name in names if name.endswith("_tap")] == ["stem_tap"]
