"""Rules that bring a `QuantizeConfig` of their own, for layers of any class.

A layer that no table of this library knows is then an operator like any other: what it reads and
what it computes lie on grids, and the weights that the config lists are quantized. What it computes
in between is its own affair, so a student with such a layer trains; to export it, the exporter must
be told its operator (`tflite_export.register_operator`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_model_optimization as tfmot

from tf_fpq import graph, roles
from tf_fpq.keras_compat import deserialize, keras, register, serialize
from tf_fpq.placement import grids
from tf_fpq.placement.quantize_configs import GridQuantizeConfig
from tf_fpq.placement.rules import QuantRule
from tf_fpq.quantizers import GridQuantizer
from tf_fpq.quantizers.adopted import adopt
from tf_fpq.roles import Role
from tf_fpq.student_layers.quantized_layers import owner_and_attribute

WITHOUT_OPERATOR = (
    "quantized by its rule's config; to export it too, give its class an operator"
    " (tflite_export.register_operator)"
)


@register
class RuleConfig(tfmot.quantization.keras.QuantizeConfig):
    """A config written against tfmot's interface, with the widths that placing grids asks for.

    Attributes:
      config: The config.
      weight_bits: Widest width of the weights it quantizes, or None.
      activation_bits: Width of what the layer reads, or None.
    """

    def __init__(self, config: Any, weight_bits: int | None, activation_bits: int | None):
        self.config, self.weight_bits, self.activation_bits = config, weight_bits, activation_bits

    def get_weights_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[Any, GridQuantizer]]:
        """The config's, those of tfmot and of users around a `GridQuantizer`."""
        listed = self.config.get_weights_and_quantizers(layer)
        return [(weight, adopt(quantizer)) for weight, quantizer in listed]

    def set_quantize_weights(self, layer: keras.layers.Layer, quantize_weights: list[Any]) -> None:
        """The config's."""
        self.config.set_quantize_weights(layer, quantize_weights)

    def get_activations_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[Any, GridQuantizer]]:
        """None: a tensor's grid is a layer of its own."""
        return []

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: list[Any]
    ) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[GridQuantizer]:
        """None: a tensor's grid is a layer of its own."""
        return []

    def placed_quantizer(self, layer: keras.layers.Layer) -> GridQuantizer | None:
        """The quantizer that the config gives what `layer` computes, for the tensor's own layer."""
        inside = [quantizer for _, quantizer in self.config.get_activations_and_quantizers(layer)]
        quantizers = [*inside, *(self.config.get_output_quantizers(layer) or [])]
        return adopt(quantizers[-1]) if quantizers else None

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal config."""
        widths = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}
        return {"config": serialize(self.config), **widths}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RuleConfig":
        """Makes a config from `get_config()`."""
        return cls(**{**config, "config": deserialize(config["config"])})


def kernels(model: keras.Model) -> dict[str, str]:
    """Class by name of the layers with a kernel, which all rules choose among, in execution order.

    Args:
      model: A prepared model.
    """
    return _classes(model, lambda layer: roles.role(layer) is Role.KERNEL)


def others(model: keras.Model) -> dict[str, str]:
    """Class by name of the layers that only rules with a config choose among.

    Those are layers of no class or of no role known here.
    """
    return _classes(
        model,
        lambda layer: roles.role(layer) is None or (_is_own(layer) and not _has_kernel(layer)),
    )


def _classes(model: keras.Model, chosen: Callable[[keras.layers.Layer], bool]) -> dict[str, str]:
    return {
        call.layer.name: type(call.layer).__name__
        for call in graph.calls(model)
        if chosen(call.layer)
    }


def _is_own(layer: keras.layers.Layer) -> bool:
    return not type(layer).__module__.startswith(("tf_keras.", "tf_fpq."))


def _has_kernel(layer: keras.layers.Layer) -> bool:
    return roles.role(layer) is Role.KERNEL


def plan(model: keras.Model, rules: Mapping[str, QuantRule]) -> grids.Plan:
    """The placement of a model's grids when layers have these rules.

    A layer that only its rule's config makes possible is a function whose output has a grid.
    Configs that do not fit their layer are among the plan's `problems`.

    Args:
      model: A prepared model.
      rules: The chosen rule by layer name.
    """
    configs = {name: rule.config for name, rule in rules.items() if rule.config is not None}
    return plan_with(model, configs, _problem)


def plan_with(
    model: keras.Model,
    configs: Mapping[str, Any],
    problem: Callable[[graph.Call, Any], str | None],
) -> grids.Plan:
    """The placement of a model's grids when layers have these configs; as `plan` otherwise.

    Args:
      model: A prepared model.
      configs: By layer name, a config; None for a layer of no class known here that stays as it is.
      problem: `problem(call, config)` says why a config does not fit, or returns None.
    """
    result = grids.plan(model)
    for call in graph.calls(model):
        name, layer = call.layer.name, call.layer
        if name not in configs:
            continue
        if result.problems.get(name) == roles.problem(layer) and roles.role(layer) is None:
            result.problems.pop(name, None)
            result.needs_grid.update(id(tensor) for tensor in call.outputs)
        if configs[name] is not None and (reason := problem(call, configs[name])):
            result.problems.setdefault(name, reason)
    return result


def misfit(call: graph.Call, config: Any, of: str = "") -> str | None:
    """Why a config cannot quantize a layer whatever its quantizers are, or None if it can.

    Args:
      call: A call of the layer.
      config: The config.
      of: What it is a config of, for the text.
    """
    layer, who = call.layer, f"{type(config).__name__}{of}"
    if len(call.outputs) != 1:
        return f"it has {len(call.outputs)} outputs; a layer with a config of its own must have one"
    try:
        for weight, _ in config.get_weights_and_quantizers(layer):
            owner_and_attribute(layer, weight)
    except AttributeError as error:
        return f"{who} does not fit it: {error}"
    except ValueError as error:
        return f"{who} lists {error}"
    return None


def _problem(call: graph.Call, config: Any) -> str | None:
    """Why the config of a rule does not fit a layer, or None if it does."""
    layer, who = call.layer, f"{type(config).__name__} of its rule"
    if reason := misfit(call, config, " of its rule"):
        return reason
    if not isinstance(config, GridQuantizeConfig) and config.get_activations_and_quantizers(layer):
        return (
            f"{who} quantizes an activation inside the layer; make that a layer of its own, whose"
            " output gets a grid"
        )
    for weight, quantizer in config.get_weights_and_quantizers(layer):
        name = getattr(weight, "name", weight)
        if not isinstance(quantizer, GridQuantizer):
            return (
                f"{who} quantizes {name!r} by a {type(quantizer).__name__}; use one of"
                " tf_fpq.quantizers"
            )
        if not (quantizer.spec.symmetric and quantizer.spec.narrow_range):
            return (
                f"{who} quantizes {name!r} on a grid that int8 weights do not have: set"
                " symmetric=True, narrow_range=True"
            )
    return None


def weight_bits(layer: keras.layers.Layer, config: Any) -> int | None:
    """Widest width of the weights that `config` quantizes in `layer`, or None if there are none."""
    listed = config.get_weights_and_quantizers(layer)
    widths = [adopt(quantizer).spec.num_bits for _, quantizer in listed]
    return max(widths, default=None)


def configs(
    model: keras.Model, rules: Mapping[str, QuantRule], make_config: Callable[..., Any]
) -> dict[str, Any]:
    """The config of each layer that has a rule, for `placement.place`.

    Args:
      model: A prepared model whose plan has no problems.
      rules: The chosen rule by layer name.
      make_config: `make_config(weight_bits, activation_bits, per_channel=...)`, for rules without a
        config.
    """
    found = {}
    for name, rule in rules.items():
        if rule.config is None:
            found[name] = make_config(
                rule.weight_bits, rule.activation_bits, per_channel=rule.per_channel
            )
        else:
            width = weight_bits(model.get_layer(name), rule.config)
            found[name] = RuleConfig(rule.config, width, rule.activation_bits)
    return found
