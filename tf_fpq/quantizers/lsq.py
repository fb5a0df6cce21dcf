"""LSQ, learned step size quantization.

S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha, *Learned Step Size
Quantization*, ICLR 2020, arXiv 1902.08153. The paper's symbols: `s` is `step_size`, `-Q_N` and
`Q_P` are `qmin` and `qmax` less the zero point.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.base import GridQuantizer, Variables, is_weight, lsq_gradient_scale
from tf_fpq.quantizers.range_estimators import Grids, Samples


@register
class LsqQuantizer(GridQuantizer):
    """Uniform quantizer with a learned step size.

    Forward (eq. 1-2):

        v_hat = s * clip(round(v / s), -Q_N, Q_P)

    Gradients (eq. 3, 5):

        d v_hat / d v = 1 inside the range, else 0
        d v_hat / d s = g * (round(v / s) - v / s) inside, g * -Q_N below, g * Q_P above
        g             = 1 / sqrt(N * Q_P)

    `N` is the number of weights, or of features of one image, that share the step.

    A worked number: with `s = 0.1` and codes up to 7, the value 0.34 becomes 0.3. Its gradient by
    `s` is `g * (3 - 3.4) = -0.4 g`. The value 1 is clipped to 0.7, with the gradient `7 g`.

    Start (section 2.1): `s = 2 mean|v| / sqrt(Q_P)`.

    Note: activations have a zero point beside the step, set at calibration and frozen, as FPQ
    prints it (arXiv 2503.11159, eq. 3-6); after a ReLU it is 0, which is the paper's unsigned grid.
    Weights leave out the lowest code, so that folding a batch norm with negative gamma is exact.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.LsqQuantizer)
    """

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds `step_size` (trainable) and `zero_point` (frozen) to `layer`.

        They are returned by these names.
        """
        self._of_weight = is_weight(tensor_shape)
        return self._add_step_size(tensor_shape, name, layer)

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; the same in training and at inference."""
        step_size, zero_point = self._trained_grid(weights)
        gradient_scale = lsq_gradient_scale(inputs, step_size, self.spec.qmax, self._of_weight)
        return numerics.fake_quant(
            inputs, step_size, zero_point, self.spec.qmin, self.spec.qmax, gradient_scale
        )

    def _trained_grid(self, weights: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        # `fake_quant` takes the magnitude of a step size in passing. A subclass may make another
        # grid of the variables.
        if type(self).grid is GridQuantizer.grid:
            return weights["step_size"], weights["zero_point"]
        return self.grid(weights)

    def paper_start(self, samples: Samples) -> Grids:
        """`s = 2 mean|v| / sqrt(Q_P)`; the zero point is that of the whole range."""
        step_size = 2.0 * np.abs(samples.values).mean(axis=1) / np.sqrt(self.spec.qmax)
        return step_size, range_estimators.min_max(samples, self.spec)[1]
