"""Where integer kernels come from, and the affine layers that fold into them (`kernel.py`)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.quantizers.base import GridQuantizer
from tf_fpq.student_layers.quantized_layers import QuantizedLayer
from tflite_export.lowering.kernel import Kernel

layers = keras.layers

# Code of the only weight of a channel that is scaled and shifted: with the scale `|factor| / 127`
# it is exact. 127 is the largest, for the finest bias step `input scale * weight scale`.
UNIT_CODE = 127


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
    _check_grid(layer, quantizer)
    codes = transpose(quantizer.codes(weight, variables).numpy()).astype(np.int8)
    step_size = np.broadcast_to(quantizer.grid(variables)[0].numpy(), weight.shape)
    channels = codes.shape[axis]
    # All elements of a channel have one step, so any of them is the channel's.
    scale = (
        np.moveaxis(transpose(step_size), axis, 0).reshape(channels, -1)[:, 0].astype(np.float64)
    )
    variable = layer.layer.bias if getattr(layer.layer, "use_bias", False) else None
    bias = np.zeros(channels) if variable is None else variable.numpy().astype(np.float64)
    return Kernel(f"{name}_kernel", codes, axis, scale, bias, variable)


def _check_grid(layer: Any, quantizer: GridQuantizer) -> None:
    """Raises ValueError for a foreign quantizer's grid that TFLite's weights do not have."""
    if quantizer.has_grid and not (quantizer.spec.symmetric and quantizer.spec.narrow_range):
        raise ValueError(
            f"Layer {layer.name!r} has weights on a grid that int8 weights do not have: set"
            f" symmetric=True, narrow_range=True. Received: {quantizer.spec}."
        )


def at_least_strides(kernel: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """A transposed convolution's kernel `[h, w, ...]` with zeros after it up to the strides.

    The output is the same.

    Where the kernel is smaller than the stride it writes the first places of each stride and the
    others are 0, with either padding. XNNPACK does not take such an operator, and the kernel that
    replaces it rounds otherwise.
    """
    after = [(0, max(step - size, 0)) for size, step in zip(kernel.shape, strides, strict=False)]
    return np.pad(kernel, after + [(0, 0)] * (kernel.ndim - 2))


def unit_kernel(name: str, channels: int) -> Kernel:
    """A depthwise 1x1 kernel that does nothing.

    An affine layer that follows no kernel is folded into it.
    """
    codes = np.full((1, 1, 1, channels), UNIT_CODE, np.int8)
    return Kernel(
        f"{name}_kernel", codes, 3, np.full(channels, 1.0 / UNIT_CODE), np.zeros(channels)
    )


def affine(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """`factor` and `offset` (float64) of an affine layer, which computes `factor * x + offset`.

    A worked number: a batch norm with gamma 0.5, beta 1, mean 3 and variance 4 (epsilon 0) has
    `factor = 0.5 / 2 = 0.25` and `offset = 1 - 3 * 0.25 = 0.25`.
    """
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
