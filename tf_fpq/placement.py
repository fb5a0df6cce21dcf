"""Where a model's tensors are quantized: one grid per tensor that the deployed integer graph holds.

A convolution, its batch norm and its ReLU are one integer operator, so only the ReLU's output is a tensor of the deployed
graph. `place` rebuilds a model with a `QuantizeActivation` behind each such tensor and its kernels in `QuantizedLayer`s.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tf_fpq import graph
from tf_fpq.graph import Call
from tf_fpq.keras_compat import keras
from tf_fpq.layers import QuantizeActivation, QuantizedLayer
from tf_fpq.quantize_config import GridQuantizeConfig
from tf_fpq.roles import Role, activation_name, problem, role

# Width of tensors that no kernel reads.
DEFAULT_BITS = 8


@dataclasses.dataclass
class Plan:
    """Facts about the tensors of a model, by `id` of its symbolic tensors.

    Attributes:
      readers: The calls that read a tensor.
      needs_grid: Tensors that get a `QuantizeActivation`.
      joins: For a call that joins an operator: whether it does.
      problems: `layer name: reason` for every layer that cannot be quantized.
    """

    readers: dict[int, list[Call]]
    needs_grid: set[int]
    problems: dict[str, str]


def plan(model: keras.Model) -> Plan:
    """Decides which tensors of `model` need a grid, and lists the layers that have no integer form."""
    calls = list(graph.calls(model))
    readers: dict[int, list[Call]] = {}
    for call in calls:
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call)
    outputs = {id(tensor) for tensor in model.outputs}

    needs_grid = {id(tensor) for tensor in model.inputs}
    problems: dict[str, str] = {}
    open_for: dict[int, frozenset[Role]] = {}  # tensor -> roles of layers that may join the operator it comes out of
    for call in calls:
        reason = problem(call.layer)
        joins = role(call.layer) in open_for.get(id(call.inputs[0]), ()) if call.inputs else False
        if reason is None and role(call.layer) is Role.BATCH_NORM and not joins:
            reason = "a batch normalization that does not directly follow a convolution or Dense layer"
        if reason is not None:
            problems[call.layer.name] = reason
            continue
        output = id(call.outputs[0])
        alone = len(readers.get(output, ())) == 1 and output not in outputs
        joinable = _joinable(call, open_for.get(id(call.inputs[0]), frozenset()) if joins else None)
        reader = readers[output][0] if alone else None
        if reader is not None and role(reader.layer) in joinable and problem(reader.layer) is None:
            open_for[output] = joinable
        elif role(call.layer) is not Role.SAME_GRID:
            needs_grid.add(output)
    return Plan(readers, needs_grid, problems)


def _joinable(call: Call, joined: frozenset[Role] | None) -> frozenset[Role]:
    """Roles of layers that may join the operator that ends, so far, with `call`; `joined` is what was open before it joined."""
    kind = role(call.layer)
    linear = activation_name(call.layer) == "linear"
    if kind is Role.KERNEL:
        return frozenset({Role.BATCH_NORM, Role.ACTIVATION}) if linear else frozenset()
    if kind is Role.BATCH_NORM:
        return frozenset({Role.BATCH_NORM, Role.ACTIVATION})
    if kind is Role.ARITHMETIC:
        return frozenset({Role.ACTIVATION})
    if kind is Role.ACTIVATION and linear:
        return joined or frozenset()
    return frozenset()


def _bits_read(tensor: Any, readers: Mapping[int, list[Call]], bits: Mapping[str, int]) -> int | None:
    """Widest width that a kernel asks of `tensor`, also through layers that keep the grid; None if no kernel reads it."""
    asked = []
    for call in readers.get(id(tensor), ()):
        if call.layer.name in bits:
            asked.append(bits[call.layer.name])
        elif role(call.layer) in (Role.SAME_GRID, Role.AVERAGE):
            asked.append(_bits_read(call.outputs[0], readers, bits))
    return max((width for width in asked if width is not None), default=None)


def place(
    model: keras.Model,
    configs: Mapping[str, GridQuantizeConfig],
    make_default: Callable[[int], GridQuantizeConfig],
    the_plan: Plan | None = None,
) -> keras.Model:
    """Returns a new model with quantizers in place and the weights of `model`.

    Args:
      model: A functional model without unsupported layers.
      configs: By layer name, the config of each layer whose kernel is quantized. Others keep float kernels.
      make_default: `make_default(bits)` gives the config for tensors that no kernel reads.
      the_plan: `plan(model)`, if it was made before.
    """
    the_plan = the_plan or plan(model)
    bits = {name: config.activation_bits for name, config in configs.items()}
    clones: dict[int, keras.layers.Layer] = {}
    grids: dict[
        int, QuantizeActivation
    ] = {}  # id of a symbolic tensor of the new model -> the layer whose grid it is on

    def on_grid(value: Any, original: Any, name: str) -> Any:
        width = _bits_read(original, the_plan.readers, bits) or DEFAULT_BITS
        config = _config_for(original, the_plan.readers, configs, width) or make_default(width)
        layer = QuantizeActivation(config.activation_quantizer(), name=f"{name}_quantize")
        return _tracked(layer(value), layer)

    def _tracked(value: Any, layer: QuantizeActivation) -> Any:
        grids[id(value)] = layer
        return value

    def make_call(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(call.layer) not in clones:
            clones[id(call.layer)] = _clone(call.layer, configs.get(call.layer.name))
        value = clones[id(call.layer)](*args, **kwargs)
        kind, original = role(call.layer), call.outputs[0]
        source = grids.get(id(args[0])) if kind in (Role.SAME_GRID, Role.AVERAGE) else None
        if kind is Role.SAME_GRID and source is not None:
            return _tracked(value, source)
        if kind is Role.AVERAGE and source is not None:
            return _tracked(source(value), source)
        if id(original) not in the_plan.needs_grid:
            return value
        suffix = f"_{call.index}" if call.index else ""
        return on_grid(value, original, call.layer.name + suffix)

    inputs = [
        keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, model.input_names)
    ]
    gridded = [on_grid(value, original, name) for value, original, name in zip(inputs, model.inputs, model.input_names)]
    outputs = graph.replay(model, gridded, make_call)
    placed = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=model.name)
    _copy_weights(model, clones)
    return placed


def _config_for(
    original: Any, readers: Mapping[int, list[Call]], configs: Mapping[str, GridQuantizeConfig], width: int
) -> GridQuantizeConfig | None:
    """The config of a kernel that reads `original` and asks for `width`."""
    for call in readers.get(id(original), ()):
        config = configs.get(call.layer.name)
        if config is None and role(call.layer) in (Role.SAME_GRID, Role.AVERAGE):
            config = _config_for(call.outputs[0], readers, configs, width)
        if config is not None and config.activation_bits == width:
            return config
    return None


def _clone(layer: keras.layers.Layer, config: GridQuantizeConfig | None) -> keras.layers.Layer:
    clone = type(layer).from_config(layer.get_config())
    return clone if config is None else QuantizedLayer(clone, config)


def _copy_weights(model: keras.Model, clones: Mapping[int, keras.layers.Layer]) -> None:
    for layer in model.layers:
        if id(layer) in clones and layer.weights:
            clone = clones[id(layer)]
            (clone.layer if isinstance(clone, QuantizedLayer) else clone).set_weights(layer.get_weights())
