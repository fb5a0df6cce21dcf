"""Where the images of a calibration come from, and in which parts they run."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq.calibration import calibration_images
from tf_fpq.calibration.calibration_images import CalibrationImages
from tf_fpq.keras_compat import keras

layers = keras.layers
RANDOM = np.random.default_rng(0)
LEFT = RANDOM.normal(0, 1, (10, 4, 4, 2)).astype(np.float32)
RIGHT = RANDOM.normal(0, 9, (10, 4, 4, 2)).astype(np.float32)


def _two_inputs(as_dict=False):
    left, right = keras.Input((4, 4, 2), name="left"), keras.Input((4, 4, 2), name="right")
    y = layers.Conv2D(3, 1, name="conv")(layers.Add(name="add")([left, right]))
    inputs = {"b": left, "a": right} if as_dict else [left, right]
    return tf_fpq.quantize_model(keras.Model(inputs, y), [tf_fpq.QuantRule()])


def _step(student, name):
    layer = student.get_layer(f"{name}_quantize")
    return float(layer.quantizer.grid(layer.variables_of_quantizer)[0])


@pytest.mark.parametrize(
    "images",
    [
        (LEFT, RIGHT),
        [LEFT, RIGHT],
        {"right": RIGHT, "left": LEFT},
        tf.data.Dataset.from_tensor_slices(((LEFT, RIGHT), np.zeros(10))).batch(4),
        tf.data.Dataset.from_tensor_slices(({"right": RIGHT, "left": LEFT}, np.zeros(10))).batch(4),
        tf.data.Dataset.from_tensor_slices({"right": RIGHT, "left": LEFT}).batch(4),
    ],
)
def test_several_inputs_by_order_and_by_name(images):
    student = _two_inputs()
    tf_fpq.calibrate(student, images, estimator="min_max", verbose=0)
    assert _step(student, "left") == pytest.approx(np.ptp(LEFT) / 255, rel=1e-5)
    assert _step(student, "right") == pytest.approx(np.ptp(RIGHT) / 255, rel=1e-5)


def test_a_model_of_a_dict_takes_its_keys():
    student = _two_inputs(as_dict=True)
    tf_fpq.calibrate(student, {"b": LEFT, "a": RIGHT}, estimator="min_max", verbose=0)
    assert _step(student, "left") == pytest.approx(np.ptp(LEFT) / 255, rel=1e-5)
    assert _step(student, "right") == pytest.approx(np.ptp(RIGHT) / 255, rel=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"left": LEFT}, "images must have an array for each input, left, right. Received: left."),
        (LEFT, r"a tuple of 2 arrays, for the inputs left, right, .* Received: 1 array"),
        ((LEFT, RIGHT, LEFT), "Received: 3 array"),
        ((LEFT, RIGHT[:9]), r"All inputs must have as many images. Received: \[10, 9\]"),
        ((LEFT, np.full(RIGHT.shape, "x")), "numbers. Received: images of dtype <U1"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(images, message):
    with pytest.raises(ValueError, match=message):
        tf_fpq.calibrate(_two_inputs(), images, verbose=0)


def _one_input(*first):
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for layer in first:
        x = layer(x)
    y = layers.Conv2D(3, 3, name="conv")(x)
    return tf_fpq.quantize_model(keras.Model(image, y), [tf_fpq.QuantRule()])


def test_of_two_views_the_weak_one():
    images = np.linspace(0, 1, 8 * 64, dtype=np.float32).reshape(8, 8, 8, 1)
    labeled = tf.data.Dataset.from_tensor_slices((images, np.zeros(8))).batch(4)
    views = tf_fpq.two_views(
        labeled, weak=lambda images, seed: images * 3.0, strong=lambda images, seed: images * 7.0
    )
    student = _one_input()
    tf_fpq.calibrate(student, views, estimator="min_max", verbose=0)
    assert _step(student, "image") == pytest.approx(3 / 255, rel=1e-5)


def test_bytes_are_pointed_out_unless_a_layer_rescales_them():
    images = RANDOM.integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    with pytest.warns(UserWarning, match=r"images for image are uint8.*astype\(.float32.\)"):
        tf_fpq.calibrate(_one_input(), images, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_fpq.calibrate(_one_input(), images.astype(np.float32), verbose=0)
        tf_fpq.calibrate(_one_input(layers.Rescaling(1 / 255)), images, verbose=0)
        tf_fpq.calibrate(
            _one_input(layers.ZeroPadding2D(), layers.Rescaling(1 / 255)), images, verbose=0
        )


def test_large_images_run_in_equal_parts(monkeypatch):
    # The largest tensor is the input's: 8 * 8 float32; the convolution's is 6 * 6 * 3.
    monkeypatch.setattr(calibration_images, "LARGEST_TENSOR", 4 * 108 * 13)
    images = RANDOM.random((100, 8, 8, 1), np.float32)
    batches = CalibrationImages(_one_input(), images, batch_size=64)
    assert [len(part) for (part,) in batches] == [13, 13, 13, 13, 12, 12, 12, 12]
    np.testing.assert_array_equal(np.concatenate([part for (part,) in batches]), images)
    assert batches.range == (images.min(), images.max())
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(100)
    parts = [len(part) for (part,) in CalibrationImages(_one_input(), dataset, 64)]
    assert parts == [13] * 7 + [9]
    monkeypatch.setattr(calibration_images, "LARGEST_TENSOR", 1)
    assert {len(part) for (part,) in batches} == {1}, "an image at a time at least"


def test_sides_that_the_model_leaves_open_are_the_images(monkeypatch):
    image = keras.Input((None, None, 1))
    model = keras.Model(image, layers.Conv2D(4, 1)(image))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    monkeypatch.setattr(calibration_images, "LARGEST_TENSOR", 4 * 4 * 16 * 10 * 3)
    images = RANDOM.random((9, 16, 10, 1), np.float32)
    assert [len(part) for (part,) in CalibrationImages(student, images, 64)] == [3, 3, 3]
    tf_fpq.calibrate(student, images, verbose=0)


def test_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1. Received: batch_size=0"):
        tf_fpq.calibrate(_one_input(), RANDOM.random((2, 8, 8, 1)), batch_size=0)
