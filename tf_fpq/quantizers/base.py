"""What all quantizers share: the grid, its variables, and what the exporter asks of them."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import numerics, range_estimators
from tf_fpq.quantizers.range_estimators import Estimator, Grids, Samples
from tf_fpq.quantizers.spec import QuantSpec

# The range a quantizer covers before calibration, [-6, 6] as in tfmot's own quantizers
# (`init_min`, `init_max` of `tfmot.quantization.keras.quantizers`).
UNCALIBRATED_RANGE = 6.0

Variables = dict[str, Any]


class GridQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """A tfmot `Quantizer` whose output lies on the grid that is deployed.

    A subclass makes its variables in `build` and quantizes in `__call__`. The invariant that every
    subclass keeps, and that the exporter stands on: with `s, z = grid(variables)`,

        quantizer(x, training=False, weights=variables) == s * (codes(x, variables) - z)

        class Mine(tf_fpq.quantizers.GridQuantizer): ...

    Attributes:
      spec: The `QuantSpec` of the grid.
      observes: Whether a call with `training=True` looks at the tensor and moves the grid. Each
        tensor is then shown to its quantizer exactly once in a step.
      has_grid: Whether there is a grid; only a quantizer of another library may have none.
    """

    observes = False
    has_grid = True

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
          symmetric: Signed codes around zero point 0 (weights) instead of unsigned codes with a
            zero point (activations).
          narrow_range: Leave out the lowest code.
          axis: Axes with a step size of their own, or None for one step per tensor.

        Raises:
          ValueError: If `num_bits` is not an integer from 2 to 8.
        """
        self.spec = QuantSpec(
            num_bits=num_bits, symmetric=symmetric, narrow_range=narrow_range, axis=axis
        )

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

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds the quantizer's variables to `layer` and returns them by name.

        Args:
          tensor_shape: Shape of the tensor; an activation's first axis is None.
          name: Prefix of the variables' names.
          layer: The layer that owns them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement build.")

    def _add_step_size(
        self, tensor_shape: Any, name: str, layer: keras.layers.Layer, trainable: bool = True
    ) -> Variables:
        """Adds `step_size` and the frozen `zero_point` to `layer`."""
        step_size, zero_point = self._uncalibrated_grid()
        return {
            "step_size": self._add_variable(
                tensor_shape, f"{name}_step_size", layer, step_size, trainable
            ),
            "zero_point": self._add_variable(
                tensor_shape, f"{name}_zero_point", layer, zero_point, False
            ),
        }

    def _add_variable(
        self,
        tensor_shape: Any,
        name: str,
        layer: keras.layers.Layer,
        value: float,
        trainable: bool,
        regularizer: keras.regularizers.Regularizer | None = None,
    ) -> tf.Variable:
        """Adds a variable with one element per grid."""
        return layer.add_weight(
            name=name,
            shape=self.spec.step_shape(tuple(tensor_shape)),
            initializer=keras.initializers.Constant(value),
            regularizer=regularizer,
            trainable=trainable,
            dtype="float32",
            experimental_autocast=False,
            aggregation=tf.VariableAggregation.MEAN,
        )

    def _uncalibrated_grid(self) -> tuple[float, int]:
        """Step size and zero point that cover `UNCALIBRATED_RANGE` on both sides of 0.

        A worked number: an unsigned 8-bit grid has the step 12 / 255 and the zero point 128.
        """
        spread = (1 if self.spec.symmetric else 2) * UNCALIBRATED_RANGE
        return spread / self.spec.qmax, 0 if self.spec.symmetric else round(self.spec.qmax / 2)

    def uncalibrated(self, variables: Variables) -> bool:
        """Whether the grid is still the one that `build` made."""
        start = self._uncalibrated_grid()
        return bool(
            variables
            and all(
                np.allclose(now, then, rtol=1e-6, atol=0.0)
                for now, then in zip(self.grid(variables), start, strict=True)
            )
        )

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size (`numerics.positive_step`) and zero point of the deployed grid."""
        return numerics.positive_step(variables["step_size"]), variables["zero_point"]

    def codes(self, inputs: tf.Tensor, variables: Variables) -> tf.Tensor:
        """Integer codes of `inputs` on the grid, in `[qmin, qmax]`, as float32."""
        step_size, zero_point = self.grid(variables)
        return numerics.quantize(
            tf.cast(inputs, tf.float32), step_size, zero_point, self.spec.qmin, self.spec.qmax
        )

    def latent(self, values: np.ndarray) -> np.ndarray:
        """The weights to train, such that the quantizer makes `values` of them before it rounds.

        Here they are `values` themselves. A quantizer that bends its weights inverts that (DoReFa).
        """
        return values

    def unrounded(self, inputs: tf.Tensor, variables: Variables) -> tf.Tensor:
        """What the quantizer rounds, on the scale of its output: `inputs` themselves."""
        return inputs

    def held(
        self, inputs: tf.Tensor, codes: tf.Tensor, mask: tf.Tensor, variables: Variables
    ) -> tf.Tensor:
        """`inputs`, changed where `mask` is true so that the codes there are `codes`.

        Args:
          inputs: Latent weights.
          codes: Integers as float32, in the shape of `inputs`.
          mask: Booleans. No element that `sets_scale` may be among them.
          variables: The quantizer's variables.
        """
        step_size, zero_point = self.grid(variables)
        return tf.where(mask, numerics.dequantize(codes, step_size, zero_point), inputs)

    def sets_scale(self, inputs: tf.Tensor) -> tf.Tensor:
        """Booleans: on which latent weights the codes of other weights depend.

        Holding such a weight would move the codes of the others. Where the step size is a variable
        of its own there is no such weight.
        """
        return tf.zeros_like(inputs, tf.bool)

    def is_largest(self, inputs: tf.Tensor) -> tf.Tensor:
        """Booleans: which weights are the largest of those that share a step size.

        Compared are magnitudes, up to float rounding.
        """
        magnitudes = tf.abs(inputs)
        axes = self.spec.shared_axes(inputs.shape.rank)
        largest = tf.reduce_max(magnitudes, axis=axes, keepdims=True)
        # 1e-6 is 8 float32 ulps, chosen here: what rounding may make of weights that are equal.
        return magnitudes >= largest * (1.0 - 1e-6)

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets the variables so that `grid` returns this step size and zero point.

        That is how a calibration ends.
        """
        assign(variables["step_size"], step_size)
        assign(variables["zero_point"], zero_point)

    def estimate(self, samples: Samples, estimator: str | Estimator) -> Grids:
        """Step sizes and zero points for `samples`, one per grid, by the named estimator."""
        if callable(estimator):
            return estimator(samples, self.spec)
        if estimator == range_estimators.PAPER:
            return self.paper_start(samples)
        return range_estimators.ESTIMATORS[estimator](samples, self.spec)

    def paper_start(self, samples: Samples) -> Grids:
        """The start that the quantizer's paper prescribes.

        Where the paper prescribes none it is that of least squared error.
        """
        return range_estimators.mse(samples, self.spec)


