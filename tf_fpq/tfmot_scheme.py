"""The tfmot `QuantizeScheme`: `quantize_apply(annotated, scheme=FpqQuantizeScheme())`."""

from collections.abc import Mapping
import functools
from typing import Any

import tensorflow_model_optimization as tfmot

from tf_fpq import graph, roles
from tf_fpq.calibration import grids_from_images
from tf_fpq.conversion.prepare import prepare
from tf_fpq.keras_compat import keras
from tf_fpq.placement import grids, rule_configs
from tf_fpq.placement.quantize_configs import GridQuantizeConfig, LsqQuantizeConfig
from tf_fpq.placement.rule_configs import RuleConfig


class PlaceQuantizers(tfmot.quantization.keras.QuantizeLayoutTransform):
    """Layout transform of the integer graph.

    Conv, Depthwise or Dense with batch norm and ReLU are one operator, and each tensor has one
    grid.

    tfmot's transformer rewrites small patterns of layers again and again until none matches; this
    one reads each layer's role (`roles.py`) once, in order.
    """

    def __init__(self, default: type[GridQuantizeConfig] | None):
        self.default = default

    def apply(
        self, model: keras.Model, layer_quantize_map: dict[str, Any]
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Returns the model with all quantizers in place, and an empty map.

        Nothing is left for tfmot to wrap.

        A layer that was not annotated keeps its float weights; one of no class known here stays as
        it is, between tensors on grids. A config of another library quantizes what it lists, with
        its own quantizers, and its last activation or output quantizer holds what the layer's
        operator computes.

        Raises:
          ValueError: If an annotated layer has no integer form and no config, or its config does
            not fit it.
        """
        model = prepare(model)
        annotated = {
            name: entry.get("quantize_config") for name, entry in layer_quantize_map.items()
        }
        the_plan = _plan(model, annotated)
        raise_problems(the_plan.problems)
        default = self._default(annotated)
        configs = _configs(model, annotated, default)
        outputs = {
            name: quantizer
            for name, config in configs.items()
            if isinstance(config, RuleConfig)
            and (quantizer := config.placed_quantizer(model.get_layer(name)))
        }
        make_config = functools.partial(default.with_bits, 8)
        student = grids.place(model, configs, make_config, the_plan, outputs)
        grids_from_images.start_weights(student)
        return student, {}

    def _default(self, annotated: Mapping[str, Any]) -> GridQuantizeConfig:
        """The config of activations, and of layers annotated without one."""
        if self.default:
            return self.default()
        ours = (config for config in annotated.values() if isinstance(config, GridQuantizeConfig))
        return next(ours, LsqQuantizeConfig()).with_bits(8, 8)


def _plan(model: keras.Model, annotated: Mapping[str, Any]) -> grids.Plan:
    """The placement of the grids, with the problems of annotated layers only."""
    layers = {call.layer.name: call.layer for call in graph.calls(model)}
    given = {name: config for name, config in annotated.items() if config is not None}
    floats = {
        name: None
        for name, layer in layers.items()
        if name not in annotated and roles.role(layer) is None
    }
    result = rule_configs.plan_with(model, {**floats, **given}, rule_configs.misfit)
    dissolved = "it is written as other layers, which its config does not know"
    result.problems.update({name: dissolved for name in given if name not in layers})
    return result


def _configs(
    model: keras.Model, annotated: Mapping[str, Any], default: GridQuantizeConfig
) -> dict[str, Any]:
    """The config of each annotated layer that has weights to quantize.

    It may be a config of another library.
    """
    found: dict[str, Any] = {}
    for layer in {call.layer.name: call.layer for call in graph.calls(model)}.values():
        config = annotated.get(layer.name)
        if config is not None and not isinstance(config, GridQuantizeConfig):
            bits = rule_configs.weight_bits(layer, config)
            found[layer.name] = RuleConfig(config, bits, grids.DEFAULT_BITS)
        elif layer.name in annotated and roles.role(layer) in (None, roles.Role.KERNEL):
            found[layer.name] = config or default
    return found


def raise_problems(problems: dict[str, str]) -> None:
    """Raises one ValueError that lists every layer that cannot be quantized."""
    if problems:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in problems.items())
        raise ValueError(
            f"{len(problems)} layer(s) have no integer form:\n{listed}\nReplace them by supported"
            " layers (tf_fpq.roles.ROLES lists those) or keep them out of the quantized model."
        )


class NoRegistry(tfmot.quantization.keras.QuantizeRegistry):
    """The registry that tfmot asks for configs of layers that are still to be wrapped.

    After `PlaceQuantizers` there are none.
    """

    def get_quantize_config(self, layer: keras.layers.Layer) -> None:
        """No config."""

    def supports(self, layer: keras.layers.Layer) -> bool:
        """Whether the registry has a config for `layer`: never."""
        return False


class FpqQuantizeScheme(tfmot.quantization.keras.QuantizeScheme):
    """Quantizes on the grid that `tflite_export` deploys.

        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        student = tfmot.quantization.keras.quantize_apply(annotated, tf_fpq.FpqQuantizeScheme())

    Layers without a config get the first one that a layer has, or LSQ.
    """

    def __init__(self, default: type[GridQuantizeConfig] | None = None):
        """Creates the scheme.

        Args:
          default: Class of the config for activations, and for layers annotated without a config (8
            bits). None is the first annotated config's class with its options, or
            `LsqQuantizeConfig` where no layer has one.
        """
        self.default = default

    def get_layout_transformer(self) -> PlaceQuantizers:
        """The layout transform."""
        return PlaceQuantizers(self.default)

    def get_quantize_registry(self) -> NoRegistry:
        """An empty registry."""
        return NoRegistry()
