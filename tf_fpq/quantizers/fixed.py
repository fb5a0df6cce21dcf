"""A grid that does not learn: outputs whose range is known, such as probabilities."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics
from tf_fpq.quantizers.base import GridQuantizer, Variables


@register
class FixedQuantizer(GridQuantizer):
    """Quantizes on a grid that is prescribed, as TFLite prescribes steps of 1/256 for a softmax.

    Note: The probabilities of a softmax are not quantized in training (`in_training=False`). On
    steps of 1/256 a probability below 1/512 rounds to 0, and a cross entropy would take its
    logarithm.
    """

    def __init__(
        self,
        num_bits: int = 8,
        *,
        step_size: float,
        zero_point: int = 0,
        in_training: bool = True,
        **kwargs: Any,
    ):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          step_size: The step.
          zero_point: The code of 0.
          in_training: Whether to quantize in training too.
          **kwargs: Arguments of `GridQuantizer`.
        """
        super().__init__(num_bits, **kwargs)
        self.step_size = step_size
        self.zero_point = zero_point
        self.in_training = in_training

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        own = {
            "step_size": self.step_size,
            "zero_point": self.zero_point,
            "in_training": self.in_training,
        }
        return {**super().get_config(), **own}

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """No variables."""
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid, with a straight-through gradient.

        With `in_training=False` it returns `inputs` as they are in training.
        """
        if self.in_training:
            return self._quantized(inputs, weights)
        if tf.is_tensor(training):
            return tf.cond(training, lambda: inputs, lambda: self._quantized(inputs, weights))
        return inputs if training else self._quantized(inputs, weights)

    def _quantized(self, inputs: tf.Tensor, weights: Variables) -> tf.Tensor:
        step_size, zero_point = self.grid(weights)
        return numerics.fake_quant(inputs, step_size, zero_point, self.spec.qmin, self.spec.qmax)

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """The step size and zero point the quantizer was made with."""
        return tf.constant(self.step_size), tf.constant(float(self.zero_point))

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Nothing: the grid is fixed."""
