"""EWGS: learned intervals, and rounding whose gradient is scaled element by element.

J. Lee, D. Kim, B. Ham, *Network Quantization with Element-wise Gradient Scaling*, CVPR 2021, arXiv
2104.00903. The paper's `delta` is the variable `delta`, its interval `[l, u]` is what the grid
covers, `x_n` is a value's place in it from 0 to 1 and `x_q` that of its code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.base import Variables, lsq_gradient_scale
from tf_fpq.quantizers.lsq import LsqQuantizer
from tf_fpq.quantizers.range_estimators import Grids, Samples


@register
class EwgsQuantizer(LsqQuantizer):
    """Uniform quantizer with a learned step size whose rounding scales gradients.

    Forward: that of `LsqQuantizer`. With the upstream gradient `g`, inside the range (eq. 5;
    outside, 0):

        d loss / d x = g * (1 + delta * sign(g) * (x_n - x_q))
        x_n - x_q    = (x / s - round(x / s)) / (qmax - qmin)

    A worked number: with `delta = 0.1`, `g = 1` and 4 bits without a sign, a value of 2.4 steps
    gets the gradient `1 + 0.1 * 0.4 / 15 = 1.0027`.

    The step size learns through the same scaled gradient. `delta = 0` is `LsqQuantizer`, bit for
    bit. `delta` is a variable that no optimizer moves: fixed, or set from the Hessian by
    `tf_fpq.training.ewgs_hessian` (section 3.3).

    Start as the authors' code has it: `u = 3 std(w)` for weights, `l = min(x)` and
    `u = 3 std(x) / sqrt(1 - 2/pi)` for activations.

    Note: the paper maps a layer's weights and inputs to [-1, 1] and [0, 1] and learns one output
    scale per layer beside the intervals. An integer operator has one step per weight channel and
    one per activation, so here a value keeps its size and the step is interval and scale in one; a
    batch norm absorbs the difference. For the same reason weights have the symmetric grid with a
    zero rather than an even number of levels.

    Note: the paper gives the quantizers' parameters a
    learning rate of their own; here their gradients have LSQ's factor `1 / sqrt(N * Q_P)`, so that
    one setting suits all quantizers.

        student = tf_fpq.quantize_model(model, rules, tf_fpq.quantizers.EwgsQuantizer)
    """

    def __init__(self, num_bits: int, *, delta: float = 1e-3, **kwargs: Any):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          delta: Scaling factor, where it starts. The default is the fixed factor of the authors'
            published scripts; the paper also takes it from the Hessian.
          **kwargs: Arguments of `GridQuantizer`.

        Raises:
          ValueError: If `delta` is negative or `num_bits` is not an integer from 2 to 8.
        """
        super().__init__(num_bits, **kwargs)
        if not delta >= 0:
            raise ValueError(f"delta must not be negative. Received: delta={delta!r}.")
        self.delta = delta
        self.watch: Callable[[EwgsQuantizer, tf.Tensor, Variables], tf.Tensor] | None = None

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        return {**super().get_config(), "delta": self.delta}

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds LSQ's variables and `delta`, one for the whole tensor."""
        delta = layer.add_weight(
            name=f"{name}_delta",
            shape=(),
            initializer=keras.initializers.Constant(self.delta),
            trainable=False,
            dtype="float32",
            experimental_autocast=False,
            aggregation=tf.VariableAggregation.MEAN,
        )
        return {**super().build(tensor_shape, name, layer), "delta": delta}

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; the same in training and at inference."""
        step_size, zero_point = self.grid(weights)
        qmin, qmax = self.spec.qmin, self.spec.qmax
        scale = lsq_gradient_scale(inputs, step_size, qmax, self._of_weight)
        outputs = numerics.fake_quant(
            inputs,
            step_size,
            zero_point,
            qmin,
            qmax,
            scale,
            delta=tf.convert_to_tensor(weights["delta"]),
        )
        # `training.ewgs_hessian` watches the outputs to take the Hessian by them.
        return outputs if self.watch is None else self.watch(self, outputs, weights)

    def paper_start(self, samples: Samples) -> Grids:
        """Three standard deviations, for activations those of a half normal distribution.

        `sqrt(1 - 2 / pi) = 0.603` is the standard deviation of the absolute value of a standard
        normal variable, so dividing by it gives the sigma before a ReLU.
        """
        deviation = samples.values.std(axis=1)
        if self.spec.symmetric:
            return range_estimators.symmetric_grids(3 * deviation, self.spec)
        return range_estimators.grids_of_range(
            samples.low, 3 * deviation / np.sqrt(1 - 2 / np.pi), self.spec
        )
