"""Min-max: ranges that are observed, not learned.

B. Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference*, CVPR 2018, arXiv 1712.05877, section 3.1: the range of a weight is its own, that of an
activation is an exponential moving average (EMA).
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics
from tf_fpq.quantizers.base import GridQuantizer, Variables, assign, is_weight


@register
class MinMaxQuantizer(GridQuantizer):
    """Quantizes to the range of what it sees in training.

    With the observed `a <= 0 <= b` (section 3, eq. 12 and the nudge after it):

        s             = (b - a) / (2^k - 1),   z = round(qmax - b / s)
        s             = max(-a, b) / qmax,     z = 0                     (symmetric)
        x_hat         = s * (clip(round(x / s) + z, qmin, qmax) - z)
        d x_hat / d x = 1 where rounding does not saturate, else 0

    A training step first updates the range: a weight's becomes its current one, an activation's
    moves by `1 - momentum` towards the batch's. Inference uses the range of the last training step.

    A worked number: with a momentum of 0.99 and the upper end at 4, a batch whose largest value is
    6 moves it to 0.99 * 4 + 0.01 * 6 = 4.02.

    Note: tfmot's `MovingAverageQuantizer` starts at [-6, 6] with a momentum of 0.999, so short
    trainings end on a range that no tensor has. Here the range starts from the calibration, for a
    weight from the weight.

    Note: a channel of zeros has the range of the widest channel. Its step
    is free, and a tiny one would push its bias out of the deployed int32.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.MinMaxQuantizer)
    """

    observes = True

    def __init__(self, num_bits: int, *, momentum: float = 0.99, **kwargs: Any):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          momentum: How much of an activation's range each training step keeps, from 0 (the last
            batch's) to below 1. The default follows 100 steps or so; it is chosen here, as the
            paper only asks for a factor close to 1 (section 3.1).
          **kwargs: Arguments of `GridQuantizer`.

        Raises:
          ValueError: If `momentum` is not in [0, 1) or `num_bits` is not an integer from 2 to 8.
        """
        super().__init__(num_bits, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"momentum must be at least 0 and below 1. Received: momentum={momentum!r}."
            )
        self.momentum = momentum

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        return {**super().get_config(), "momentum": self.momentum}

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds `range_min` and `range_max`, which no optimizer moves, to `layer`."""
        self._of_weight = is_weight(tensor_shape)
        step_size, zero_point = self._uncalibrated_grid()
        low, high = (
            step_size * (self.spec.qmin - zero_point),
            step_size * (self.spec.qmax - zero_point),
        )
        return {
            "range_min": self._add_variable(tensor_shape, f"{name}_range_min", layer, low, False),
            "range_max": self._add_variable(tensor_shape, f"{name}_range_max", layer, high, False),
        }

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid.

        In training (`training` is True, or a true tensor) it updates the range first.
        """
        if tf.is_tensor(training) or training:
            self._observe(
                tf.stop_gradient(tf.cast(inputs, tf.float32)),
                tf.cast(training, tf.float32),
                weights,
            )
        return numerics.fake_quant_fixed(
            inputs, *self.grid(weights), self.spec.qmin, self.spec.qmax
        )

    def _observe(self, inputs: tf.Tensor, training: tf.Tensor, variables: Variables) -> None:
        """Moves the range towards that of `inputs`; stays where it is if `training` is 0."""
        axes = self.spec.shared_axes(inputs.shape.rank)
        keepdims = self.spec.axis is not None
        low = tf.minimum(tf.reduce_min(inputs, axis=axes, keepdims=keepdims), 0.0)
        high = tf.maximum(tf.reduce_max(inputs, axis=axes, keepdims=keepdims), 0.0)
        # A product with `training` in place of a condition: the range is assigned in any case.
        rate = training * (1.0 if self._of_weight else 1.0 - self.momentum)
        for name, seen in (("range_min", low), ("range_max", high)):
            variables[name].assign(rate * seen + (1.0 - rate) * variables[name])

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size and zero point of the range."""
        low, high = tf.minimum(variables["range_min"], 0.0), tf.maximum(variables["range_max"], 0.0)
        width = tf.maximum(-low, high) if self.spec.symmetric else high - low
        # Channels of zeros have the widest channel's range; a tensor of zeros has 1.
        widest = tf.reduce_max(width)
        width = tf.where(width > 0, width, tf.where(widest > 0, widest, 1.0))
        levels = self.spec.qmax if self.spec.symmetric else self.spec.qmax - self.spec.qmin
        step_size = tf.maximum(width / float(levels), numerics.MIN_STEP_SIZE)
        if self.spec.symmetric:
            return step_size, tf.zeros_like(step_size)
        zero_point = tf.round(float(self.spec.qmax) - high / step_size)
        return step_size, tf.clip_by_value(zero_point, float(self.spec.qmin), float(self.spec.qmax))

    def sets_scale(self, inputs: tf.Tensor) -> tf.Tensor:
        """The largest weights, which are the range that the next step observes."""
        return self.is_largest(inputs)

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets the range to the ends of this grid."""
        low, high = (
            step_size * (self.spec.qmin - zero_point),
            step_size * (self.spec.qmax - zero_point),
        )
        assign(variables["range_min"], low)
        assign(variables["range_max"], high)