def assign(variable: tf.Variable, value: np.ndarray | float) -> None:
    """Sets a variable to a value that broadcasts to its shape.

    This works in a graph of TensorFlow 1 too, where `variable.assign` would only make an operator
    for later.
    """
    keras.backend.set_value(variable, np.broadcast_to(value, variable.shape))


def is_weight(tensor_shape: Any) -> bool:
    """Whether `build` was given the shape of a weight.

    An activation's shape begins with the batch axis, which is None.
    """
    return tuple(tensor_shape)[:1] != (None,)


def elements_per_step(
    inputs: tf.Tensor, step_size: tf.Tensor, of_weight: bool
) -> tf.Tensor | float:
    """LSQ's N: how many elements share a step size (arXiv 1902.08153, section 2.2).

    Counted are the elements of a weight, or those of one image's activation. A 3x3 kernel
    `[3, 3, 16, 32]` with a step size per output channel has N = 3 * 3 * 16 = 144.
    """
    shape = inputs.shape if of_weight else inputs.shape[1:]
    if shape.is_fully_defined():
        return shape.num_elements() / step_size.shape.num_elements()
    elements = tf.size(inputs) / tf.shape(inputs)[0] / step_size.shape.num_elements()
    return tf.cast(elements, tf.float32)


def lsq_gradient_scale(
    inputs: tf.Tensor, step_size: tf.Tensor, qmax: int, of_weight: bool
) -> tf.Tensor | float:
    """LSQ's `g = 1 / sqrt(N * Q_P)` (arXiv 1902.08153, section 2.2).

    The gradient of a step size is a sum over all elements that share it, so it grows with their
    number. `g` makes a step size move, relative to its size, about as fast as the weights do.

    A worked number: a 3x3 kernel over 16 channels at 4 bits has N = 144 weights a channel and
    `Q_P = 7`, so `g = 1 / sqrt(144 * 7) = 0.031`. An activation of 32 x 32 x 16 at 4 bits has
    N = 16,384 and `Q_P = 15`, so `g = 0.0020`.
    """
    return (elements_per_step(inputs, step_size, of_weight) * float(qmax)) ** -0.5
