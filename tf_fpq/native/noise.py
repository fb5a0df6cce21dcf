"""Noise of SFP in one pass, see `noise_operations.cc`."""

import tensorflow as tf

from tf_fpq.native import library


def add_uniform(x: tf.Tensor, step: tf.Tensor, seed: tf.Tensor, *, relu: bool) -> tf.Tensor:
    """`x`, or `max(x, 0)`, plus `tf.random.stateless_uniform(shape, seed, -0.5, 0.5) * step`.

    The same numbers, bit for bit. The gradient is that of what the noise is added to.

    Args:
      x: Float32 tensor.
      step: A float32 number.
      seed: Two int64.
      relu: Whether noise is added to `max(x, 0)`.
    """
    place = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)

    @tf.custom_gradient
    def noisy(x: tf.Tensor):
        y = library.operations().tf_fpq_add_noise(
            x=tf.stop_gradient(x), step=step, key=place.key, counter=place.counter, relu=relu
        )

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.raw_ops.ReluGrad(gradients=upstream, features=x) if relu else upstream

        return y, gradient

    return noisy(x)
