"""PACT: its clip, its arguments and where it starts."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import Built
from tf_fpq.quantizers import DoReFaQuantizer, PactQuantizer, range_estimators
from tf_fpq.quantizers.range_estimators import Samples

SAMPLES = Samples.of(np.random.default_rng(0).normal(0.3, 1.0, (2, 500)))
WEIGHT = {"symmetric": True, "narrow_range": True}


def test_the_clip_decays_a_little_unless_it_says_otherwise():
    assert PactQuantizer(4).get_config() == {**DoReFaQuantizer(4).get_config(), "l2": 2e-4}
    assert PactQuantizer(4, l2=0.0).l2 == 0.0
    for l2 in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match=rf"^l2 must not be negative\. Received: l2={l2}\.$"):
            PactQuantizer(4, l2=l2)


def test_the_worked_number():
    built = Built(PactQuantizer(4), (1, 3), of_weight=False)
    built.variables["alpha"].assign(3.0)
    built.variables["zero_point"].assign(0.0)
    values, ones = np.float32([[0.65, 5.0, -1.0]]), np.ones((1, 3), np.float32)
    outputs, gradients = built.gradients(values, ones)
    np.testing.assert_allclose(outputs, [[0.6, 3.0, 0.0]], rtol=1e-6)
    assert gradients["alpha"] == 1 and gradients["x"].tolist() == [[1, 0, 0]]


def test_the_clip_starts_at_the_range_before_the_calibration_and_alone_trains_and_decays():
    built = Built(PactQuantizer(4, l2=0.5), (1, 3), of_weight=False)
    assert {name: float(v) for name, v in built.variables.items()} == {"alpha": 12, "zero_point": 8}
    assert [v.name for v in built.layer.trainable_weights] == ["x_alpha:0"]
    assert [float(loss) for loss in built.layer.losses] == [0.5 * 12**2]


def test_a_clip_of_0_still_has_a_step():
    built = Built(PactQuantizer(4), (1, 3), of_weight=False)
    for alpha, step in ((0.0, 1e-12), (-1.5, 0.1)):
        built.variables["alpha"].assign(alpha)
        assert built.grid()[0] == np.float32(step)


def test_the_paper_starts_at_10_for_activations_and_as_dorefa_for_weights():
    quantizer = PactQuantizer(4)
    step, zero = quantizer.estimate(SAMPLES, "paper")
    assert step.tolist() == [10 / 15] * 2
    np.testing.assert_array_equal(zero, range_estimators.min_max(SAMPLES, quantizer.spec)[1])
    step, zero = PactQuantizer(4, **WEIGHT).estimate(SAMPLES, "paper")
    assert (step.tolist(), zero.tolist()) == ([1 / 7] * 2, [0, 0])


def test_weights_are_dorefas():
    weights = tf.constant([0.5, 1.0])
    built = Built(PactQuantizer(4, **WEIGHT), (2,), of_weight=True).set(0.25, 0)
    assert set(built.variables) == {"step_size", "zero_point"}
    assert built.codes(weights).tolist() == [4, 7]
    assert built(weights).numpy().tolist() == [1.0, 1.75]
