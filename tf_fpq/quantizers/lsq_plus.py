"""LSQ+, LSQ with a learned offset.

Y. Bhalgat, J. Lee, M. Nagel, T. Blankevoort, N. Kwak, *LSQ+: Improving low-bit quantization through
learnable offsets and better initialization*, CVPR Workshops 2020, arXiv 2004.09576. The paper's `s`
is `step_size`, `beta` is `offset`, `n` and `p` are `qmin` and `qmax`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.base import GridQuantizer, Variables, assign, is_weight, lsq_gradient_scale
from tf_fpq.quantizers.range_estimators import Grids, Samples


@register
class LsqPlusQuantizer(GridQuantizer):
    """Uniform quantizer with a learned step size and a learned offset.

    The offset exists for asymmetric grids (activations) only. Published forward (eq. 3-4):

        x_hat = round(clip((x - beta) / s, n, p)) * s + beta

    Here, with the integer zero point `z = clip(-round(beta / s), n, p)`:

        x_hat = (clip(round(x / s) + z, n, p) - z) * s

    Gradients (eq. 5-6), both of `s` and `beta` times LSQ's `1 / sqrt(N * p)`:

        d x_hat / d x    = 1 inside the range, else 0
        d x_hat / d beta = 0 inside the range, 1 outside
        d x_hat / d s    = round(x / s) - x / s inside the range
        d x_hat / d s    = n below and p above, plus round(beta / s) - beta / s

    Start (section 4): weights `s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1)`; activations `s`
    and `beta` with the least squared error.

    A worked number: `s = 0.1` and `beta = -0.27` at 4 bits have `z = 3`. The grid begins at -0.3
    where the published one begins at -0.27.

    Note: a deployed zero point is an integer code, so `beta` acts rounded to a multiple of `s`.
    Where it is such a multiple this is the published quantizer. Else the last term above is new:
    `s` moves the rounded offset as well. Rounding and clipping of `z` pass gradients straight
    through. The range of `z` keeps 0 on the grid, as padding needs.

    Note: a value that lies exactly on an end of the
    range, such as the zeros that a ReLU makes, does not move `beta`.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.LsqPlusQuantizer)
    """

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds `step_size` and, for an asymmetric grid, `offset` to `layer`; both train."""
        self._of_weight = is_weight(tensor_shape)
        step_size, zero_point = self._uncalibrated_grid()
        variables = {
            "step_size": self._add_variable(
                tensor_shape, f"{name}_step_size", layer, step_size, True
            )
        }
        if not self.spec.symmetric:
            start = -zero_point * step_size
            variables["offset"] = self._add_variable(
                tensor_shape, f"{name}_offset", layer, start, True
            )
        return variables

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; the same in training and at inference."""
        qmin, qmax = self.spec.qmin, self.spec.qmax
        gradient_scale = lsq_gradient_scale(inputs, weights["step_size"], qmax, self._of_weight)
        scaled = {
            name: numerics.scale_gradient(variable, gradient_scale)
            for name, variable in weights.items()
        }
        step_size, zero_point = self.grid(scaled)
        # The zero point's gradient is added apart: `fake_quant` has none for it.
        outputs = numerics.fake_quant(inputs, step_size, tf.stop_gradient(zero_point), qmin, qmax)
        if self.spec.symmetric:
            return outputs
        return outputs + self._offset_gradient(inputs, step_size, zero_point)

    def _offset_gradient(
        self, inputs: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor
    ) -> tf.Tensor:
        """Zeros whose gradient by the zero point is `-s` outside the range, else 0.

        Outside, `x_hat` is an end of the range, `(n - z) * s` or `(p - z) * s`.
        """
        levels = tf.cast(inputs, tf.float32) / step_size + zero_point
        outside = tf.logical_or(levels < float(self.spec.qmin), levels > float(self.spec.qmax))
        slope = tf.stop_gradient(tf.where(outside, -step_size, 0.0))
        return tf.cast(slope * (zero_point - tf.stop_gradient(zero_point)), inputs.dtype)

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size and the zero point `clip(-round(offset / step_size), qmin, qmax)`."""
        step_size = tf.maximum(tf.abs(variables["step_size"]), numerics.MIN_STEP_SIZE)
        if self.spec.symmetric:
            return step_size, tf.zeros_like(step_size)
        # Not `-round(...)`, which makes -0.0 of an offset of 0.
        zero_point = 0.0 - numerics.round_ste(variables["offset"] / step_size)
        return step_size, numerics.clip_ste(
            zero_point, float(self.spec.qmin), float(self.spec.qmax)
        )

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets `step_size`, and `offset` to `-zero_point * step_size`."""
        assign(variables["step_size"], step_size)
        if not self.spec.symmetric:
            assign(variables["offset"], -zero_point * step_size)

    def paper_start(self, samples: Samples) -> Grids:
        """Three sigma for symmetric grids, least squared error for asymmetric ones.

        The error is minimised over step size and offset together.
        """
        if not self.spec.symmetric:
            return range_estimators.offset_mse(samples, self.spec)
        mean, deviation = samples.values.mean(axis=1), samples.values.std(axis=1)
        reach = np.maximum(np.abs(mean - 3 * deviation), np.abs(mean + 3 * deviation))
        return reach / 2 ** (self.spec.num_bits - 1), np.zeros_like(reach)
