"""A small residual network, its student and data: what the tests of training share."""

import numpy as np

import tf_fpq
from tf_fpq.keras_compat import keras

layers = keras.layers

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(regularizer: float | None = None, classes: int = 4) -> keras.Model:
    """8x8x1 images; convolution, depthwise, pointwise and a residual addition that reads the stem's
    quantized output."""
    l2 = keras.regularizers.L2(regularizer) if regularizer else None
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, kernel_regularizer=l2, name="stem")(
        image
    )
    x = layers.BatchNormalization(name="stem_bn")(x)
    skip = layers.ReLU(name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(skip)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ReLU(6.0, name="depthwise_relu")(x)
    x = layers.Conv2D(8, 1, use_bias=False, name="pointwise")(x)
    x = layers.BatchNormalization(name="pointwise_bn")(x)
    x = layers.Add(name="add")([x, skip])
    x = layers.ReLU(name="add_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x))


def images(count: int = 32, seed: int = 0) -> np.ndarray:
    """Images in [0, 1]."""
    return np.random.default_rng(seed).random((count, 8, 8, 1), np.float32)


def labels(count: int = 32, seed: int = 1) -> np.ndarray:
    """Random labels of four classes."""
    return np.random.default_rng(seed).integers(0, 4, count)


def student_of(teacher: keras.Model, bits: int = 4) -> keras.Model:
    """A calibrated student of `teacher`."""
    student = tf_fpq.quantize_model(
        teacher, [tf_fpq.QuantRule(".*", weight_bits=bits, activation_bits=bits)]
    )
    tf_fpq.calibrate(student, images(), verbose=0)
    return student


def pair(bits: int = 4, seed: int = 0, **arguments) -> tuple[keras.Model, keras.Model]:
    """Teacher and student, the same for the same seed."""
    keras.utils.set_random_seed(seed)
    teacher = network(**arguments)
    return teacher, student_of(teacher, bits)


def bytes_of(model: keras.Model) -> list[bytes]:
    """The bytes of every weight."""
    return [weight.tobytes() for weight in model.get_weights()]


def fit(
    model: keras.Model, epochs: int = 2, learning_rate: float = 0.05, **arguments
) -> dict[str, list[float]]:
    """Trains on the small data in order, with SGD and momentum; returns the history."""
    compile_arguments = {
        key: arguments.pop(key)
        for key in ("jit_compile", "steps_per_execution")
        if key in arguments
    }
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, loss=LOSS, metrics=["accuracy"], **compile_arguments)
    data = {"x": images(), "y": labels(), "batch_size": 16, **arguments}
    return model.fit(**data, epochs=epochs, shuffle=False, verbose=0).history
