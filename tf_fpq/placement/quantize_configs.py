"""tfmot `QuantizeConfig`s: which tensors of a layer are quantized, and by what."""

from collections.abc import Callable
import functools
from typing import Any

import tensorflow_model_optimization as tfmot

from tf_fpq import roles
from tf_fpq.keras_compat import deserialize_class, keras, register, registered_name
from tf_fpq.quantizers import (
    DoReFaQuantizer,
    EwgsQuantizer,
    GridQuantizer,
    LsqPlusQuantizer,
    LsqQuantizer,
    MinMaxQuantizer,
    PactQuantizer,
)


@register
class GridQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes a layer's kernel on the deployed weight grid, and activations per tensor.

    The weight grid is symmetric with a narrow range.

    Takes part in two designs. Under tfmot's own `quantize_apply` the activation quantizer sits at
    the layer's *output*, as tfmot has it. Under `tf_fpq.quantize_model` or `quantize_apply(...,
    scheme=tf_fpq.FpqQuantizeScheme())` it gives the width of what the layer *reads*, and is placed
    once per tensor.

    Subclasses name a quantizer; this class takes any.

    Attributes:
      quantizer: Class of the quantizers.
      per_channel: Whether every channel of a kernel has a step size of its own.
    """

    quantizer: type[GridQuantizer] = LsqQuantizer
    per_channel: bool = True

    def __init__(
        self,
        weight_bits: int | None = 8,
        activation_bits: int | None = 8,
        options: dict[str, Any] | None = None,
        *,
        per_channel: bool | None = None,
        quantizer: type[GridQuantizer] | str | None = None,
    ):
        """Creates the config.

        Args:
          weight_bits: Width of the kernel, 2 to 8, or None to leave it float.
          activation_bits: Width of the activation, 2 to 8, or None to leave it float.
          options: More arguments for the quantizer's constructor.
          per_channel: One step size per channel of a kernel or one for all; None is the quantizer's
            own: per tensor for DoReFa and PACT, as published, else per channel.
          quantizer: Class of the quantizers or its registered name; None is the one that the
            config's class names.

        Raises:
          TypeError: If `quantizer` is no `GridQuantizer` class.
          ValueError: If a width is neither None nor an integer from 2 to 8.
        """
        if isinstance(quantizer, str):
            quantizer = deserialize_class(quantizer)
        if quantizer is not None:
            check_quantizer_class(quantizer)
            self.quantizer = quantizer
        if per_channel is not None:
            self.per_channel = per_channel
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.options = dict(options or {})
        self.activation_quantizer()
        self.weight_quantizer(axis=None)

    def weight_quantizer(self, axis: tuple[int, ...] | None) -> GridQuantizer | None:
        """A quantizer for a kernel with channels along `axis`; None if the kernel stays float."""
        if self.weight_bits is None:
            return None
        axis = axis if self.per_channel else None
        return self.quantizer(
            self.weight_bits, symmetric=True, narrow_range=True, axis=axis, **self.options
        )

    def activation_quantizer(self) -> GridQuantizer | None:
        """A quantizer for an activation; None if it stays float."""
        return (
            None
            if self.activation_bits is None
            else self.quantizer(self.activation_bits, **self.options)
        )

    def get_weights_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[Any, GridQuantizer]]:
        """The kernel and its quantizer.

        There is nothing for a layer that has no kernel or keeps it float.
        """
        kernel = self._quantized_kernel(layer)
        quantizer = None if kernel is None else self.weight_quantizer(kernel.axis)
        if kernel is None or quantizer is None:
            return []
        return [(getattr(layer, kernel.name), quantizer)]

    def _quantized_kernel(self, layer: keras.layers.Layer) -> roles.Kernel | None:
        return None if self.weight_bits is None else roles.kernel(layer)

    def set_quantize_weights(self, layer: keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """Puts the quantized kernel in the layer; tfmot's own wrapper calls this."""
        kernel = self._quantized_kernel(layer)
        if len(quantize_weights) != (1 if kernel else 0):
            raise ValueError(
                f"Layer {layer.name!r} has {1 if kernel else 0} quantized weights. Received:"
                f" {len(quantize_weights)}."
            )
        if kernel:
            setattr(layer, kernel.name, quantize_weights[0])

    def get_activations_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[Any, GridQuantizer]]:
        """None: the output is quantized after the activation function, not before."""
        return []

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: list[Any]
    ) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[GridQuantizer]:
        """The activation quantizer, for tfmot's own wrapper."""
        quantizer = self.activation_quantizer()
        return [] if quantizer is None else [quantizer]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal config."""
        return {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "options": self.options,
            "per_channel": self.per_channel,
            "quantizer": (
                None if self.quantizer is type(self).quantizer else registered_name(self.quantizer)
            ),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GridQuantizeConfig":
        """Makes a config from `get_config()`."""
        return cls(**config)

    def with_bits(
        self, weight_bits: int | None, activation_bits: int | None
    ) -> "GridQuantizeConfig":
        """An equal config with other widths."""
        return self.from_config(
            {**self.get_config(), "weight_bits": weight_bits, "activation_bits": activation_bits}
        )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.weight_bits, self.activation_bits))


def check_quantizer_class(quantizer: Any) -> None:
    """Raises TypeError unless `quantizer` is a subclass of `GridQuantizer`."""
    if not (isinstance(quantizer, type) and issubclass(quantizer, GridQuantizer)):
        raise TypeError(
            "quantizer must be a subclass of tf_fpq.quantizers.GridQuantizer. Received:"
            f" quantizer={quantizer!r}."
        )


@register
class LsqQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `LsqQuantizer`s.

        annotate = tfmot.quantization.keras.quantize_annotate_layer
        annotate(layer, tf_fpq.LsqQuantizeConfig(weight_bits=4, activation_bits=4))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = LsqQuantizer


@register
class LsqPlusQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `LsqPlusQuantizer`s.

        tf_fpq.QuantRule("conv.*", config=tf_fpq.LsqPlusQuantizeConfig(weight_bits=4))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = LsqPlusQuantizer


@register
class PactQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `PactQuantizer`s, weights per tensor.

        tf_fpq.QuantRule("conv.*", config=tf_fpq.PactQuantizeConfig(weight_bits=4))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = PactQuantizer
    per_channel = False


@register
class DoReFaQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `DoReFaQuantizer`s, weights per tensor.

        tf_fpq.QuantRule("conv.*", config=tf_fpq.DoReFaQuantizeConfig(weight_bits=4))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = DoReFaQuantizer
    per_channel = False


@register
class EwgsQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `EwgsQuantizer`s.

        tf_fpq.QuantRule("conv.*", config=tf_fpq.EwgsQuantizeConfig(weight_bits=2))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = EwgsQuantizer


@register
class MinMaxQuantizeConfig(GridQuantizeConfig):
    """`GridQuantizeConfig` with `MinMaxQuantizer`s.

        tf_fpq.QuantRule("conv.*", config=tf_fpq.MinMaxQuantizeConfig(weight_bits=8))

    It goes into a rule, or where tfmot takes a `QuantizeConfig`.
    """

    quantizer = MinMaxQuantizer


# By name, a config or just a quantizer, for which `GridQuantizeConfig` does.
QUANTIZE_CONFIGS: dict[str, type[GridQuantizeConfig] | type[GridQuantizer]] = {
    "lsq": LsqQuantizeConfig,
    "lsq_plus": LsqPlusQuantizeConfig,
    "pact": PactQuantizeConfig,
    "dorefa": DoReFaQuantizeConfig,
    "ewgs": EwgsQuantizeConfig,
    "min_max": MinMaxQuantizeConfig,
}

# What a rule or a config decides, so that a configured quantizer may not.
_DECIDED = ("num_bits", "symmetric", "narrow_range", "axis")


def config_maker(quantizer: Any) -> Callable[..., GridQuantizeConfig]:
    """Makes a function that returns quantize configs for bit widths.

    It is `(weight_bits, activation_bits, per_channel=)`, made of a quantizer's name, class or
    `functools.partial`.

    Raises:
      TypeError: If `quantizer` is none of these.
      ValueError: If the name is unknown, a partial decides what the rules decide, or an option has
        a wrong value.
    """
    if isinstance(quantizer, str):
        if quantizer not in QUANTIZE_CONFIGS:
            raise ValueError(
                f"quantizer must be one of {', '.join(QUANTIZE_CONFIGS)}, a class or a"
                f" functools.partial. Received: quantizer={quantizer!r}."
            )
        quantizer = QUANTIZE_CONFIGS[quantizer]
        if issubclass(quantizer, GridQuantizeConfig):
            return quantizer
    options = {}
    if isinstance(quantizer, functools.partial):
        options = dict(quantizer.keywords)
        decided = [name for name in _DECIDED if name in options]
        if decided or quantizer.args:
            raise ValueError(
                f"quantizer may not set {', '.join(decided) or 'positional arguments'}: widths and"
                f" granularity come from the rules. Received: quantizer={quantizer!r}."
            )
        quantizer = quantizer.func
    check_quantizer_class(quantizer)
    for config in QUANTIZE_CONFIGS.values():
        if issubclass(config, GridQuantizeConfig) and config.quantizer is quantizer:
            return functools.partial(config, options=options)
    return functools.partial(GridQuantizeConfig, options=options, quantizer=quantizer)
