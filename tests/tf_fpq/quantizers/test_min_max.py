"""Min-max: what it observes, and the grid of a range."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import Built
from tf_fpq.quantizers import LsqQuantizer, MinMaxQuantizer

WEIGHT = {"symmetric": True, "narrow_range": True}


def _ranged(quantizer, low, high, shape=(2, 3), of_weight=False):
    built = Built(quantizer, shape, of_weight)
    built.variables["range_min"].assign(low)
    built.variables["range_max"].assign(high)
    return built


def _range(built):
    return [built.variables[name].numpy().tolist() for name in ("range_min", "range_max")]


def test_a_hundredth_of_each_batch_is_taken_unless_it_says_otherwise():
    assert MinMaxQuantizer(4).get_config() == {**LsqQuantizer(4).get_config(), "momentum": 0.99}
    assert MinMaxQuantizer(4, momentum=0).momentum == 0
    for momentum in (-1e-9, 1, 1.5, float("nan")):
        message = rf"^momentum must be at least 0 and below 1\. Received: momentum={momentum}\.$"
        with pytest.raises(ValueError, match=message):
            MinMaxQuantizer(4, momentum=momentum)


def test_the_worked_number():
    built = _ranged(MinMaxQuantizer(4), -1.0, 4.0)
    built(np.float32([[-3, 0, 6], [1, 1, 1]]), training=True)
    np.testing.assert_allclose(_range(built), [-1.02, 4.02], rtol=1e-6)


def test_before_the_calibration_the_range_is_6_on_both_sides_and_does_not_train():
    built = Built(MinMaxQuantizer(4), (2, 3), of_weight=False)
    np.testing.assert_allclose(_range(built), [-6.4, 5.6], rtol=1e-6)
    weight = Built(MinMaxQuantizer(4, **WEIGHT), (2, 3), of_weight=True)
    np.testing.assert_allclose(_range(weight), [-6.0, 6.0], rtol=1e-6)
    assert not built.layer.trainable_weights and not weight.layer.trainable_weights


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[1, 2], [3, 4]], [0, 4]), ([[-1, -2], [-3, -4]], [-4, 0]), ([[-1, 2], [0, 1]], [-1, 2])],
)
def test_0_belongs_to_what_is_observed(values, expected):
    weight = Built(MinMaxQuantizer(4, **WEIGHT), (2, 2), of_weight=True)
    weight(np.float32(values), training=True)
    assert _range(weight) == expected


def test_each_channel_observes_its_own_range():
    quantizer = MinMaxQuantizer(4, momentum=0.5, axis=(1,))
    built = _ranged(quantizer, [[0.0, -2.0, 0.0]], [[4.0, 4.0, 0.0]])
    built(np.float32([[-1, 2, 1], [8, 0, 0.5]]), training=True)
    assert _range(built) == [[[-0.5, -1.0, 0.0]], [[6.0, 3.0, 0.5]]]


@pytest.mark.parametrize("training", [False, None, 0, tf.constant(False), tf.constant(0.0)])
def test_inference_observes_nothing(training):
    built = _ranged(MinMaxQuantizer(4, momentum=0.5), -1.0, 4.0)
    built(np.float32([[-3, 0, 6], [1, 1, 1]]), training=training)
    assert _range(built) == [-1.0, 4.0]


@pytest.mark.parametrize("training", [True, 1, tf.constant(True), tf.constant(1.0)])
def test_training_observes_before_it_quantizes(training):
    built = _ranged(MinMaxQuantizer(4, momentum=0.5), -1.0, 4.0)
    outputs = built(np.float32([[-3, 0, 7], [1, 1, 1]]), training=training)
    assert _range(built) == [-2.0, 5.5]
    np.testing.assert_allclose(outputs[0], [-2.0, 0.0, 5.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "low", "high", "step_size", "zero_point"),
    [
        ({}, -1.0, 2.0, 3 / 15, 5),
        ({}, 0.0, 3.0, 3 / 15, 0),
        ({}, -3.0, 0.0, 3 / 15, 15),
        # A range that lost 0 gets it back.
        ({}, 1.0, 3.0, 3 / 15, 0),
        ({}, -3.0, -1.0, 3 / 15, 15),
        ({"narrow_range": True}, -1.0, 2.0, 3 / 14, 6),
        ({}, 0.0, 0.0, 1 / 15, 15),
        (WEIGHT, -2.0, 1.0, 2 / 7, 0),
        (WEIGHT, -1.0, 2.0, 2 / 7, 0),
        (WEIGHT, 0.0, 0.0, 1 / 7, 0),
        ({}, -1e-14, 1e-14, 1e-12, 15),
    ],
)
def test_the_grid_of_a_range(arguments, low, high, step_size, zero_point):
    step, zero = _ranged(MinMaxQuantizer(4, **arguments), low, high).grid()
    assert (step, zero) == (pytest.approx(step_size, rel=1e-6), zero_point)


def test_channels_of_zeros_have_the_widest_channels_range():
    for arguments, width in (({}, 0.75), (WEIGHT, 0.5)):
        quantizer = MinMaxQuantizer(4, axis=(1,), **arguments)
        built = _ranged(quantizer, [[0.0, -0.25, 0.0]], [[0.0, 0.5, 0.0]])
        step, _ = built.grid()
        levels = 7 if arguments else 15
        np.testing.assert_allclose(step, [[width / levels] * 3], rtol=1e-6)


def test_a_grid_is_set_by_the_ends_of_its_range():
    built = Built(MinMaxQuantizer(4), (2, 3), of_weight=False).set(0.5, 3)
    assert _range(built) == [-1.5, 6.0]
