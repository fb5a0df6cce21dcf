"""EWGS: its scaled gradient, its arguments and where it starts."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import Built
from tf_fpq.quantizers import EwgsQuantizer, LsqQuantizer
from tf_fpq.quantizers.range_estimators import Samples

SAMPLES = Samples(np.array([[1.0, 3.0], [0.0, 8.0]]), np.array([-1.0, -2.0]), np.array([9.0, 9.0]))


def test_gradients_are_scaled_by_a_thousandth_unless_it_says_otherwise():
    assert EwgsQuantizer(4).get_config() == {**LsqQuantizer(4).get_config(), "delta": 1e-3}
    assert EwgsQuantizer(4, delta=0.0).delta == 0.0
    assert EwgsQuantizer(4).watch is None
    for delta in (-1e-9, float("nan")):
        message = rf"^delta must not be negative\. Received: delta={delta}\.$"
        with pytest.raises(ValueError, match=message):
            EwgsQuantizer(4, delta=delta)


def test_the_worked_number():
    built = Built(EwgsQuantizer(4, delta=0.1), (1, 2), of_weight=False).set(1.0, 0)
    values, ones = np.float32([[2.4, 2.4]]), np.float32([[1.0, -1.0]])
    _, gradients = built.gradients(values, ones)
    np.testing.assert_allclose(
        gradients["x"], [[1 + 0.1 * 0.4 / 15, -1 + 0.1 * 0.4 / 15]], rtol=1e-6
    )


def test_delta_is_one_for_the_tensor_and_does_not_train():
    quantizer = EwgsQuantizer(4, delta=0.3, symmetric=True, narrow_range=True, axis=(1,))
    built = Built(quantizer, (2, 3), of_weight=True)
    assert [v.name for v in built.layer.trainable_weights] == ["x_step_size:0"]
    delta = built.variables["delta"]
    assert (delta.shape, delta.dtype, float(delta)) == ((), tf.float32, np.float32(0.3))
    assert delta.aggregation == tf.VariableAggregation.MEAN


def test_who_watches_sees_and_may_replace_the_outputs():
    built = Built(EwgsQuantizer(4), (1, 2), of_weight=False).set(1.0, 0)
    seen = []
    built.quantizer.watch = lambda *given: seen.append(given) or "replaced"
    assert built(np.float32([[2.4, 3.6]])) == "replaced"
    ((quantizer, outputs, variables),) = seen
    assert quantizer is built.quantizer and variables is built.variables
    assert outputs.numpy().tolist() == [[2.0, 4.0]]


def test_the_authors_start_is_three_deviations_of_each_tensor():
    step, zero = EwgsQuantizer(4, symmetric=True, narrow_range=True).paper_start(SAMPLES)
    np.testing.assert_allclose(step * 7, [3, 12])
    assert zero.tolist() == [0, 0]
    step, zero = EwgsQuantizer(4).paper_start(SAMPLES)
    high = np.array([3, 12]) / np.sqrt(1 - 2 / np.pi)
    np.testing.assert_allclose(step * 15, high + [1, 2])
    np.testing.assert_array_equal(zero, np.round(15 - high / step))
