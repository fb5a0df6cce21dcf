"""Quantizers of tfmot and of users, as this library's quantizers."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq.keras_compat import deserialize, keras, serialize
from tf_fpq.quantizers import LsqQuantizer
from tf_fpq.quantizers.adopted import OpaqueQuantizer, RangeQuantizer, adopt
from tf_fpq.quantizers.spec import QuantSpec

theirs = tfmot.quantization.keras.quantizers
X = np.random.default_rng(0).normal(0.3, 1, (7, 5, 4)).astype(np.float32)
WEIGHT = {"symmetric": True, "narrow_range": True}
CLASSES = [theirs.LastValueQuantizer, theirs.MovingAverageQuantizer, theirs.AllValuesQuantizer]


def _built(quantizer, shape=X.shape):
    adopted = adopt(quantizer)
    return adopted, adopted.build(shape, "x", keras.layers.Layer(name="layer"))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("kind", CLASSES)
def test_values_are_theirs_and_lie_on_the_grid(kind, num_bits, narrow_range, symmetric):
    inner = kind(num_bits, per_axis=False, symmetric=symmetric, narrow_range=narrow_range)
    quantizer, variables = _built(inner)
    quantizer(X, True, variables)  # moves the range
    found = quantizer(X, False, variables).numpy()
    step, zero = (part.numpy() for part in quantizer.grid(variables))
    codes = quantizer.codes(X, variables).numpy()
    np.testing.assert_allclose(found, step * (codes - zero), rtol=1e-6, atol=1e-7)
    assert codes.min() >= quantizer.spec.qmin and codes.max() <= quantizer.spec.qmax
    expected = inner(tf.constant(X), False, variables).numpy()
    # Ties are the only difference: theirs go up.
    off = np.abs(found - expected)
    assert off.max() < 1.01 * step and (off > 1e-5).mean() < 0.02


def test_each_channel_has_a_range():
    quantizer, variables = _built(theirs.LastValueQuantizer(8, True, True, True), (7, 4))
    values = X[:, 0] * [1, 10, 100, 1000]
    quantizer(tf.constant(values, tf.float32), True, variables)
    step = quantizer.grid(variables)[0]
    assert step.shape == (1, 4)
    np.testing.assert_allclose(step[0], np.abs(values).max(0) / 127, rtol=1e-5)


def test_each_channel_of_a_kernel_has_a_grid_and_can_be_given_one():
    inner = theirs.LastValueQuantizer(8, per_axis=True, symmetric=False, narrow_range=False)
    quantizer, variables = _built(inner, (3, 3, 2, 4))
    assert quantizer.spec == QuantSpec(num_bits=8, axis=(-1,))
    steps, zeros = np.float32([[[[0.1, 0.2, 0.3, 0.4]]]]), np.float32([[[[0, 3, 128, 255]]]])
    quantizer.set_grid(variables, steps, zeros)
    np.testing.assert_allclose(variables["min_var"], (-steps * zeros)[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(
        variables["max_var"], (steps * (255 - zeros))[0, 0, 0], rtol=1e-6, atol=1e-7
    )
    step, zero = quantizer.grid(variables)
    np.testing.assert_allclose(step, steps, rtol=1e-6)
    np.testing.assert_array_equal(zero, zeros)


@pytest.mark.parametrize(
    ("inner", "spec"),
    [
        (theirs.LastValueQuantizer(4, False, True, True), {"num_bits": 4, **WEIGHT}),
        (theirs.LastValueQuantizer(4, False, False, True), {"num_bits": 4, "narrow_range": True}),
        (theirs.FixedQuantizer(4, -1.0, 1.0, True), {"num_bits": 8, "narrow_range": True}),
    ],
)
def test_the_grid_is_what_the_quantizer_was_made_with(inner, spec):
    quantizer = adopt(inner)
    assert type(quantizer) is RangeQuantizer and quantizer.observes and quantizer.has_grid
    assert quantizer.spec == QuantSpec(**spec)


@pytest.mark.parametrize(
    ("low", "high", "step_size", "zero_point"),
    [
        (-1.0, 2.0, 0.2, 5),
        (0.0, 3.0, 0.2, 0),
        (-3.0, 0.0, 0.2, 15),
        (1.0, 4.0, 0.2, 0),
        (-4.0, -1.0, 0.2, 15),
        # 2.5 steps below 0, which fake_quant rounds up.
        (-0.5, 2.5, 0.2, 3),
        (0.0, 0.0, 1e-12, 0),
    ],
)
def test_the_grid_of_a_range_is_the_nudged_one_of_fake_quant(low, high, step_size, zero_point):
    quantizer, variables = _built(theirs.LastValueQuantizer(4, False, False, False))
    variables["min_var"].assign(low)
    variables["max_var"].assign(high)
    step, zero = quantizer.grid(variables)
    assert (float(step), float(zero)) == (pytest.approx(step_size, rel=1e-6), zero_point)


def test_a_fixed_range_stays():
    quantizer, variables = _built(theirs.FixedQuantizer(4, -1.0, 1.55, False))
    quantizer.set_grid(variables, np.float32(9), np.float32(9))
    step, zero = quantizer.grid(variables)
    assert (float(step), float(zero)) == (pytest.approx(0.01), 100), "8 bits, whatever it says"
    assert float(quantizer(tf.constant(9.0), True, variables)) == pytest.approx(1.55)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_grid_that_is_set_is_the_grid(symmetric):
    for per_axis in (False, True):
        inner = theirs.LastValueQuantizer(8, per_axis, symmetric, narrow_range=True)
        quantizer, variables = _built(inner, (7, 4))
        steps = np.float32([[0.1, 0.2, 0.3, 0.4]] if per_axis else 0.1)
        zero = np.float32(0 if symmetric else 3)
        quantizer.set_grid(variables, steps, zero)
        step, zero_point = quantizer.grid(variables)
        np.testing.assert_allclose(step, steps, rtol=1e-6)
        np.testing.assert_array_equal(zero_point, np.broadcast_to(zero, step.shape))


def test_training_may_be_a_tensor():
    quantizer, variables = _built(theirs.LastValueQuantizer(8, False, False, False))
    run = tf.function(lambda x, training: quantizer(x, training, variables))
    run(tf.constant(X), tf.constant(False))
    assert float(variables["max_var"]) == 6.0
    run(tf.constant(X), tf.constant(True))
    assert float(variables["max_var"]) == X.max()


class Told(theirs.Quantizer):
    """Says whether it was told to train; has no variables and no grid."""

    def build(self, tensor_shape, name, layer):
        return None

    def __call__(self, inputs, training, weights, **kwargs):
        assert isinstance(training, bool) and tf.is_tensor(inputs) and weights == {}
        return inputs + (100.0 if training else 0.0)

    def get_config(self):
        return {}


@pytest.mark.parametrize("training", [True, False])
def test_a_quantizer_of_a_user_is_told_whether_it_trains(training):
    quantizer, variables = _built(Told())
    assert variables == {} and quantizer.observes
    for given in (training, int(training), tf.constant(training), tf.constant(float(training))):
        found = quantizer([1.0], given, variables)
        assert found.numpy().tolist() == [101.0 if training else 1.0]
    assert _built(Told())[0]([1.0], None, variables).numpy().tolist() == [1.0]


def test_of_a_quantizer_without_a_grid_nothing_is_set_and_all_is_refused_that_needs_one():
    quantizer, variables = _built(Told())
    assert quantizer.spec == QuantSpec(num_bits=8)
    assert quantizer.set_grid(variables, np.float32(1), np.float32(0)) is None
    message = (
        "Told quantizes x of layer 'layer' on no grid that is known, so there are no integers to"
        " export. Subclass tf_fpq.quantizers.GridQuantizer, or take one of tf_fpq.quantizers."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quantizer.grid(variables)


class Double(theirs.LastValueQuantizer):
    """A subclass, which may compute anything."""

    def __call__(self, inputs, training, weights, **kwargs):
        return 2 * inputs


def test_what_says_nothing_of_a_grid_has_none():
    quantizer, variables = _built(Double(8, False, False, False))
    assert type(quantizer) is OpaqueQuantizer and not quantizer.has_grid
    np.testing.assert_array_equal(quantizer(tf.constant(X), True, variables), 2 * X)
    with pytest.raises(ValueError, match="Double quantizes x of layer 'layer' on no grid"):
        quantizer.codes(tf.constant(X), variables)
    assert not quantizer.uncalibrated(variables)


def test_ours_are_taken_as_they_are_and_others_come_back_from_their_config():
    own = LsqQuantizer(4)
    assert adopt(own) is own
    quantizer = adopt(theirs.MovingAverageQuantizer(4, False, False, True))
    with tfmot.quantization.keras.quantize_scope():
        again = deserialize(serialize(quantizer))
    assert again == quantizer and again.spec == quantizer.spec
    assert hash(again) == hash(quantizer)
    assert quantizer != adopt(theirs.MovingAverageQuantizer(8, False, False, True))
    with keras.utils.custom_object_scope({"Told": Told}):
        again = deserialize(serialize(adopt(Told())))
    assert type(again) is OpaqueQuantizer and type(again.inner) is Told
