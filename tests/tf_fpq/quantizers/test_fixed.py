"""A grid that is prescribed."""

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import deserialize, keras, serialize
from tf_fpq.quantizers.fixed import FixedQuantizer

X = tf.constant([-0.6, 0.24, 0.26, 99.0])


def test_the_grid_has_8_bits_from_0_and_quantizes_always_unless_it_says_otherwise():
    assert FixedQuantizer(step_size=0.5).get_config() == {
        "num_bits": 8,
        "symmetric": False,
        "narrow_range": False,
        "axis": None,
        "step_size": 0.5,
        "zero_point": 0,
        "in_training": True,
    }


def test_the_config_is_what_the_quantizer_was_made_with():
    arguments = {"step_size": 0.25, "zero_point": 3, "in_training": False, "narrow_range": True}
    quantizer = FixedQuantizer(4, **arguments)
    assert {**quantizer.get_config(), **arguments, "num_bits": 4} == quantizer.get_config()
    assert deserialize(serialize(quantizer)) == quantizer


def test_the_grid_is_fixed_and_has_no_variables():
    layer = keras.layers.Layer()
    quantizer = FixedQuantizer(4, step_size=0.5, zero_point=1)
    assert quantizer.build((None, 4), "x", layer) == {} and not layer.weights
    quantizer.set_grid({}, np.float32(9.0), np.float32(9.0))
    assert [float(part) for part in quantizer.grid({})] == [0.5, 1.0]
    for training in (False, True):
        assert quantizer(X, training, {}).numpy().tolist() == [-0.5, 0.0, 0.5, 7.0]
    assert not quantizer.uncalibrated({})


def test_outputs_that_are_not_quantized_in_training_are_at_inference():
    quantizer = FixedQuantizer(4, step_size=0.5, zero_point=1, in_training=False)
    assert quantizer(X, True, {}) is X
    for training in (False, None, tf.constant(False)):
        assert quantizer(X, training, {}).numpy().tolist() == [-0.5, 0.0, 0.5, 7.0]
    assert quantizer(X, tf.constant(True), {}) is X
