"""What is taken of each tensor, and that it is as much for few images as for many."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.calibration import observation
from tf_fpq.calibration.calibration_images import CalibrationImages
from tf_fpq.calibration.observation import Moments
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import range_estimators


@pytest.mark.parametrize("channels", [1, 2, 3, 10, 96, 30030])
@pytest.mark.parametrize("size", [100, 16384, 16385, 300_001, 49_152_000])
def test_the_stride_is_the_lowest_that_visits_all_channels(size, channels):
    stride = int(observation._stride(tf.constant(size), channels))
    expected = -(-size // observation.SAMPLES_PER_BATCH)
    while expected > 1 and math.gcd(expected, channels) > 1:
        expected += 1
    assert stride == expected


def test_a_look_is_the_exact_range_and_a_sample_of_all_channels():
    values = np.random.default_rng(0).normal(size=(64, 20, 20, 6)).astype(np.float32)
    values += 10 * np.arange(6)  # the channel can be told from the value
    sample, low, high = observation._look(tf.constant(values))
    assert (low, high) == (values.min(), values.max())
    assert 10_000 < len(sample) <= observation.SAMPLES_PER_BATCH
    counts = np.bincount(np.rint(sample.numpy() / 10).astype(int), minlength=6)
    np.testing.assert_allclose(counts / len(sample), 1 / 6, atol=0.01)


def test_moments_of_parts_are_those_of_all():
    x = np.random.default_rng(1).normal(3, 2, (30, 5, 4))
    parts = [
        Moments(len(part), part.mean((0, 1)), part.var((0, 1))) for part in np.split(x, [4, 25])
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.images == 30
    np.testing.assert_allclose(merged.mean, x.mean((0, 1)))
    np.testing.assert_allclose(merged.variance, x.var((0, 1)))


def test_tensors_and_batch_norms_are_those_of_the_float_network():
    model = small_student.network()
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(weight_bits=2, activation_bits=2)])
    images = small_student.images(20)
    seen = observation.observe(student, CalibrationImages(student, images, 6), verbose=0)
    read = keras.Model(model.input, model.get_layer("pointwise_bn").input)(images).numpy()
    moments = seen.moments["pointwise_bn"]
    np.testing.assert_allclose(moments.mean, read.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moments.variance, read.var((0, 1, 2)), rtol=1e-3)
    relu = keras.Model(model.input, model.get_layer("stem_relu").output)(images).numpy()
    samples = seen.samples["stem_relu_quantize"]
    np.testing.assert_allclose(np.sort(samples.values[0]), np.sort(relu.ravel()), atol=1e-5)
    assert list(seen.moments) == ["stem_bn", "depthwise_bn", "pointwise_bn"], "in network order"


def test_more_images_take_no_more_samples(monkeypatch):
    monkeypatch.setattr(range_estimators, "MAX_SAMPLES", 1000)
    _, student = small_student.pair()
    images = small_student.images(64)
    seen = observation.observe(student, CalibrationImages(student, images, 8), verbose=0)
    sizes = {name: samples.values.shape[1] for name, samples in seen.samples.items()}
    assert sizes["stem_relu_quantize"] == 1000 and sizes["logits_quantize"] == 64 * 4
    assert seen.samples["image_quantize"].high[0] == images.max(), "the range is that of all"
