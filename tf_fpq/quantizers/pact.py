"""PACT: activations with a learned clip, weights as DoReFa has them.

J. Choi, Z. Wang, S. Venkataramani, P. I.-J. Chuang, V. Srinivasan, K. Gopalakrishnan, *PACT:
Parameterized Clipping Activation for Quantized Neural Networks*, 2018, arXiv 1805.06085. The
paper's `alpha` is the variable `alpha`, its `k` is `num_bits`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.base import Variables, assign
from tf_fpq.quantizers.dorefa import DoReFaQuantizer
from tf_fpq.quantizers.range_estimators import Grids, Samples

# Where alpha starts by the estimator "paper": far above the activations of a normalised network, so
# that nothing is clipped. The number is chosen here; arXiv 1805.06085 asks for a value larger than
# typical activations, which regularization then brings down.
PAPER_ALPHA = 10.0


@register
class PactQuantizer(DoReFaQuantizer):
    """Asymmetric grids (activations) with a learned clip.

    Symmetric grids (weights) are those of `DoReFaQuantizer`. Forward (eq. 1-2):

        y     = 0.5 (|x| - |x - alpha| + alpha) = clip(x, 0, alpha)
        y_hat = round(y / s) * s,   s = alpha / (2^k - 1)

    Gradients (eq. 3), without a scale of their own:

        d y_hat / d x     = 1 for 0 < x < alpha, else 0
        d y_hat / d alpha = 1 for x >= alpha, else 0

    A worked number: with `alpha = 3` at 4 bits the step is 3 / 15 = 0.2. The value 0.65 is 3.25
    steps and becomes 0.6. The value 5 becomes 3. Only the 5 moves `alpha`.

    `l2 * alpha^2` joins the losses of the layer (section 3: the same strength as the weights' own
    decay).

    Start: "paper" sets `alpha` to 10; the other estimators start from the data.

    Note: tensors with negative values (images, sums) get a frozen zero point `z` at calibration;
    `alpha` is then the width of the range `[-z s, (2^k - 1 - z) s]`, and each end moves by its
    share. With `z = 0` it is the published quantizer.

    Note: tfmot's own wrapper drops the losses of its layers' variables, so there `l2` has no
    effect.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.PactQuantizer)
    """

    def __init__(self, num_bits: int, *, l2: float = 2e-4, **kwargs: Any):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          l2: Factor of `alpha^2` in the loss. The default is chosen here, at the size of
            a common weight decay; the paper takes the strength of the weights' decay.
          **kwargs: Arguments of `GridQuantizer`.

        Raises:
          ValueError: If `l2` is negative or `num_bits` is not an integer from 2 to 8.
        """
        super().__init__(num_bits, **kwargs)
        if not l2 >= 0:
            raise ValueError(f"l2 must not be negative. Received: l2={l2!r}.")
        self.l2 = l2

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        return {**super().get_config(), "l2": self.l2}

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds `alpha` (trains) and `zero_point` (frozen) to `layer`.

        A symmetric grid gets DoReFa's variables.
        """
        if self.spec.symmetric:
            return super().build(tensor_shape, name, layer)
        step_size, zero_point = self._uncalibrated_grid()
        width, l2 = step_size * self.spec.qmax, keras.regularizers.L2(self.l2)
        return {
            "alpha": self._add_variable(tensor_shape, f"{name}_alpha", layer, width, True, l2),
            "zero_point": self._add_variable(
                tensor_shape, f"{name}_zero_point", layer, zero_point, False
            ),
        }

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; the same in training and at inference."""
        if self.spec.symmetric:
            return super().__call__(inputs, training, weights, **kwargs)
        step_size, zero_point = self.grid(weights)
        return numerics.fake_quant(
            inputs, step_size, zero_point, self.spec.qmin, self.spec.qmax, slope_inside=False
        )

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size `|alpha| / (2^k - 1)` and the zero point."""
        if self.spec.symmetric:
            return super().grid(variables)
        step_size = tf.abs(variables["alpha"]) / float(self.spec.qmax)
        return tf.maximum(step_size, numerics.MIN_STEP_SIZE), variables["zero_point"]

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets `alpha` to `step_size * (2^k - 1)`, and the zero point."""
        if self.spec.symmetric:
            super().set_grid(variables, step_size, zero_point)
            return
        assign(variables["alpha"], step_size * self.spec.qmax)
        assign(variables["zero_point"], zero_point)

    def paper_start(self, samples: Samples) -> Grids:
        """`alpha = 10`; the zero point is that of the whole range."""
        if self.spec.symmetric:
            return super().paper_start(samples)
        zero_point = range_estimators.min_max(samples, self.spec)[1]
        return np.full_like(zero_point, PAPER_ALPHA / self.spec.qmax), zero_point
