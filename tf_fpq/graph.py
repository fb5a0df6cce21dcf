"""Replaying a functional model layer by layer: the one place that knows Keras' graph nodes.

Quantizing a model, putting noise on a convolution's input and flattening nested models are all the same act: run the
model's layers in order, on new symbolic tensors, and do something at some of them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer in a functional model (a shared layer has several).

    Attributes:
      layer: The layer that was called.
      index: Which call of the layer this is, from 0 on.
      inputs: Symbolic tensors of the original model that went in, flat.
      outputs: Symbolic tensors of the original model that came out, flat.
      node: Keras' node, opaque outside this module.
    """

    layer: keras.layers.Layer
    index: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    node: Any


def is_functional(model: object) -> bool:
    """Whether `model` is a built Keras 2 Sequential or Functional model, whose graph can be read."""
    return isinstance(model, keras.Model) and bool(getattr(model, "_is_graph_network", False))


def calls(model: keras.Model) -> Iterator[Call]:
    """Yields the calls of `model` in execution order, without its input layers."""
    counts: dict[int, int] = {}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            index = counts.setdefault(id(node.layer), 0)
            counts[id(node.layer)] += 1
            yield Call(node.layer, index, tuple(node.keras_inputs), tuple(tf.nest.flatten(node.outputs)), node)


def replay(
    model: keras.Model,
    inputs: list[Any],
    call: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    """Runs the layers of `model` on `inputs` and returns its outputs, in the structure of `model.output`.

    Args:
      model: A functional model.
      inputs: One (symbolic) tensor per element of `model.inputs`.
      call: `call(call, args, kwargs)` makes the call and returns its outputs; `args` and `kwargs` are those of the original
        call with the original symbolic tensors replaced by what earlier calls returned. `call.layer(*args, **kwargs)` is
        the identity.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for record in calls(model):
        # Keras' nodes pop one value per use out of lists.
        fed = {str(id(tensor)): [values[id(tensor)]] * len(record.inputs) for tensor in record.inputs}
        args, kwargs = record.node.map_arguments(fed)
        outputs = tf.nest.flatten(call(record, args, kwargs))
        values.update({id(tensor): value for tensor, value in zip(record.outputs, outputs, strict=True)})
    flat = [values[id(tensor)] for tensor in model.outputs]
    return tf.nest.pack_sequence_as(model._nested_outputs, flat)


def call_name(call: Call) -> str:
    """The layer's name; later calls of a shared layer are numbered."""
    return f"{call.layer.name}_{call.index}" if call.index else call.layer.name


def producer(tensor: Any) -> keras.layers.Layer:
    """The layer that a symbolic tensor comes out of."""
    return tensor.node.layer


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Gives `target` the weights of `source`."""
    if source.weights:
        target.set_weights(source.get_weights())
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()  # what it computes with is derived from its weights
