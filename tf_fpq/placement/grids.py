"""Where a model's tensors are quantized: one grid per tensor that the deployed integer graph holds.

A convolution, its batch norm and its ReLU are one integer operator, so only the ReLU's output is a
tensor of the deployed graph. `plan` decides which tensors get a grid and which share one; `place`
rebuilds the model with a `QuantizeActivation` behind each such tensor, a `DeployedRounding` before
it where the operator's kernel rounds by a rule of its own, and its kernels in `QuantizedLayer`s.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.graph import Call
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import GridQuantizeConfig
from tf_fpq.quantizers import GridQuantizer
from tf_fpq.quantizers.fixed import FixedQuantizer
from tf_fpq.roles import Role, problem, role
from tf_fpq.student_layers import deployed_rounding
from tf_fpq.student_layers.deployed_rounding import DeployedRounding
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer

# Width of tensors that no kernel reads.
DEFAULT_BITS = 8
# Width of tensors that stay float: the kernels that read them ask for no width.
FLOAT = 0

_KEEPS_GRID = (Role.SAME_GRID, Role.AVERAGE)
_READ_THROUGH = (*_KEEPS_GRID, Role.JOINT_GRID)


@dataclasses.dataclass
class Plan:
    """Facts about the tensors of a model, by `id` of its symbolic tensors.

    Attributes:
      readers: The calls that read a tensor.
      needs_grid: Tensors that get a `QuantizeActivation`.
      group: For each such tensor, and each whose grid it shares, the group of tensors on one grid.
      fixed: Tensors whose grid TFLite prescribes, with the name of their function.
      problems: `layer name: reason` for every layer that cannot be quantized.
    """

    readers: dict[int, list[Call]] = dataclasses.field(default_factory=dict)
    needs_grid: set[int] = dataclasses.field(default_factory=set)
    group: dict[int, int] = dataclasses.field(default_factory=dict)
    fixed: dict[int, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    def find(self, tensor: int) -> int:
        """The representative of a tensor's group."""
        while self.group.setdefault(tensor, tensor) != tensor:
            tensor = self.group[tensor]
        return tensor

    def unite(self, tensors: list[int]) -> None:
        """Makes tensors share one grid."""
        root = self.find(tensors[0])
        for tensor in tensors[1:]:
            self.group[self.find(tensor)] = root


def plan(model: keras.Model) -> Plan:
    """Decides which tensors of `model` need a grid.

    It also lists the layers that have no integer form.
    """
    result = Plan(needs_grid={id(tensor) for tensor in model.inputs}, readers=graph.readers(model))
    outputs = {id(tensor) for tensor in model.outputs}
    open_for: dict[
        int, frozenset[Role]
    ] = {}  # tensor -> roles of layers that may join the operator it comes out of
    for tensor, name in zip(model.inputs, model.input_names, strict=True):
        if id(tensor) not in result.readers and id(tensor) not in outputs:
            result.problems[name] = "no layer reads this input"
    for call in graph.calls(model):
        if reason := _call_problem(call) or problem(call.layer):
            result.problems[call.layer.name] = reason
            continue
        joined = open_for.get(id(call.inputs[0]), frozenset())
        output = id(call.outputs[0])
        joinable = _joinable(call, joined if role(call.layer) in joined else None)
        readers = result.readers.get(output, [])
        if len(readers) == 1 and output not in outputs and role(readers[0].layer) in joinable:
            open_for[output] = joinable
        else:
            _give_grid(result, call)
    return result


def _call_problem(call: Call) -> str | None:
    if call.node.call_kwargs.get("training") is True:
        return (
            "it is called with training=True, so that it draws numbers or uses the batch's"
            " statistics at inference too"
        )
    return None


def _joinable(call: Call, joined: frozenset[Role] | None) -> frozenset[Role]:
    """Roles that may join the operator that ends, so far, with `call`.

    `joined` is what was open to `call`, if it joined.
    """
    kind = role(call.layer)
    bounds = roles.clamp(call.layer)
    linear = bounds is not None and bounds[0] == -bounds[1]
    if kind is Role.AFFINE or (kind is Role.KERNEL and linear):
        return frozenset({Role.AFFINE, Role.CLAMP})
    if kind is Role.ARITHMETIC:
        return frozenset({Role.CLAMP})
    if kind is Role.CLAMP and linear:
        return joined or frozenset()
    return frozenset()


