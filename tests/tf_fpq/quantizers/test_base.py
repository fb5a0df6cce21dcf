"""What all quantizers share, on a quantizer that adds nothing to it."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import base, numerics, range_estimators
from tf_fpq.quantizers.range_estimators import Samples
from tf_fpq.quantizers.spec import QuantSpec

SAMPLES = Samples.of(np.random.default_rng(0).normal(0.3, 1.0, (2, 500)))
WEIGHT = {"symmetric": True, "narrow_range": True}


class Plain(base.GridQuantizer):
    """The base class with the variables of a step size."""

    def build(self, tensor_shape, name, layer):
        return self._add_step_size(tensor_shape, name, layer)

    def __call__(self, inputs, training, weights, **kwargs):
        raise AssertionError("not called")


class Other(Plain):
    """Another class with the same arguments."""


def _built(shape=(None, 3), layer=None, **arguments):
    quantizer = Plain(4, **arguments)
    return quantizer, quantizer.build(shape, "x", layer or keras.layers.Layer())


def test_the_grid_of_a_quantizer_is_unsigned_and_whole_unless_it_says_otherwise():
    assert Plain(4).spec == QuantSpec(num_bits=4)
    assert Plain(4).get_config() == {
        "num_bits": 4,
        "symmetric": False,
        "narrow_range": False,
        "axis": None,
    }
    assert (Plain.observes, Plain.has_grid) == (False, True)


def test_the_config_is_what_the_quantizer_was_made_with():
    arguments = {"num_bits": 3, "symmetric": True, "narrow_range": True, "axis": [2, 3]}
    quantizer = Plain(**arguments)
    assert quantizer.get_config() == arguments
    assert Plain.from_config(arguments) == quantizer
    assert quantizer.replace(axis=None) == Plain(3, **WEIGHT)


def test_quantizers_are_equal_if_class_and_arguments_are():
    assert Plain(4) == Plain(4) and hash(Plain(4)) == hash(Plain(4))
    assert Plain(4) != Plain(5)
    assert Plain(4) != Other(4) and Other(4) != Plain(4)
    assert Plain(4) != "Plain(4)"


def test_a_subclass_has_to_build_its_variables():
    class Unfinished(Plain):
        build = base.GridQuantizer.build

    with pytest.raises(NotImplementedError, match=r"^Unfinished does not implement build\.$"):
        Unfinished(4).build((2, 2), "x", keras.layers.Layer())


@pytest.mark.parametrize(
    ("arguments", "step_size", "zero_point"),
    [
        ({"num_bits": 4}, 12 / 15, 8),
        ({"num_bits": 8}, 12 / 255, 128),
        ({"num_bits": 2}, 12 / 3, 2),
        ({"num_bits": 4, **WEIGHT}, 6 / 7, 0),
    ],
)
def test_before_the_calibration_a_grid_covers_6_on_both_sides(arguments, step_size, zero_point):
    quantizer = Plain(**arguments)
    variables = quantizer.build((None, 3), "x", keras.layers.Layer())
    assert {name: v.numpy() for name, v in variables.items()} == {
        "step_size": np.float32(step_size),
        "zero_point": zero_point,
    }
    assert quantizer.uncalibrated(variables)


def test_variables_are_one_for_each_grid_in_float32_and_the_zero_point_does_not_train():
    layer = keras.layers.Layer(dtype="mixed_bfloat16")
    _, variables = _built((3, 3, 2, 5), layer, axis=(3,), **WEIGHT)
    assert [v.name for v in layer.trainable_weights] == ["x_step_size:0"]
    assert [v.name for v in layer.non_trainable_weights] == ["x_zero_point:0"]
    for variable in variables.values():
        assert (variable.shape, variable.dtype) == ((1, 1, 1, 5), tf.float32)
        assert variable.aggregation == tf.VariableAggregation.MEAN
    frozen = Plain(4)._add_step_size((2, 2), "y", layer, trainable=False)
    assert not frozen["step_size"].trainable and not frozen["zero_point"].trainable


def test_a_grid_that_moved_by_a_hundred_thousandth_is_calibrated():
    for part in ("step_size", "zero_point"):
        quantizer, variables = _built()
        variables[part].assign(variables[part] * (1 + 1e-7))
        assert quantizer.uncalibrated(variables)
        variables[part].assign(variables[part] * (1 + 1e-5))
        assert quantizer.uncalibrated(variables) is False


def test_a_weight_whose_zero_point_moved_is_calibrated():
    quantizer, variables = _built(**WEIGHT)
    variables["zero_point"].assign(1e-3)
    assert not quantizer.uncalibrated(variables)


def test_without_variables_there_is_nothing_to_calibrate():
    assert Plain(4).uncalibrated({}) is False


@pytest.mark.parametrize(("step_size", "expected"), [(0.5, 0.5), (-0.5, 0.5), (0.0, 1e-12)])
def test_a_step_is_positive_whatever_its_variable_is(step_size, expected):
    quantizer, variables = _built()
    variables["step_size"].assign(step_size)
    assert quantizer.grid(variables)[0] == np.float32(expected)
    assert numerics.MIN_STEP_SIZE == 1e-12


def test_codes_are_places_on_the_grid_and_held_weights_have_the_values_of_theirs():
    quantizer, variables = _built()
    quantizer.set_grid(variables, 0.5, 3)
    inputs = tf.constant([[-9.0, 0.6], [1.1, 99.0]])
    assert quantizer.codes(inputs, variables).numpy().tolist() == [[0, 4], [5, 15]]
    mask = tf.constant([[True, False], [False, True]])
    held = quantizer.held(inputs, tf.fill((2, 2), 7.0), mask, variables)
    assert held.numpy().tolist() == [[2.0, np.float32(0.6)], [np.float32(1.1), 2.0]]


def test_weights_that_are_not_bent_are_their_own_latent_ones_and_none_sets_the_scale():
    quantizer, variables = _built()
    weights = tf.constant([[1.0, -2.0]])
    assert quantizer.latent(weights) is weights
    assert quantizer.unrounded(weights, variables) is weights
    found = quantizer.sets_scale(weights)
    assert found.dtype == tf.bool and found.numpy().tolist() == [[False, False]]


def test_the_largest_weights_are_those_of_a_channel_or_of_the_tensor_and_all_of_zeros():
    weights = tf.constant([[3.0, 0.5, 0.0], [-3.0, -0.4, 0.0]])
    largest = Plain(4, axis=(1,), **WEIGHT).is_largest(weights)
    assert largest.numpy().tolist() == [[True, True, True], [True, False, True]]
    largest = Plain(4, **WEIGHT).is_largest(weights)
    assert largest.numpy().tolist() == [[True, False, False], [True, False, False]]


@pytest.mark.parametrize("name", ["mse", "min_max", "percentile"])
def test_an_estimator_is_found_by_its_name(name):
    found = Plain(4).estimate(SAMPLES, name)
    expected = range_estimators.ESTIMATORS[name](SAMPLES, QuantSpec(num_bits=4))
    np.testing.assert_array_equal(found, expected)


def test_the_papers_start_is_the_quantizers_own_and_else_that_of_least_squared_error():
    class Papers(Plain):
        def paper_start(self, samples):
            return samples.low, samples.high

    np.testing.assert_array_equal(Papers(4).estimate(SAMPLES, "paper"), (SAMPLES.low, SAMPLES.high))
    np.testing.assert_array_equal(
        Plain(4).estimate(SAMPLES, "paper"), range_estimators.mse(SAMPLES, QuantSpec(num_bits=4))
    )


def test_an_estimator_may_be_a_function_of_samples_and_grid():
    seen = []
    found = Plain(4).estimate(SAMPLES, lambda *given: seen.append(given) or "its result")
    assert found == "its result" and seen == [(SAMPLES, QuantSpec(num_bits=4))]


def test_a_value_is_assigned_to_all_that_share_a_variable():
    variable = tf.Variable([[0.0, 0.0, 0.0]])
    base.assign(variable, 2.0)
    assert variable.numpy().tolist() == [[2.0, 2.0, 2.0]]
    base.assign(variable, np.array([1.0, 2.0, 3.0]))
    assert variable.numpy().tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((None,), False), ((None, 3), False), ((3, 3), True), ((3, None), True), ((), True)],
)
def test_a_weights_shape_does_not_begin_with_an_unknown_batch(shape, expected):
    assert base.is_weight(shape) is expected
    assert base.is_weight(tf.TensorShape(shape)) is expected


def test_lsqs_worked_numbers():
    kernel, steps = tf.zeros((3, 3, 16, 32)), tf.zeros((1, 1, 1, 32))
    assert base.elements_per_step(kernel, steps, of_weight=True) == 144
    assert base.lsq_gradient_scale(kernel, steps, 7, True) == pytest.approx((144 * 7) ** -0.5)
    images = tf.zeros((5, 32, 32, 16))
    assert base.elements_per_step(images, tf.constant(0.1), of_weight=False) == 16384
    assert base.lsq_gradient_scale(images, tf.constant(0.1), 15, False) == pytest.approx(
        (16384 * 15) ** -0.5
    )


def test_elements_of_a_size_that_is_known_only_when_it_runs_are_counted_then():
    images = tf.zeros((5, 4, 3, 6))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3, 6))])
    def count(images):
        return base.elements_per_step(images, tf.zeros((1, 1, 1, 6)), of_weight=False)

    found = count(images)
    assert (found.dtype, float(found)) == (tf.float32, 12)
