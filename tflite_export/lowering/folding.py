"""Integer kernels, and the affine layers that fold into them.

With a channel's `factor` and `offset` (a batch norm: `f = gamma / sqrt(variance + epsilon)`, `beta
- mean * f`), the channel keeps its codes (negated where `f < 0`), its scale becomes `step_size *
|f|` and its bias `f * bias + offset`. Nothing is rounded.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantized_layers import QuantizedLayer

layers = keras.layers

# Code of the only weight of a channel that is scaled and shifted: with the scale `|factor| / 127`
# it is exact.
UNIT_CODE = 127
INT32_MAX = 2**31 - 1
# Where float32 begins to lose bits of a step, with room for codes that are widened.
SMALLEST_STEP = 2.0**-118
# A constant channel's value in its steps: as exact as float32, and small enough for other channels
# to be widened.
CONSTANT_STEPS = 2.0**23
# Where biases stay when codes are widened: half of int32, so that the sum has room.
BIAS_LIMIT = 2.0**30


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Integer weights in TFLite's layout with the scale (float64) and the float bias of each
    channel.

    Attributes:
      name: Name of the weights' tensor.
      codes: int8 codes.
      axis: Channel axis.
      scale: `[channels]`.
      bias: `[channels]`.
      offset: The student's variable that shifts the output as it is (the layer's bias, or the batch
        norm's beta), or None.
    """

    name: str
    codes: np.ndarray
    axis: int
    scale: np.ndarray
    bias: np.ndarray
    offset: tf.Variable | None = None

    def fold(
        self, factor: np.ndarray, offset: np.ndarray, variable: tf.Variable | None = None
    ) -> "Kernel":
        """The kernel whose output is `factor * output + offset`. A channel with factor 0 keeps its
        scale, all its codes are 0.
        """
        scale = np.where(factor == 0, self.scale, self.scale * np.abs(factor))
        sign = self._along_channels(np.broadcast_to(np.sign(factor), scale.shape).astype(np.int8))
        return dataclasses.replace(
            self,
            codes=self.codes * sign,
            scale=scale,
            bias=self.bias * factor + offset,
            offset=variable,
        )

    def within(self, input_scale: float, output_scale: float) -> "Kernel":
        """The kernel without what its output cannot show, so that sums fit int32 and the kernels'
        arithmetic.

        A bias that is farther beyond the output's grid than all products together reach is clipped
        to there: the sums saturate as before. (XNNPACK on x86 and the reference kernels return the
        wrong end of the grid for sums of 2^31 output steps.) A channel whose products together move
        the output by less than 1/256 of a step becomes a constant if its bias has no room in int32
        on their grid, or float32 none for that grid: weight decay leaves such channels behind, with
        a batch norm's gamma of 1e-20.

        Args:
          input_scale: Scale of the codes that the weights are multiplied by.
          output_scale: Scale of the output's codes.
        """
        others = tuple(axis for axis in range(self.codes.ndim) if axis != self.axis)
        step = input_scale * self.scale
        reach = 255.0 * np.abs(self.codes.astype(np.int64)).sum(others) * step
        limit = reach + 512.0 * output_scale
        bias = np.clip(self.bias, -limit, limit)
        dead = (reach < output_scale / 256) & (
            (np.abs(bias) >= INT32_MAX * step) | (step < SMALLEST_STEP)
        )
        codes = np.where(self._along_channels(dead), np.int8(0), self.codes)
        constant = np.maximum(np.abs(bias), output_scale) / CONSTANT_STEPS
        scale = np.where(dead, constant / input_scale, self.scale)
        return dataclasses.replace(self, codes=codes, scale=scale, bias=bias)

    def _along_channels(self, values: np.ndarray) -> np.ndarray:
        """`[channels]` in a shape that broadcasts with the codes."""
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return values.reshape(shape)

    def widened(self, limit: int, input_scale: float) -> "Kernel":
        """The same weights, with codes `2^k` times as large and scales `2^-k` as large.

        k is the largest that keeps the codes within `limit` and the bias within half of int32. At
        low widths sums of products thereby have steps as fine, beside those of their output, as at
        8 bits. The bias, a multiple of that step, is `2^k` times as exact; and kernels that round
        twice lose their bias: they first round to a multiple of `2^-n` output steps, where n is
        what the requantization shifts by, and at n = 1 take every fraction from a quarter up to the
        next code (`kernels/rounding.py`).

        Args:
          limit: Largest code of the container.
          input_scale: Scale of the codes that the weights are multiplied by.
        """
        codes = int(np.abs(self.codes.astype(np.int16)).max(initial=1)) or 1
        bias = np.abs(self.bias / (input_scale * self.scale)).max(initial=0)
        room = min(limit / codes, BIAS_LIMIT / max(bias, 1))
        power = 2 ** max(0, math.floor(math.log2(room)))
        return dataclasses.replace(
            self, codes=(self.codes * power).astype(np.int8), scale=self.scale / power
        )