def _give_grid(result: Plan, call: Call) -> None:
    """Says on which grid the output of `call` lies."""
    kind, output = role(call.layer), id(call.outputs[0])
    if kind in _KEEPS_GRID:
        result.unite([id(call.inputs[0]), output])
    elif kind is Role.JOINT_GRID:
        free = [id(tensor) for tensor in call.inputs if result.find(id(tensor)) not in result.fixed]
        result.unite([*free, output])
    else:
        result.needs_grid.add(output)
        if kind is Role.FIXED_GRID:
            result.fixed[result.find(output)] = roles.activation_name(call.layer)


def _width_read(
    result: Plan, tensor: Any, bits: Mapping[str, int], memo: dict[int, int | None]
) -> int | None:
    """Widest width that a kernel asks of `tensor`, also through layers that keep the grid.

    None if no kernel reads it.
    """
    if id(tensor) not in memo:
        asked: list[int | None] = []
        for call in result.readers.get(id(tensor), ()):
            if call.layer.name in bits:
                asked.append(bits[call.layer.name])
            elif role(call.layer) in _READ_THROUGH:
                asked.append(_width_read(result, call.outputs[0], bits, memo))
        memo[id(tensor)] = max((width for width in asked if width is not None), default=None)
    return memo[id(tensor)]


def group_widths(model: keras.Model, result: Plan, bits: Mapping[str, int]) -> dict[int, int]:
    """Width of every group of tensors.

    It is the widest that any kernel asks for that reads one of them, else 8.
    """
    memo: dict[int, int | None] = {}
    widths: dict[int, int] = {}
    tensors = [*model.inputs, *(tensor for call in graph.calls(model) for tensor in call.outputs)]
    for tensor in tensors:
        width = _width_read(result, tensor, bits, memo)
        if width is not None:
            root = result.find(id(tensor))
            widths[root] = max(width, widths.get(root, 0))
    return widths


