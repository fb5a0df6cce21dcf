"""A network from outside whose moving statistics hardly moved: MobileNetV2 of keras.applications
after one epoch. Its batch norms have momentum 0.999.
"""

import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

import tf_fpq
from tf_fpq.keras_compat import keras


def _digits(count=640):
    digits = datasets.load_digits()
    images = tf.image.resize(digits.images[:count, ..., None] / 8.0 - 1.0, (64, 64)).numpy()
    return np.repeat(images, 3, axis=-1).astype(np.float32), digits.target[:count]


def _losses(student, images, labels, epochs):
    """The mean loss of each epoch, the last one not finite if training diverged."""
    loss = keras.losses.SparseCategoricalCrossentropy()
    student.compile(keras.optimizers.SGD(0.01), loss=loss)
    stop = keras.callbacks.TerminateOnNaN()
    history = student.fit(
        images, labels, batch_size=32, epochs=epochs, shuffle=False, verbose=0, callbacks=[stop]
    )
    return history.history["loss"]


@pytest.mark.slow
def test_a_weak_mobilenet_v2_trains_once_its_batch_norms_are_those_of_the_images():
    keras.utils.set_random_seed(0)
    images, labels = _digits()
    teacher = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation="softmax"
    )
    _losses(teacher, images, labels, epochs=1)
    rules = [tf_fpq.QuantRule(weight_bits=4, activation_bits=4)]
    student = tf_fpq.quantize_model(teacher, rules)
    with pytest.warns(UserWarning, match="batch norms are not those of these images"):
        tf_fpq.calibrate(student, images[:128], verbose=0)
    as_it_is = _losses(student, images, labels, epochs=2)
    assert not min(as_it_is) < 2.2, "NaN, or chance, which is log(10)"
    student = tf_fpq.quantize_model(teacher, rules)
    tf_fpq.calibrate(student, images[:128], reestimate_batch_norms=True, verbose=0)
    first, second = _losses(student, images, labels, epochs=2)
    assert np.isfinite(second) and second < first
