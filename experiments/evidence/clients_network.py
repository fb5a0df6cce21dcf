"""The network that experiments.evidence.clients takes to the runtimes of others: handwritten digits
as RGB images, trained in seconds.
"""

import numpy as np
from sklearn import datasets

import tf_fpq
from tf_fpq.keras_compat import keras

LABELS = tuple("zero one two three four five six seven eight nine".split())
# Of the preprocessing `(pixel - mean) / std`; readers of metadata take one number for all channels.
# The input's grid is then that of the pixels, so that no pixel lies between two codes.
NORMALIZATION = (0.0, 255.0)
TEST_IMAGES = 360
_SIZE, _EPOCHS, _QAT_EPOCHS, _BATCH = 16, 6, 2, 32
# Few steps are trained, so moving statistics must follow fast.
_MOMENTUM = 0.9


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits of scikit-learn as uint8 images [count, 16, 16, 3], and their classes."""
    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = images.repeat(2, 1).repeat(2, 2)[..., np.newaxis]
    tints = np.float32([1.0, 0.8, 0.6])  # three channels that differ
    return np.rint(images * tints).astype(np.uint8), digits.target


def preprocessed(images: np.ndarray) -> np.ndarray:
    """Pixels as the network was trained on them."""
    mean, std = NORMALIZATION
    return (images.astype(np.float32) - np.float32(mean)) / np.float32(std)


def student(dense_per_channel: bool) -> keras.Model:
    """A trained W8A8 student.

    Args:
      dense_per_channel: Whether its Dense layer has one scale per output.
    """
    keras.utils.set_random_seed(0)
    images, classes = pixels()
    x, y = preprocessed(images[:-TEST_IMAGES]), classes[:-TEST_IMAGES]
    teacher = _network()
    loss = keras.losses.SparseCategoricalCrossentropy()
    teacher.compile(keras.optimizers.Adam(5e-3), loss)
    teacher.fit(x, y, batch_size=_BATCH, epochs=_EPOCHS, verbose=0)
    rules = [
        tf_fpq.QuantRule("digit", per_channel=dense_per_channel),
        tf_fpq.QuantRule(".*"),
    ]
    quantized = tf_fpq.quantize_model(teacher, rules)
    tf_fpq.calibrate(quantized, x[:256], verbose=0)
    model = tf_fpq.QatModel(quantized)
    model.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9), loss=loss)
    model.fit(x, y, batch_size=_BATCH, epochs=_QAT_EPOCHS, verbose=0)
    return model.student


def _network() -> keras.Model:
    layers = keras.layers
    image = keras.Input((_SIZE, _SIZE, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(
        layers.BatchNormalization(momentum=_MOMENTUM, name="stem_bn")(x)
    )
    skip = x
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0, name="depthwise_relu")(
        layers.BatchNormalization(momentum=_MOMENTUM, name="depthwise_bn")(x)
    )
    x = layers.Conv2D(16, 1, use_bias=False, name="project")(x)
    x = layers.Add(name="add")(
        [skip, layers.BatchNormalization(momentum=_MOMENTUM, name="project_bn")(x)]
    )
    x = layers.ReLU(name="add_relu")(x)
    x = layers.MaxPooling2D(2, name="max_pool")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="head")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(len(LABELS), activation="softmax", name="digit")(x)
    return keras.Model(image, x, name="digits")
