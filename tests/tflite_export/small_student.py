"""A small calibrated student with every kind of weight, for the tests of export, verification and
the programs."""

import functools

import numpy as np

import tf_fpq
from tf_fpq.keras_compat import keras

layers = keras.layers


def float_model() -> keras.Model:
    """8x8x2 images -> conv, depthwise, projection, residual sum, pooling, 5 classes; no two
    channels are alike."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = skip = layers.ReLU(name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU(6.0, name="depthwise_relu")(x)
    x = layers.Conv2D(6, 1, name="project")(x)
    x = layers.BatchNormalization(name="project_bn")(x)
    x = layers.Add(name="add")([skip, x])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(5, name="logits")(x), name="small")
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name.endswith(("bias:0", "beta:0", "moving_mean:0")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        elif weight.name.endswith(("gamma:0", "moving_variance:0")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    # A negative gamma flips the sign of its channel's codes.
    model.get_layer("stem_bn").gamma.assign(model.get_layer("stem_bn").gamma * [1, -1, 1, 1, -1, 1])
    return model


def images(count: int = 96) -> np.ndarray:
    """Images with large means of their own, so that classes are far apart."""
    rng = np.random.default_rng(2)
    return (rng.normal(0, 1, (count, 1, 1, 2)) + 0.5 * rng.normal(0, 1, (count, 8, 8, 2))).astype(
        np.float32
    )


def make_student(weight_bits: int = 4, activation_bits: int = 8) -> keras.Model:
    """A new calibrated student of `float_model`."""
    student = tf_fpq.quantize_model(
        float_model(),
        [
            tf_fpq.QuantRule("logits", weight_bits=8, activation_bits=8),
            tf_fpq.QuantRule(".*", weight_bits=weight_bits, activation_bits=activation_bits),
        ],
    )
    tf_fpq.calibrate(student, images(32), verbose=0)
    return student


@functools.cache
def student() -> keras.Model:
    """One W4A8 student for tests that do not change it."""
    return make_student()
