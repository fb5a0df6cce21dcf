"""DoReFa: weights squashed by tanh and spread over their range, activations clipped to a fixed one.

S. Zhou, Y. Wu, Z. Ni, X. Zhou, H. Wen, Y. Zou, *DoReFa-Net: Training Low Bitwidth Convolutional
Neural Networks with Low Bitwidth Gradients*, 2016, arXiv 1606.06160. The paper's `k` is `num_bits`;
its quantized gradients are not part of this.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.base import GridQuantizer, Variables
from tf_fpq.quantizers.range_estimators import Estimator, Grids, Samples

# Where the largest latent weight of a channel starts, at most. Chosen here by the slope of tanh,
# 1 - tanh(3)^2 = 0.0099 at 3: a latent weight that starts further out would hardly train.
MAX_LATENT = 3.0
# The float32 below 1, whose atanh is finite (8.7).
MAX_SQUASHED = 1.0 - 2.0**-24


@register
class DoReFaQuantizer(GridQuantizer):
    """DoReFa's weights for a symmetric grid, its activations for an asymmetric one.

    Nothing but the weights themselves learns. Published (eq. 9 and 11), with
    `Q_k(a) = round((2^k - 1) a) / (2^k - 1)`:

        w_hat = 2 Q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1
        x_hat = Q_k(clip(x, 0, 1))

    Here, with the frozen `step_size` s and `zero_point` z:

        w_hat = s * round(qmax * tanh(w) / max|tanh(w)|)
        x_hat = s * (clip(round(x / s) + z, 0, 2^k - 1) - z)

    A worked number: latent weights 0.5 and 1 at 4 bits (qmax = 7) have tanh 0.462 and 0.762. The
    codes are round(7 * 0.462 / 0.762) = 4 and 7.

    Gradients: rounding passes them straight through; those of tanh and of the maximum are exact, as
    the paper's framework has them. `d x_hat / d x` is 1 inside the range, else 0.

    Start as published: `s = 1 / qmax`, so weights reach 1 and activations are clipped to [0, 1].
    The maximum is over the whole tensor as published, or with `axis` over each channel.

    Note: the published weight grid has an even number of levels, all odd multiples of `1 / (2^k -
    1)`: no zero, and a k-bit integer times a scale does not give it. The nearest grid that an
    integer kernel has is the symmetric one without its lowest code, which loses one level of 2^k.

    Note: published weights lie in [-1, 1] and activations are clipped to [0, 1] because networks
    are trained so from the start. A trained float network has other ranges. So all estimators but
    "paper" keep its scale, an activation's range is that of the calibration, and `quantize_model`
    starts from latent weights that tanh turns into the float network's.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.DoReFaQuantizer)
    """

    def __init__(self, num_bits: int, **kwargs: Any):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          **kwargs: Arguments of `GridQuantizer`.

        Raises:
          ValueError: If the grid is symmetric but not `narrow_range`, or `num_bits` is not an
            integer from 2 to 8.
        """
        super().__init__(num_bits, **kwargs)
        if self.spec.symmetric and not self.spec.narrow_range:
            raise ValueError(
                "narrow_range must be True for symmetric=True: the codes of DoReFa's weights never"
                " reach the lowest one. Received: narrow_range=False."
            )

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds `step_size` and `zero_point`, both frozen, to `layer`."""
        return self._add_step_size(tensor_shape, name, layer, trainable=False)

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; the same in training and at inference."""
        step_size, zero_point = self.grid(weights)
        if self.spec.symmetric:
            return tf.cast(self._weight_codes(inputs) * step_size, inputs.dtype)
        return numerics.fake_quant(inputs, step_size, zero_point, self.spec.qmin, self.spec.qmax)

    def codes(self, inputs: tf.Tensor, variables: Variables) -> tf.Tensor:
        """Integer codes of `inputs`: for a symmetric grid they do not depend on the step size."""
        return (
            self._weight_codes(inputs) if self.spec.symmetric else super().codes(inputs, variables)
        )

    def _weight_codes(self, inputs: tf.Tensor) -> tf.Tensor:
        """`round(qmax * tanh(w) / max|tanh(w)|)`; a channel of zeros has the codes 0."""
        return numerics.round_ste(self._squashed(inputs) * float(self.spec.qmax))

    def _squashed(self, inputs: tf.Tensor) -> tf.Tensor:
        """`tanh(w) / max|tanh(w)|`, in [-1, 1]."""
        squashed = tf.tanh(tf.cast(inputs, tf.float32))
        axes = self.spec.shared_axes(squashed.shape.rank)
        largest = tf.reduce_max(tf.abs(squashed), axis=axes, keepdims=True)
        return numerics.divide_no_zero(squashed, largest)

    def latent(self, values: np.ndarray) -> np.ndarray:
        """Latent weights of which tanh makes a multiple of `values`, for a symmetric grid.

        They are `atanh(tanh(m) * values / m)` with `m = max|values|`, at most `MAX_LATENT`. Without
        this tanh would bend trained weights.
        """
        if not self.spec.symmetric:
            return values
        largest = np.abs(values).max(axis=self.spec.shared_axes(values.ndim), keepdims=True)
        relative = values / np.where(largest > 0, largest, 1.0)
        return np.arctanh(np.tanh(np.minimum(largest, MAX_LATENT)) * relative).astype(values.dtype)

    def unrounded(self, inputs: tf.Tensor, variables: Variables) -> tf.Tensor:
        """For a symmetric grid `s * qmax * tanh(w) / max|tanh(w)|`."""
        if not self.spec.symmetric:
            return inputs
        return self._squashed(inputs) * self.grid(variables)[0] * float(self.spec.qmax)

    def held(
        self, inputs: tf.Tensor, codes: tf.Tensor, mask: tf.Tensor, variables: Variables
    ) -> tf.Tensor:
        """`inputs`, for a symmetric grid with `atanh(m * codes / qmax)` where `mask` is true.

        `m` is the largest `|tanh(w)|` of the weights that share a step size and are not held. It is
        what all of them are divided by.
        """
        if not self.spec.symmetric:
            return super().held(inputs, codes, mask, variables)
        squashed = tf.abs(tf.tanh(tf.cast(inputs, tf.float32)))
        axes = self.spec.shared_axes(squashed.shape.rank)
        largest = tf.reduce_max(tf.where(mask, 0.0, squashed), axis=axes, keepdims=True)
        # Those that are held are left out of the maximum: they follow it.
        held = largest * codes / float(self.spec.qmax)
        held = tf.atanh(tf.clip_by_value(held, -MAX_SQUASHED, MAX_SQUASHED))
        return tf.where(mask, tf.cast(held, inputs.dtype), inputs)

    def sets_scale(self, inputs: tf.Tensor) -> tf.Tensor:
        """For a symmetric grid the largest weights, by which `tanh(w)` is divided."""
        if not self.spec.symmetric:
            return super().sets_scale(inputs)
        return self.is_largest(tf.tanh(tf.cast(inputs, tf.float32)))

    def estimate(self, samples: Samples, estimator: str | Estimator) -> Grids:
        """Step sizes and zero points for `samples`, as `GridQuantizer.estimate`.

        For a symmetric grid "mse" is the step whose highest code is the largest sample. DoReFa
        always spreads its codes over the whole range, so nothing is clipped and rounding is all
        that is lost.
        """
        if not self.spec.symmetric or estimator != "mse":
            return super().estimate(samples, estimator)
        return range_estimators.min_max(samples, self.spec)

    def paper_start(self, samples: Samples) -> Grids:
        """`s = 1 / qmax`, with the zero point of the whole range.

        The zero point is 0, as published, where nothing is negative.
        """
        zero_point = range_estimators.min_max(samples, self.spec)[1]
        return np.full_like(zero_point, 1.0 / self.spec.qmax), zero_point
