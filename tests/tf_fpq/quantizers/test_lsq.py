"""LSQ beyond what all quantizers are held to."""

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.quantizers.lsq import LsqQuantizer


class Doubled(LsqQuantizer):
    """A grid that is made of the step size, as power-of-two grids are."""

    def grid(self, variables):
        step_size, zero_point = super().grid(variables)
        return 2.0 * step_size, zero_point


def test_a_subclass_trains_on_the_grid_that_it_makes():
    x = tf.constant([[0.24, 0.26, 0.74, 9.0]])
    layer = keras.layers.Layer()
    for quantizer_class, expected, slope in (
        (LsqQuantizer, [0.25, 0.25, 0.75, 1.75], 0.01 / 0.25 + -0.01 / 0.25 + 0.01 / 0.25 + 7.0),
        (Doubled, [0.0, 0.5, 0.5, 3.5], 2.0 * (-0.24 / 0.5 + 0.24 / 0.5 + -0.24 / 0.5 + 7.0)),
    ):
        quantizer = quantizer_class(num_bits=3, symmetric=False, narrow_range=False)
        variables = quantizer.build((None, 4), quantizer_class.__name__, layer)
        variables["step_size"].assign(0.25)
        variables["zero_point"].assign(0.0)
        with tf.GradientTape() as tape:
            y = quantizer(x, True, variables)
        np.testing.assert_array_equal(y, [expected])
        gradient = tape.gradient(y, variables["step_size"])
        # N = 4 elements share the step, and the last code is 7.
        np.testing.assert_allclose(gradient, slope * (4 * 7) ** -0.5, rtol=1e-5)
