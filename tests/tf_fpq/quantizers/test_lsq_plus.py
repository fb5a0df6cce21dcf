"""LSQ+: its offset, and where it starts."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import Built
from tf_fpq.quantizers import LsqPlusQuantizer, range_estimators
from tf_fpq.quantizers.range_estimators import Samples

WEIGHT = {"symmetric": True, "narrow_range": True}


def test_the_worked_number():
    built = Built(LsqPlusQuantizer(4), (1, 2), of_weight=False)
    built.variables["step_size"].assign(0.1)
    built.variables["offset"].assign(-0.27)
    step, zero = built.grid()
    assert (step, zero) == (np.float32(0.1), 3)
    np.testing.assert_allclose(built(np.float32([[-9.0, 9.0]])), [[-0.3, 1.2]], rtol=1e-6)


def test_before_the_calibration_the_offset_is_the_lower_end_of_the_range():
    built = Built(LsqPlusQuantizer(4), (1, 2), of_weight=False)
    assert {name: v.numpy() for name, v in built.variables.items()} == {
        "step_size": np.float32(0.8),
        "offset": np.float32(-6.4),
    }
    assert [v.name for v in built.layer.trainable_weights] == ["x_step_size:0", "x_offset:0"]
    weight = Built(LsqPlusQuantizer(4, **WEIGHT), (2,), of_weight=True)
    assert set(weight.variables) == {"step_size"}


@pytest.mark.parametrize(
    ("offset", "narrow_range", "expected"),
    [(0.0, False, 0), (0.7, False, 0), (-0.4, False, 4), (-9.0, False, 15), (0.7, True, 1)],
)
def test_the_zero_point_is_a_code_of_the_grid(offset, narrow_range, expected):
    built = Built(LsqPlusQuantizer(4, narrow_range=narrow_range), (1, 2), of_weight=False)
    built.variables["step_size"].assign(0.1)
    built.variables["offset"].assign(offset)
    zero = built.grid()[1]
    assert zero == expected and not np.signbit(zero)


def test_a_step_of_0_is_still_a_step():
    for arguments in ({}, WEIGHT):
        built = Built(LsqPlusQuantizer(4, **arguments), (2, 2), of_weight=True)
        built.variables["step_size"].assign(0.0)
        step, zero = built.grid()
        assert step == np.float32(1e-12) and np.isfinite(zero)


def test_a_value_on_an_end_of_the_range_does_not_move_the_offset():
    # From -0.5 to 7, in steps of 0.5: one value below, the two ends, one above.
    built = Built(LsqPlusQuantizer(4), (1, 4), of_weight=False).set(0.5, 1)
    for values, moved in (([-0.5, 7.0, 1, 2], 0), ([-0.6, 7.0, 1, 2], 1), ([-0.6, 7.1, 1, 2], 2)):
        _, gradients = built.gradients(np.float32([values]), np.ones((1, 4), np.float32))
        np.testing.assert_allclose(gradients["offset"], moved / np.sqrt(4 * 15), rtol=1e-5)


def test_a_grid_is_set_by_its_step_and_its_offset():
    built = Built(LsqPlusQuantizer(4, axis=(1,)), (1, 2), of_weight=False)
    built.set([[0.5, 0.25]], [[3, 4]])
    assert built.variables["step_size"].numpy().tolist() == [[0.5, 0.25]]
    assert built.variables["offset"].numpy().tolist() == [[-1.5, -1.0]]


def test_the_paper_starts_at_three_deviations_or_at_the_best_step_and_offset():
    values = np.array([[1.0, 5.0], [-5.0, 1.0]])
    step, zero = LsqPlusQuantizer(4, **WEIGHT).paper_start(Samples.of(values))
    assert (step.tolist(), zero.tolist()) == ([(3 + 6) / 8, (2 + 9) / 8], [0, 0])
    samples = Samples.of(np.random.default_rng(0).normal(0.3, 1.0, (2, 100)))
    quantizer = LsqPlusQuantizer(3)
    np.testing.assert_array_equal(
        quantizer.paper_start(samples), range_estimators.offset_mse(samples, quantizer.spec)
    )


def test_half_precision_stays_half_precision():
    built = Built(LsqPlusQuantizer(4), (1, 2), of_weight=False).set(0.5, 1)
    found = built(tf.constant([[0.3, 99.0]], tf.bfloat16))
    assert found.dtype == tf.bfloat16 and found.numpy().tolist() == [[0.5, 7.0]]
