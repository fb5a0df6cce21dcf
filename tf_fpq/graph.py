"""Replaying a functional model layer by layer: the one place that knows Keras' graph nodes.

Quantizing a model, putting noise on a convolution's input and flattening nested models are all the
same act: run the model's layers in order, on new symbolic tensors, and do something at some of
them.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import itertools
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras

# Frames that a walk over a graph may take. The student of EfficientNetV2L, the deepest of
# keras.applications, needs more than Python's usual 1000.
RECURSION_LIMIT = 10_000


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer in a functional model (a shared layer has several).

    Attributes:
      layer: The layer that was called.
      name: The layer's name; later calls of a shared layer are numbered. No other layer or call of
        the model has it.
      inputs: Symbolic tensors of the original model that went in, flat.
      outputs: Symbolic tensors of the original model that came out, flat.
      node: Keras' node, opaque outside this module.
    """

    layer: keras.layers.Layer
    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    node: Any

    def arguments(self, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with each symbolic tensor replaced by `values[id(tensor)]`."""
        # Keras' nodes pop one value per use out of lists.
        fed = {str(id(tensor)): [values[id(tensor)]] * len(self.inputs) for tensor in self.inputs}
        return self.node.map_arguments(fed)


# Makes a call in a graph that is replayed: `(call, args, kwargs)` to the call's outputs.
MakeCall = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


@contextlib.contextmanager
def deep_recursion() -> Iterator[None]:
    """Within the context graphs of up to `RECURSION_LIMIT` layers in a row can be walked.

    Keras makes, clones and loads a functional model by recursion, a frame for each layer of its
    longest path. A student is up to twice as deep as its float model, so one that Keras could make
    may be too deep for `keras.models.load_model` outside of this context.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def functional(inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
    """`keras.Model(inputs, outputs, name)` of any depth."""
    with deep_recursion():
        return keras.Model(inputs, outputs, name=name)


def clone(
    model: keras.Model,
    clone_function: Callable[[keras.layers.Layer], keras.layers.Layer] | None = None,
) -> keras.Model:
    """A copy of a functional model of any depth, with the weights of `model`."""
    with deep_recursion():
        copy = keras.models.clone_model(model, clone_function=clone_function)
    copy.set_weights(model.get_weights())
    return copy


def is_functional(model: object) -> bool:
    """Whether `model` is a built Keras 2 Sequential or Functional model.

    Its graph can then be read.
    """
    return isinstance(model, keras.Model) and bool(getattr(model, "_is_graph_network", False))


def check_finite(model: keras.Model, argument: str) -> None:
    """Refuses a model whose weights are no numbers.

    Nothing can be calibrated on it or read from its integers.

    Args:
      model: The model.
      argument: What the caller names it, for the error.

    Raises:
      ValueError: Naming the weights that have a NaN or an infinity.
    """
    arrays = ((weight.name, weight.numpy()) for weight in model.weights)
    bad = [
        name
        for name, values in arrays
        if values.dtype.kind == "f" and not np.isfinite(values).all()
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{argument} must have finite weights. Received: {argument} {model.name!r} with NaN or"
            f" infinity in {', '.join(bad[:3])}{more}. If it was trained, the training diverged: go"
            " back to an earlier checkpoint, or train with a lower learning rate."
        )


def calls(model: keras.Model) -> Iterator[Call]:
    """Yields the calls of `model` in execution order, without its input layers.

    Calls of a shared layer come in the order in which they were made, so that a model that `replay`
    made numbers them as the original does, whatever layers were put in between.
    """
    taken = {layer.name for layer in model.layers}
    called: set[int] = set()
    with deep_recursion():
        nodes = list(_ordered_nodes(model))
    for node in nodes:
        name = unique_name(node.layer.name, taken) if id(node.layer) in called else node.layer.name
        called.add(id(node.layer))
        yield Call(
            node.layer, name, tuple(node.keras_inputs), tuple(tf.nest.flatten(node.outputs)), node
        )


def _ordered_nodes(model: keras.Model) -> Iterator[Any]:
    """The nodes of `model` by depth, but each after those made before it of the same layer."""
    depths = model._nodes_by_depth
    nodes = [
        node
        for depth in sorted(depths, reverse=True)
        for node in depths[depth]
        if not node.is_input
    ]
    left = {id(node) for node in nodes}  # a layer may have nodes in other models too
    earlier: dict[int, Any] = {}
    for layer in {id(node.layer): node.layer for node in nodes}.values():
        made = [node for node in layer._inbound_nodes if id(node) in left]
        earlier.update((id(node), before) for before, node in zip(made, made[1:]))

    def visit(node: Any) -> Iterator[Any]:
        if id(node) in left:
            left.remove(id(node))
            for before in (*node.parent_nodes, earlier.get(id(node))):
                yield from visit(before)
            yield node

    for node in nodes:
        yield from visit(node)


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, numbered if it is taken; it is then taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    free = next(
        candidate for candidate in itertools.chain([name], numbered) if candidate not in taken
    )
    taken.add(free)
    return free


def readers(model: keras.Model) -> dict[int, list[Call]]:
    """The calls of `model` that read a symbolic tensor, by the tensor's `id`.

    A call is there once for each time it reads the tensor.
    """
    found: dict[int, list[Call]] = {}
    for call in calls(model):
        for tensor in call.inputs:
            found.setdefault(id(tensor), []).append(call)
    return found


def make_call(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Makes a call as it is: the `MakeCall` that changes nothing."""
    return call.layer(*args, **kwargs)


def replay(model: keras.Model, inputs: list[Any], call: MakeCall) -> Any:
    """Runs the layers of `model` on `inputs` and returns its outputs.

    They have the structure of `model.output`.

    Args:
      model: A functional model.
      inputs: One (symbolic) tensor per element of `model.inputs`.
      call: `call(call, args, kwargs)` makes the call and returns its outputs; `args` and `kwargs`
        are those of the original call with the original symbolic tensors replaced by what earlier
        calls returned. `make_call` changes nothing.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for record in calls(model):
        args, kwargs = record.arguments(values)
        outputs = tf.nest.flatten(call(record, args, kwargs))
        values.update(
            {id(tensor): value for tensor, value in zip(record.outputs, outputs, strict=True)}
        )
    flat = [values[id(tensor)] for tensor in model.outputs]
    return tf.nest.pack_sequence_as(model._nested_outputs, flat)


def producer(tensor: Any) -> keras.layers.Layer:
    """The layer that a symbolic tensor comes out of."""
    return _node(tensor).layer


def _node(tensor: Any) -> Any:
    """The node a symbolic tensor comes out of.

    In a graph of TensorFlow 1 it is a tensor of that graph.
    """
    history = tensor._keras_history
    return history.layer.inbound_nodes[history.node_index]


def sources(tensor: Any) -> tuple[Any, ...]:
    """The symbolic tensors that the layer call read which `tensor` comes out of."""
    return tuple(_node(tensor).keras_inputs)


def make_again(tensor: Any, replaced: Mapping[int, Any]) -> Any:
    """The symbolic tensor that the call `tensor` comes out of returns on other inputs.

    Args:
      tensor: A symbolic tensor, the output of a layer.
      replaced: By `id` of the tensors in `sources(tensor)`, what is to be read instead; others are
        read again.
    """
    node = _node(tensor)
    fed = {
        str(id(source)): [replaced.get(id(source), source)] * len(node.keras_inputs)
        for source in node.keras_inputs
    }
    args, kwargs = node.map_arguments(fed)
    outputs = tf.nest.flatten(node.layer(*args, **kwargs))
    place = [output is tensor for output in tf.nest.flatten(node.outputs)].index(True)
    return outputs[place]


def first_inputs(layer: keras.layers.Layer) -> tuple[Any, ...]:
    """The symbolic tensors of the layer's first call; none before it was called on such.

    A layer is first called by the model that it was made for, be that built or loaded; models that
    share it come later.
    """
    nodes = layer.inbound_nodes
    return tuple(nodes[0].keras_inputs) if nodes else ()


def first_reader(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """The first layer that was called on what `layer` returned, or None."""
    nodes = layer.outbound_nodes
    return nodes[0].layer if nodes else None


def new_inputs(model: keras.Model) -> Any:
    """Inputs like `model`'s, under the same names and in the same structure, for float tensors.

    An integer input (uint8 images) becomes a float one, as its values go on a grid; Keras casts
    what it is fed.
    """
    inputs = [
        keras.Input(t.shape[1:], dtype="float32", name=n)
        for t, n in zip(model.inputs, model.input_names)
    ]
    structure = model._nested_inputs
    return (
        inputs[0]
        if len(inputs) == 1 and not isinstance(structure, dict)
        else tf.nest.pack_sequence_as(structure, inputs)
    )


def input_keys(model: keras.Model) -> list[str]:
    """The keys of a dict that `model` can be fed with, in the order of `model.inputs`."""
    structure = model._nested_inputs
    return sorted(structure) if isinstance(structure, dict) else list(model.input_names)


def copy_layer(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """A new layer like `layer`, with some arguments changed, for `copy_weights` to fill.

    It computes in float32.

    Grids are exact in float32 only, so a student computes in it, whatever the policy of the model
    it is made from. An initializer that is not Keras' own may be unknown where the student is
    loaded, and no weight is left for it to make: zeros take its place.
    """
    config = layer.get_config()
    own = [
        key
        for key, value in config.items()
        if key.endswith("_initializer") and not _is_keras_object(value)
    ]
    return type(layer).from_config(
        {**config, **dict.fromkeys(own, "zeros"), "dtype": "float32", **changes}
    )


def _is_keras_object(serialized: Any) -> bool:
    return isinstance(serialized, dict) and (serialized.get("module") or "").startswith("keras.")


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Gives `target` the weights of `source`."""
    if source.weights:
        target.set_weights(source.get_weights())
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()  # what it computes with is derived from its weights