class _Placer:
    """Rebuilds one model with its quantizers."""

    def __init__(
        self,
        model: keras.Model,
        result: Plan,
        configs: Mapping[str, GridQuantizeConfig],
        make_config: Callable[[int], GridQuantizeConfig],
        given: Mapping[str, GridQuantizer],
    ):
        self._model, self._plan, self._configs, self._make_config = (
            model,
            result,
            configs,
            make_config,
        )
        self._given = self._by_group(given)
        bits = {name: config.activation_bits or FLOAT for name, config in configs.items()}
        self._widths = group_widths(model, result, bits)
        self._default_bits = FLOAT if bits and not any(bits.values()) else DEFAULT_BITS
        self._clones: dict[int, keras.layers.Layer] = {}
        self._names = {layer.name for layer in model.layers} | {
            call.name for call in graph.calls(model)
        }
        self._grids: dict[int, QuantizeActivation] = {}  # group -> its layer

    def _by_group(self, given: Mapping[str, GridQuantizer]) -> dict[int, GridQuantizer]:
        """The quantizers by the grid that ends the operator of their layer."""
        found: dict[int, GridQuantizer] = {}
        for call in graph.calls(self._model):
            if call.layer.name in given:
                output = call.outputs[0]
                while id(output) not in self._plan.needs_grid and id(output) in self._plan.readers:
                    output = self._plan.readers[id(output)][0].outputs[0]
                found.setdefault(self._plan.find(id(output)), given[call.layer.name])
        return found

    def place(self) -> keras.Model:
        model = self._model
        inputs = graph.new_inputs(model)
        tensors = zip(tf.nest.flatten(inputs), model.inputs, model.input_names, strict=True)
        on_grid = [self._quantize(value, tensor, name) for value, tensor, name in tensors]
        calls_on_inputs = {group: len(layer.inbound_nodes) for group, layer in self._grids.items()}
        placed = graph.functional(inputs, graph.replay(model, on_grid, self._call), name=model.name)
        for layer in model.layers:
            if id(layer) in self._clones:
                graph.copy_weights(layer, roles.inner(self._clones[id(layer)]))
        for group, calls in calls_on_inputs.items():
            self._freeze_input(self._grids[group], calls)
        return placed

    @staticmethod
    def _freeze_input(layer: QuantizeActivation, calls_on_inputs: int) -> None:
        """Keeps the calibrated step of an 8-bit grid that holds inputs of the model only.

        What it holds does not change in training, and a gradient for its step would need the
        gradient of the first layer by its input: 4 % of a training step of resnet20.
        """
        if (
            layer.quantizer.spec.num_bits >= DEFAULT_BITS
            and len(layer.inbound_nodes) == calls_on_inputs
        ):
            layer.trainable = False

    def _call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind, output = role(call.layer), call.outputs[0]
        if kind is Role.JOINT_GRID:
            args = (
                [self._onto(output, v, t) for v, t in zip(args[0], call.inputs, strict=True)],
                *args[1:],
            )
        value = self._clone(call.layer)(*args, **kwargs)
        again = kind is Role.AVERAGE and id(output) not in self._plan.needs_grid
        if again or id(output) in self._plan.needs_grid:
            return self._quantize(value, output, call.name, tf.nest.flatten(args[0]))
        return value

    def _onto(self, output: Any, value: Any, tensor: Any) -> Any:
        """`value` on the grid of `output`: quantized again if its own grid is a fixed one."""
        same = self._plan.find(id(tensor)) == self._plan.find(id(output))
        if same:
            return value
        name = f"{graph.producer(tensor).name}_again"
        return self._quantize(value, output, name, [value])

    def _quantize(self, value: Any, tensor: Any, name: str, read: Sequence[Any] = ()) -> Any:
        """`value`, made of what was `read`, on the grid of `tensor`, rounded as deployed."""
        group = self._plan.find(id(tensor))
        if self._widths.get(group, self._default_bits) == FLOAT:
            return value
        if read and deployed_rounding.arithmetic_of(value, read) is not None:
            rounding = graph.unique_name(f"{name}_rounding", self._names)
            value = DeployedRounding(name=rounding)([value, *read])
        if group not in self._grids:
            name = graph.unique_name(f"{name}_quantize", self._names)
            self._grids[group] = QuantizeActivation(self._quantizer(group), name=name)
        return self._grids[group](value)

    def _quantizer(self, group: int) -> Any:
        function = self._plan.fixed.get(group)
        if function is None and group in self._given:
            return self._given[group]
        if function is None:
            return self._make_config(
                self._widths.get(group, self._default_bits)
            ).activation_quantizer()
        step_size, zero_point = roles.FIXED_GRIDS[function]
        return FixedQuantizer(
            8, step_size=step_size, zero_point=zero_point, in_training=function != "softmax"
        )

    def _clone(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in self._clones:
            clone = graph.copy_layer(layer)
            config = self._configs.get(layer.name)
            if type(layer) in roles.MINOR_KERNELS:
                config = self._make_config(DEFAULT_BITS)
            self._clones[id(layer)] = (
                clone
                if config is None or config.weight_bits is None
                else QuantizedLayer(clone, config)
            )
        return self._clones[id(layer)]


def place(
    model: keras.Model,
    configs: Mapping[str, GridQuantizeConfig],
    make_config: Callable[[int], GridQuantizeConfig],
    result: Plan | None = None,
    given: Mapping[str, GridQuantizer] | None = None,
) -> keras.Model:
    """Returns a new model with quantizers in place and the weights of `model`.

    Args:
      model: A functional model without unsupported layers.
      configs: By layer name, the config of each layer whose kernel is quantized. Others keep float
        kernels.
      make_config: `make_config(bits)` gives the config whose activation quantizer holds a tensor of
        that width.
      result: `plan(model)`, if it was made before.
      given: By layer name, a quantizer for what the layer's operator computes, in place of
        `make_config`'s. A grid that TFLite prescribes stays.
    """
    return _Placer(model, result or plan(model), configs, make_config, given or {}).place()
