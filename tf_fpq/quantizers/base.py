"""What all quantizers share: the grid, its variables, and what the exporter asks of them."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq import numerics
from tf_fpq.keras_compat import keras
from tf_fpq.spec import QuantSpec

# The range a quantizer covers before calibration, as in tfmot.
UNCALIBRATED_RANGE = 6.0

Variables = dict[str, Any]


class GridQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """A tfmot `Quantizer` whose output lies on the grid that is deployed.

    A subclass makes its variables in `build` and quantizes in `__call__`. The invariant that every subclass keeps, and that
    the exporter stands on: with `s, z = grid(variables)`,

        quantizer(x, training=False, weights=variables) == s * (codes(x, variables) - z)

    Attributes:
      spec: The `QuantSpec` of the grid.
    """

    def __init__(
        self,
        num_bits: int,
        *,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: tuple[int, ...] | None = None,
    ):
        """Creates the quantizer.

        Args:
          num_bits: Width, 2 to 8.
          symmetric: Signed codes around zero point 0 (weights) instead of unsigned codes with a zero point (activations).
          narrow_range: Leave out the lowest code.
          axis: Axes with a step size of their own, or None for one step per tensor.

        Raises:
          ValueError: If `num_bits` is not an integer from 2 to 8.
        """
        self.spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, narrow_range=narrow_range, axis=axis)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        spec = self.spec
        axis = None if spec.axis is None else list(spec.axis)
        return {
            "num_bits": spec.num_bits,
            "symmetric": spec.symmetric,
            "narrow_range": spec.narrow_range,
            "axis": axis,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GridQuantizer":
        """Makes a quantizer from `get_config()`."""
        return cls(**config)

    def replace(self, **arguments: Any) -> "GridQuantizer":
        """An equal quantizer but for `arguments`, for example another `axis`."""
        return type(self).from_config({**self.get_config(), **arguments})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.spec))

    def _add_step_size(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds the trainable `step_size` and the frozen `zero_point` to `layer`."""
        shape = self.spec.step_shape(tuple(tensor_shape))
        spread = (1 if self.spec.symmetric else 2) * UNCALIBRATED_RANGE
        step_size = spread / self.spec.qmax
        zero_point = 0 if self.spec.symmetric else round(self.spec.qmax / 2)
        return {
            "step_size": layer.add_weight(
                name=f"{name}_step_size",
                shape=shape,
                initializer=keras.initializers.Constant(step_size),
                trainable=True,
                dtype="float32",
                experimental_autocast=False,
            ),
            "zero_point": layer.add_weight(
                name=f"{name}_zero_point",
                shape=shape,
                initializer=keras.initializers.Constant(zero_point),
                trainable=False,
                dtype="float32",
                experimental_autocast=False,
            ),
        }

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size (positive) and zero point of the deployed grid.

        Note: LSQ leaves the sign of a step size to luck, and a large learning rate drives it below zero, where the quantizer
        is meaningless. The grid uses the magnitude, so a step that overshoots zero is reflected and stays a step.
        """
        return tf.maximum(tf.abs(variables["step_size"]), numerics.MIN_STEP_SIZE), variables["zero_point"]

    def codes(self, inputs: tf.Tensor, variables: Variables) -> tf.Tensor:
        """Integer codes of `inputs` on the grid, in `[qmin, qmax]`, as float32."""
        step_size, zero_point = self.grid(variables)
        return numerics.quantize(tf.cast(inputs, tf.float32), step_size, zero_point, self.spec.qmin, self.spec.qmax)

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets the variables so that `grid` returns this step size and zero point: the end of a calibration."""
        variables["step_size"].assign(np.broadcast_to(step_size, variables["step_size"].shape))
        variables["zero_point"].assign(np.broadcast_to(zero_point, variables["zero_point"].shape))


def elements_per_step(spec: QuantSpec, inputs: tf.Tensor, is_weight: bool) -> tf.Tensor | float:
    """LSQ's N: how many elements of a weight, or of one image's activation, share a step size (arXiv 1902.08153, 2.2)."""
    shape = inputs.shape if is_weight else inputs.shape[1:]
    if not shape.is_fully_defined():
        return tf.cast(tf.size(inputs) // tf.shape(inputs)[0], tf.float32)
    channels = 1 if spec.axis is None else math.prod(inputs.shape[axis] for axis in spec.axis)
    return max(shape.num_elements() / channels, 1.0)
