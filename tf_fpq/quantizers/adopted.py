"""Quantizers written against tfmot's interface, among this library's."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq.keras_compat import deserialize, keras, register, serialize
from tf_fpq.quantizers import numerics
from tf_fpq.quantizers.base import GridQuantizer, Variables, assign

_tfmot = tfmot.quantization.keras.quantizers


class _Adopted(GridQuantizer):
    """A `GridQuantizer` around a quantizer of another library or of a user.

    Attributes:
      inner: That quantizer.
    """

    # It may do anything in training.
    observes = True

    def __init__(self, inner: Any, num_bits: int = 8, **spec: Any):
        super().__init__(num_bits, **spec)
        self.inner = inner

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal quantizer."""
        return {"inner": serialize(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Adopted":
        """Makes a quantizer from `get_config()`; tfmot's are found within its `quantize_scope`."""
        return cls(deserialize(config["inner"]))

    def __hash__(self) -> int:
        return hash((type(self), type(self.inner)))

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> Variables:
        """Adds the inner quantizer's variables to `layer`."""
        self._where = f"{name} of layer {layer.name!r}"
        self._step_shape = self.spec.step_shape(tuple(tensor_shape))
        return self.inner.build(tensor_shape, name, layer) or {}

    def _run(self, inputs: tf.Tensor, training: Any, weights: Variables) -> tf.Tensor:
        """Calls the inner quantizer, which takes a tensor for `inputs` and none for `training`."""
        inputs = tf.convert_to_tensor(inputs)
        if not tf.is_tensor(training):
            return self.inner(inputs, bool(training), weights=weights)
        return tf.cond(
            tf.cast(training, tf.bool),
            lambda: self.inner(inputs, True, weights=weights),
            lambda: self.inner(inputs, False, weights=weights),
        )


@register
class RangeQuantizer(_Adopted):
    """A `GridQuantizer` around one of tfmot's quantizers to a range.

    These are `LastValueQuantizer`, `MovingAverageQuantizer`, `AllValuesQuantizer` and
    `FixedQuantizer`. They follow the range as tfmot has them. The grid is the one that TensorFlow's
    `fake_quant` nudges a range `[a, b]` to: `s = (b - a) / (qmax - qmin)`, with the zero point
    `qmin - a / s` rounded.

    A worked number: the range [-1, 2] at 4 bits has `s = 3 / 15 = 0.2` and the zero point
    `0 - (-1 / 0.2) = 5`.

    Note: `fake_quant` rounds ties up; here they round to even, as the file's do.
    """

    def __init__(self, inner: Any):
        """Creates the quantizer.

        Args:
          inner: tfmot's quantizer.
        """
        super().__init__(
            inner,
            # FixedQuantizer does not pass its num_bits on.
            8 if type(inner) is _tfmot.FixedQuantizer else inner.num_bits,
            symmetric=bool(getattr(inner, "symmetric", False)),
            narrow_range=bool(inner.narrow_range),
            axis=(-1,) if getattr(inner, "per_axis", False) else None,
        )

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Returns `inputs` on the grid; in training the inner quantizer moves its range first."""
        with tf.control_dependencies([self._run(inputs, training, weights)]):
            step_size, zero_point = self.grid(weights)
        return numerics.fake_quant_fixed(
            inputs, step_size, zero_point, self.spec.qmin, self.spec.qmax
        )

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Step size and zero point of the range."""
        if variables:
            low, high = (tf.reshape(variables[n], self._step_shape) for n in ("min_var", "max_var"))
        else:
            low, high = tf.constant(self.inner.init_min), tf.constant(self.inner.init_max)
        low, high = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
        qmin, qmax = float(self.spec.qmin), float(self.spec.qmax)
        step_size = tf.maximum((high - low) / (qmax - qmin), numerics.MIN_STEP_SIZE)
        if self.spec.symmetric:
            return step_size, tf.zeros_like(step_size)
        return step_size, tf.clip_by_value(tf.floor(qmin - low / step_size + 0.5), qmin, qmax)

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Sets the range to the ends of this grid; a fixed range stays."""
        if variables:
            for name, end in (("min_var", self.spec.qmin), ("max_var", self.spec.qmax)):
                value = np.broadcast_to(step_size * (end - zero_point), self._step_shape)
                assign(variables[name], value.reshape(variables[name].shape))


@register
class OpaqueQuantizer(_Adopted):
    """A quantizer that says nothing of a grid: it trains as it is, and cannot be exported."""

    has_grid = False

    def __call__(
        self, inputs: tf.Tensor, training: Any, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """What the inner quantizer makes of `inputs`."""
        return self._run(inputs, training, weights)

    def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
        """Raises ValueError: there is none."""
        raise ValueError(
            f"{type(self.inner).__name__} quantizes {self._where} on no grid that is known, so"
            " there are no integers to export. Subclass tf_fpq.quantizers.GridQuantizer, or take"
            " one of tf_fpq.quantizers."
        )

    def set_grid(self, variables: Variables, step_size: np.ndarray, zero_point: np.ndarray) -> None:
        """Nothing: the quantizer's variables are its own affair."""

    def uncalibrated(self, variables: Variables) -> bool:
        """Never: nothing is known of a range."""
        return False


_RANGES = (
    _tfmot.LastValueQuantizer,
    _tfmot.MovingAverageQuantizer,
    _tfmot.AllValuesQuantizer,
    _tfmot.FixedQuantizer,
)


def adopt(quantizer: Any) -> GridQuantizer:
    """`quantizer` as a `GridQuantizer`: itself, or around it.

    A subclass of one of tfmot's may compute anything, so only those classes themselves are known to
    have a grid.

    Args:
      quantizer: A tfmot `Quantizer`.
    """
    if isinstance(quantizer, GridQuantizer):
        return quantizer
    return RangeQuantizer(quantizer) if type(quantizer) in _RANGES else OpaqueQuantizer(quantizer)
