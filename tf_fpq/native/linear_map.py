"""Gradients of every order for linear maps whose operations have none."""

from collections.abc import Callable

import tensorflow as tf


def linear_map(
    forwards: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    backwards: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """`forwards`, a linear map, with its transpose `backwards` as gradient, whose gradient it is.

    A quantizer's gradient is such a map: of the gradient by its values to those by its input and by
    its step size. The operations that compute it have no gradient of their own.
    """

    @tf.custom_gradient
    def passed(upstream: tf.Tensor):
        upstream = tf.stop_gradient(upstream)
        # What the map needs beside its argument depends on the forward pass alone. Without this,
        # TensorFlow computes it there, and holds it until the backward pass comes by.
        with tf.control_dependencies([upstream]):
            return tuple(forwards(upstream)), transposed

    @tf.custom_gradient
    def transposed(first: tf.Tensor, second: tf.Tensor):
        first, second = tf.stop_gradient(first), tf.stop_gradient(second)
        with tf.control_dependencies([first]):
            return backwards(first, second), passed

    return passed
