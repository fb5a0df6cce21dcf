"""A grid that does not learn: outputs whose range is known, such as probabilities."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import numerics
from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers.base import GridQuantizer, Variables


@register
class FixedQuantizer(GridQuantizer):
    """Quantizes on a grid that is prescribed, as TFLite prescribes steps of 1/256 for a softmax.

    Note: In training it passes values through. The logarithm in a cross entropy would meet probabilities rounded to 0.
    """

    def __init__(self, num_bits: int = 8, *, step_size: float, zero_point: int = 0, **kwargs: Any):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          step_size: The step.
          zero_point: The code of 0.
          **kwargs: Arguments of `GridQuantizer`.
        """
        super().__init__(num_bits, **kwargs)
        self.step_size = step_size
        self.zero_point = zero_point

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        return {**super().get_config(), "step_size": self.step_size, "zero_point": self.zero_point}

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """No variables."""
        return {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any) -> tf.Tensor:
        """Returns `inputs` in training, and `inputs` on the grid otherwise."""
        if training:
            return inputs
        return tf.cast(numerics.dequantize(self.codes(inputs, weights), *self.grid(weights)), inputs.dtype)

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """The step size and zero point the quantizer was made with."""
        return tf.constant(self.step_size), tf.constant(float(self.zero_point))

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Nothing: the grid is fixed."""
