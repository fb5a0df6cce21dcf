"""DoReFa: what its arguments and estimators mean, and its latent weights number by number."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import Built
from tf_fpq.quantizers import DoReFaQuantizer, dorefa, range_estimators
from tf_fpq.quantizers.range_estimators import Samples

SAMPLES = Samples.of(np.random.default_rng(0).normal(0.3, 1.0, (2, 500)))
WEIGHT = {"symmetric": True, "narrow_range": True}


def _weight(axis=None):
    return DoReFaQuantizer(4, axis=axis, **WEIGHT)


def test_the_lowest_code_may_be_left_out_but_not_kept_for_weights():
    assert DoReFaQuantizer(4).spec.qmin == 0
    assert DoReFaQuantizer(4, narrow_range=True).spec.qmin == 1
    assert _weight().spec.qmin == -7
    message = (
        "narrow_range must be True for symmetric=True: the codes of DoReFa's weights never reach"
        " the lowest one. Received: narrow_range=False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DoReFaQuantizer(4, symmetric=True)


def test_codes_are_of_the_squashed_weights_whatever_the_step():
    weights = tf.constant([[0.5, 0.0], [1.0, 0.0]])
    built = Built(_weight((1,)), weights.shape, of_weight=True).set([[0.25, 1.0]], 0)
    assert built.codes(weights).tolist() == [[4, 0], [7, 0]]
    assert built(weights).numpy().tolist() == [[1.0, 0.0], [1.75, 0.0]]
    squashed = built.quantizer.unrounded(weights, built.variables).numpy()
    np.testing.assert_allclose(
        squashed, [[1.75 * np.tanh(0.5) / np.tanh(1.0), 0], [1.75, 0]], rtol=1e-6
    )


def test_the_largest_latent_weight_is_the_trained_one_up_to_3():
    for largest, expected in ((1.5, 1.5), (3.0, 3.0), (30.0, 3.0)):
        latent = _weight().latent(np.float32([largest, -largest / 2, 0.0]))
        halved = np.arctanh(np.tanh(expected) / 2)
        np.testing.assert_allclose(latent, [expected, -halved, 0.0], rtol=1e-5)
        assert latent.dtype == np.float32
    assert _weight().latent(np.zeros(2, np.float32)).tolist() == [0, 0]


def test_activations_are_not_bent():
    x = tf.constant([[-0.3, 0.2], [0.7, 9.0]])
    built = Built(DoReFaQuantizer(4), x.shape, of_weight=False).set(0.5, 1)
    assert built.quantizer.latent(x) is x
    assert built.quantizer.unrounded(x, built.variables) is x
    assert not built.quantizer.sets_scale(x).numpy().any()
    assert built.codes(x).tolist() == [[0, 1], [2, 15]]
    mask = tf.constant([[True, False], [False, False]])
    held = built.quantizer.held(x, tf.fill(x.shape, 3.0), mask, built.variables)
    np.testing.assert_array_equal(held, np.where(mask, 1.0, x))


def test_held_weights_follow_the_largest_of_those_that_are_free():
    weights = tf.constant([[0.5, 2.0], [1.0, 0.1], [9.0, 0.3]])
    mask = tf.constant([[True, False], [False, True], [True, False]])
    codes = tf.constant([[7.0, 0.0], [0.0, -3.0], [-2.0, 0.0]])
    held = _weight((1,)).held(weights, codes, mask, {}).numpy()
    first, second = np.tanh(1.0), np.tanh(2.0)
    expected = [
        [1.0, 2.0],
        [1.0, np.arctanh(-3 / 7 * second)],
        [np.arctanh(-2 / 7 * first), 0.3],
    ]
    np.testing.assert_allclose(held, expected, rtol=1e-5)


def test_weights_beside_which_tanh_is_1_are_held_at_the_largest_finite_latent_weight():
    weights, mask = tf.constant([30.0, 0.0, 0.0]), tf.constant([False, True, True])
    held = _weight().held(weights, tf.constant([7.0, 7.0, -7.0]), mask, {}).numpy()
    np.testing.assert_allclose(held, [30.0, 8.664, -8.664], rtol=1e-4)
    assert np.float32(dorefa.MAX_SQUASHED) == np.nextafter(np.float32(1), np.float32(0))


def test_the_weights_with_the_largest_tanh_set_the_scale():
    """Of 20 and 30 it is the same float32."""
    weights = tf.constant([[30.0, 0.5], [-20.0, 0.4], [2.0, -0.5]])
    assert _weight((1,)).sets_scale(weights).numpy().tolist() == [
        [True, True],
        [True, False],
        [False, True],
    ]


@pytest.mark.parametrize("estimator", ["mse", "min_max", "percentile"])
def test_least_squared_error_clips_no_weight_and_all_else_is_what_its_name_says(estimator):
    for quantizer in (DoReFaQuantizer(4), _weight()):
        whole = estimator == "mse" and quantizer.spec.symmetric
        expected = range_estimators.min_max if whole else range_estimators.ESTIMATORS[estimator]
        np.testing.assert_array_equal(
            quantizer.estimate(SAMPLES, estimator), expected(SAMPLES, quantizer.spec)
        )


def test_the_papers_grids_reach_1():
    step, zero = _weight().estimate(SAMPLES, "paper")
    assert (step.tolist(), zero.tolist()) == ([1 / 7] * 2, [0, 0])
    quantizer = DoReFaQuantizer(4)
    step, zero = quantizer.estimate(SAMPLES, "paper")
    np.testing.assert_array_equal(zero, range_estimators.min_max(SAMPLES, quantizer.spec)[1])
    assert step.tolist() == [1 / 15] * 2
