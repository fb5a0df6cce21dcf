"""Moving statistics that are not those of the images: seen, named and mended."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.calibration.batch_norms import disagreement
from tf_fpq.calibration.observation import Moments
from tf_fpq.keras_compat import keras

IMAGES = small_student.images(64)
NORMS = ("stem_bn", "depthwise_bn", "pointwise_bn")


def _student(steps, momentum=0.9):
    """A student of a network whose moving statistics saw some batches."""
    keras.utils.set_random_seed(0)
    model = small_student.network()
    for name in NORMS:
        model.get_layer(name).momentum = momentum
    for _ in range(steps):
        model(IMAGES, training=True)
    return tf_fpq.quantize_model(model, [tf_fpq.QuantRule(weight_bits=4, activation_bits=4)])


def _norm(mean, variance, epsilon=0.0):
    layer = keras.layers.BatchNormalization(epsilon=epsilon)
    layer.build((None, len(mean)))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    return layer


def test_disagreement_is_a_distance_or_a_number_of_doublings():
    moments = Moments(1, np.array([0.5]), np.array([1 / 16]))
    assert disagreement(_norm([0.0], [1.0]), moments) == pytest.approx(2)
    assert disagreement(_norm([0.5], [1 / 16]), moments) == 0
    assert disagreement(_norm([-2.5], [1 / 4]), moments) == pytest.approx(6)
    assert disagreement(_norm([0.5], [1 / 16 + 3e-3], 1e-3), moments) < 0.04
    dead = Moments(1, np.array([0.5, 0.5, 9.0]), np.array([1.0, 1.0, 0.0]))
    assert disagreement(_norm([0.5, 0.5, 0.5], [1.0] * 3), dead) == 0, "the median channel"


def test_statistics_that_hardly_moved_are_named_with_the_way_out():
    with pytest.warns(UserWarning) as caught:
        tf_fpq.calibrate(_student(3, momentum=0.99), IMAGES, verbose=0)
    (text,) = {str(warning.message) for warning in caught}
    assert "of 3 batch norms are not those of these images, which lie in [" in text
    assert "stem_bn (" in text and "reestimate_batch_norms=True" in text
    assert all(warning.filename == __file__ for warning in caught), "points at the caller"


def test_images_of_another_range_are_named():
    with pytest.warns(
        UserWarning, match=r"which lie in \[.*, 25\d\.?\d*\]: stem_bn .*preprocessed"
    ):
        tf_fpq.calibrate(_student(20, momentum=0.5), IMAGES * 255, verbose=0)


def test_settled_and_frozen_statistics_are_no_matter():
    frozen = _student(3, momentum=0.99)
    for name in NORMS:
        frozen.get_layer(name).trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_fpq.calibrate(_student(20, momentum=0.5), IMAGES[:8], verbose=0)
        tf_fpq.calibrate(frozen, IMAGES, verbose=0)


@pytest.mark.parametrize("dataset", [False, True])
def test_reestimation_gives_the_statistics_of_the_images_before_the_ranges(dataset):
    student, settled = _student(0), _student(1, momentum=0.0)
    images = tf.data.Dataset.from_tensor_slices(IMAGES).batch(64) if dataset else IMAGES
    kernel = student.get_layer("stem").layer.kernel.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_fpq.calibrate(student, images, reestimate_batch_norms=True, verbose=0)
        tf_fpq.calibrate(settled, images, verbose=0)
    assert len(student.weights) == len(settled.weights)
    for found, expected in zip(student.weights, settled.weights):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=found.name)
    np.testing.assert_array_equal(student.get_layer("stem").layer.kernel, kernel)
    assert student.get_layer("stem_bn").momentum == 0.9