def quantized_kernel(
    layer: Any, name: str, transpose: Callable[[np.ndarray], np.ndarray], axis: int
) -> Kernel:
    """The trained codes of a quantized layer.

    Args:
      layer: The `QuantizedLayer`.
      name: Name of the call: each call of a shared layer has a kernel of its own, with its batch
        norm and its bias' grid.
      transpose: Brings the Keras kernel into TFLite's layout.
      axis: Channel axis of that layout.

    Raises:
      ValueError: If the layer has a float kernel.
    """
    if not isinstance(layer, QuantizedLayer):
        raise ValueError(
            f"Layer {layer.name!r} has a float kernel: no rule matched it. Add a rule for it and"
            " quantize again."
        )
    ((_, weight, quantizer, variables),) = layer.quantized_weights()
    codes = transpose(quantizer.codes(weight, variables).numpy()).astype(np.int8)
    step_size = np.broadcast_to(quantizer.grid(variables)[0].numpy(), weight.shape)
    channels = codes.shape[axis]
    scale = (
        np.moveaxis(transpose(step_size), axis, 0).reshape(channels, -1)[:, 0].astype(np.float64)
    )
    variable = layer.layer.bias if getattr(layer.layer, "use_bias", False) else None
    bias = np.zeros(channels) if variable is None else variable.numpy().astype(np.float64)
    return Kernel(f"{name}_kernel", codes, axis, scale, bias, variable)


def at_least_strides(kernel: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """A transposed convolution's kernel `[h, w, ...]` with zeros after it up to the strides: the
    output is the same.

    Where the kernel is smaller than the stride it writes the first places of each stride and the
    others are 0, with either padding. XNNPACK does not take such an operator, and the kernel that
    replaces it rounds otherwise.
    """
    after = [(0, max(step - size, 0)) for size, step in zip(kernel.shape, strides, strict=False)]
    return np.pad(kernel, after + [(0, 0)] * (kernel.ndim - 2))


def unit_kernel(name: str, channels: int) -> Kernel:
    """A depthwise 1x1 kernel that does nothing, to fold an affine layer into that follows no
    kernel.
    """
    codes = np.full((1, 1, 1, channels), UNIT_CODE, np.int8)
    return Kernel(
        f"{name}_kernel", codes, 3, np.full(channels, 1.0 / UNIT_CODE), np.zeros(channels)
    )


def affine(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """`factor` and `offset` (float64) of an affine layer."""
    return _AFFINE[type(layer).__name__](layer)


def offset_variable(layer: keras.layers.Layer) -> tf.Variable | None:
    """The variable that is added to an affine layer's output: a batch norm's beta."""
    return layer.beta if isinstance(layer, layers.BatchNormalization) and layer.center else None


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _batch_norm(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    gamma = _array(layer.gamma) if layer.scale else 1.0
    beta = _array(layer.beta) if layer.center else 0.0
    factor = gamma / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
    return factor, beta - _array(layer.moving_mean) * factor


def _rescaling(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return _array(layer.scale), _array(layer.offset)


def _normalization(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    deviation = np.maximum(np.sqrt(_array(layer.variance)), keras.backend.epsilon()).reshape(-1)
    mean = _array(layer.mean).reshape(-1)
    return (deviation, mean) if layer.invert else (1.0 / deviation, -mean / deviation)


def _layer_scale(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return _array(layer.gamma), np.zeros(())


def _channel_affine(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return _array(layer.gamma), _array(layer.beta)


_AFFINE: dict[str, Callable[[Any], tuple[np.ndarray, np.ndarray]]] = {
    "BatchNormalization": _batch_norm,
    "Rescaling": _rescaling,
    "Division": _rescaling,
    "Normalization": _normalization,
    "LayerScale": _layer_scale,
    "ChannelAffine": _channel_affine,
}
