"""A MobileNetV2 trained in Keras 3 leaves as a W8A8 `.tflite` that passes the gate of `verify` as
it stands."""

import keras as keras3
import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

import tf_fpq
import tflite_export


def _digits():
    digits = datasets.load_digits()
    images = tf.image.resize(digits.images[..., None] / 8.0 - 1.0, (32, 32)).numpy()
    return np.repeat(images, 3, axis=-1).astype("float32"), digits.target


@pytest.mark.slow
def test_w8a8_passes_the_gate(tmp_path):
    keras3.utils.set_random_seed(0)
    model = keras3.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras3.layers.BatchNormalization):
            layer.momentum = 0.9  # five epochs must settle it
    images, labels = _digits()
    model.compile(
        keras3.optimizers.Adam(1e-3),
        keras3.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images[:1500], labels[:1500], batch_size=50, epochs=5, verbose=0)
    accuracy = np.mean(model.predict(images[1500:], verbose=0).argmax(-1) == labels[1500:])
    assert accuracy > 0.8

    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    tf_fpq.calibrate(student, images[:100], verbose=0)
    exported = tflite_export.export(student, tmp_path / "w8a8.tflite")
    tflite_export.verify(
        student, exported, images[1500:], verbose=0
    )  # raises below 99.5 % of the same classes
    quantized = np.mean(student.predict(images[1500:], verbose=0).argmax(-1) == labels[1500:])
    assert quantized > accuracy - 0.02
