"""The tfmot `QuantizeScheme`: `quantize_apply(annotated, scheme=FpqQuantizeScheme())`."""

from typing import Any

import tensorflow_model_optimization as tfmot

from tf_fpq import roles
from tf_fpq.conversion.canonical import canonical
from tf_fpq.keras_compat import keras
from tf_fpq.placement import calibration, grids
from tf_fpq.placement.quantize_configs import GridQuantizeConfig, LsqQuantizeConfig


class PlaceQuantizers(tfmot.quantization.keras.QuantizeLayoutTransform):
    """Layout transform of the integer graph: Conv/Depthwise/Dense + batch norm + ReLU as one
    operator, one grid per tensor.

    tfmot's transformer rewrites small patterns of layers again and again until none matches; this
    one reads each layer's role (`roles.py`) once, in order.
    """

    def __init__(self, default: type[GridQuantizeConfig] | None):
        self.default = default

    def apply(
        self, model: keras.Model, layer_quantize_map: dict[str, Any]
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Returns the model with all quantizers in place and an empty map, as nothing is left for
        tfmot to wrap.

        Raises:
          ValueError: If an annotated layer has a config that is no `GridQuantizeConfig`, or a layer
            has no integer form.
        """
        model = canonical(model)
        kernels = [layer.name for layer in model.layers if roles.role(layer) is roles.Role.KERNEL]
        configs = {}
        for name in kernels:
            if name in layer_quantize_map:
                configs[name] = layer_quantize_map[name].get("quantize_config")
        given = [config for config in configs.values() if config is not None]
        foreign = [
            type(config).__name__ for config in given if not isinstance(config, GridQuantizeConfig)
        ]
        if foreign:
            raise ValueError(
                "FpqQuantizeScheme places tf_fpq quantize configs only. Received:"
                f" {', '.join(foreign)}."
            )
        default = (
            self.default()
            if self.default
            else next(iter(given), LsqQuantizeConfig()).with_bits(8, 8)
        )
        configs = {name: config or default for name, config in configs.items()}
        the_plan = grids.plan(model)
        raise_problems(the_plan.problems)
        student = grids.place(model, configs, lambda bits: default.with_bits(8, bits), the_plan)
        calibration.start_weights(student)
        return student, {}


def raise_problems(problems: dict[str, str]) -> None:
    """Raises one ValueError that lists every layer that cannot be quantized."""
    if problems:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in problems.items())
        raise ValueError(
            f"{len(problems)} layer(s) have no integer form:\n{listed}\nReplace them by supported"
            " layers (tf_fpq.roles.ROLES lists those) or keep them out of the quantized model."
        )


class NoRegistry(tfmot.quantization.keras.QuantizeRegistry):
    """tfmot asks a registry for configs of layers that are still to be wrapped; after
    `PlaceQuantizers` there are none.
    """

    def get_quantize_config(self, layer: keras.layers.Layer) -> None:
        """No config."""

    def supports(self, layer: keras.layers.Layer) -> bool:
        """Whether the registry has a config for `layer`: never."""
        return False


class FpqQuantizeScheme(tfmot.quantization.keras.QuantizeScheme):
    """Quantizes on the grid that `tflite_export` deploys."""

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
