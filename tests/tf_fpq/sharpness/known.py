"""Models whose Hessians are known."""

import numpy as np
import tensorflow as tf

from tf_fpq import sharpness
from tf_fpq.keras_compat import keras

EIGENVALUES = np.array([5.0, -0.0, 3.0, 0.5, 1.0, 2.0])


def half_square(labels, outputs):
    return 0.5 * tf.reduce_mean(tf.square(outputs[:, 0]))


def linear(size):
    """`w . x` without a bias."""
    model = keras.Sequential([keras.Input((size,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[-1].kernel.assign(np.arange(1.0, size + 1)[:, np.newaxis])
    return model


def quadratic(batch_size=4):
    """`w^T diag(EIGENVALUES) w / 2` by the weights: the images are scaled unit vectors."""
    size = len(EIGENVALUES)
    images = np.diag(np.sqrt(size * EIGENVALUES)).astype(np.float32)
    return sharpness.LossHessian(
        linear(size), images, np.zeros(size), half_square, batch_size=batch_size
    )


def dense_network():
    """Two dense layers with a smooth function between, its images and labels."""
    keras.utils.set_random_seed(3)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    generator = np.random.default_rng(0)
    return model, generator.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 3


def full_hessian(model, images, labels):
    """The Hessian by the kernels, row for row."""
    variables = sharpness.kernels(model)
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = sharpness.cross_entropy(labels, model(images))
        gradients = inner.gradient(value, variables)
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    blocks = [outer.jacobian(flat, v) for v in variables]
    return np.concatenate([np.reshape(block, (len(flat), -1)) for block in blocks], axis=1)
