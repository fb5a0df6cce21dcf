"""tfmot `QuantizeConfig`s: which tensors of a layer are quantized, and by what."""

from typing import Any

import tensorflow_model_optimization as tfmot

from tf_fpq import roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers import GridQuantizer, LsqQuantizer


class GridQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes the kernel of a layer on the deployed weight grid (symmetric, narrow range, per channel), activations per tensor.

    Takes part in two designs. Under tfmot's own `quantize_apply` the activation quantizer sits at the layer's *output*, as tfmot
    has it. Under `tf_fpq.quantize_model` or `quantize_apply(..., scheme=tf_fpq.FpqQuantizeScheme())` it gives the width of what
    the layer *reads*, and is placed once per tensor.

    Attributes:
      quantizer: Class of the quantizers; subclasses name it.
    """

    quantizer: type[GridQuantizer]

    def __init__(self, weight_bits: int = 8, activation_bits: int = 8, options: dict[str, Any] | None = None):
        """Creates the config.

        Args:
          weight_bits: Width of the kernel, 2 to 8.
          activation_bits: Width of the activation, 2 to 8.
          options: More arguments for the quantizer's constructor.

        Raises:
          ValueError: If a width is not an integer from 2 to 8.
        """
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.options = dict(options or {})
        self.activation_quantizer()
        self.weight_quantizer(axis=None)

    def weight_quantizer(self, axis: tuple[int, ...] | None) -> GridQuantizer:
        """A quantizer for a kernel with channels along `axis`."""
        return self.quantizer(self.weight_bits, symmetric=True, narrow_range=True, axis=axis, **self.options)

    def activation_quantizer(self) -> GridQuantizer:
        """A quantizer for an activation."""
        return self.quantizer(self.activation_bits, **self.options)

    def get_weights_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, GridQuantizer]]:
        """The kernel and its quantizer; nothing for a layer that has no kernel."""
        kernel = roles.KERNELS.get(type(layer))
        return [(getattr(layer, kernel.name), self.weight_quantizer(kernel.axis))] if kernel else []

    def set_quantize_weights(self, layer: keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """Puts the quantized kernel in the layer; tfmot's own wrapper calls this."""
        kernel = roles.KERNELS.get(type(layer))
        if len(quantize_weights) != (1 if kernel else 0):
            raise ValueError(
                f"Layer {layer.name!r} has {1 if kernel else 0} quantized weights. Received: {len(quantize_weights)}."
            )
        if kernel:
            setattr(layer, kernel.name, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, GridQuantizer]]:
        """None: the output is quantized after the activation function, not before."""
        return []

    def set_quantize_activations(self, layer: keras.layers.Layer, quantize_activations: list[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[GridQuantizer]:
        """The activation quantizer, for tfmot's own wrapper."""
        return [self.activation_quantizer()]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal config."""
        return {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits, "options": self.options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GridQuantizeConfig":
        """Makes a config from `get_config()`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.weight_bits, self.activation_bits))


@register
class LsqQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `LsqQuantizer`s."""

    quantizer = LsqQuantizer
