"""Nested models become one flat functional model with the same outputs, bit for bit.

A quantizer works on the layers of one graph. `flatten` runs a model on new inputs, steps into every
Sequential and Functional model it meets, and calls a copy of each layer; the operators in between
become real layers where an exact one exists (`operator_layers.py`).
"""

from collections import Counter
from collections.abc import Iterator
import re
from typing import Any

import tensorflow as tf

from tf_fpq import graph
from tf_fpq.conversion import operator_layers
from tf_fpq.keras_compat import keras

_WAYS_OUT = (
    "The graph of a subclassed model cannot be read. Two ways out: build a functional model of it,"
    " which for a `call` made of layers and operators is `inputs = keras.Input(shape);"
    " keras.Model(inputs, model.call(inputs))`; or quantize it by hand, with tf_fpq's layers and"
    " quantizers inside its `call`."
)


def flatten(model: keras.Model) -> keras.Model:
    """Copies a model into one flat functional model.

    Nested models are dissolved, to any depth.

    The result is always a new Functional model that shares no variable with `model`: layers are
    made anew from their configuration and their weights are copied. A layer (or nested model) that
    is called several times is one layer called several times. `training=` given to a nested model
    holds for each of its layers, as in Keras.

    Layers of the outermost model keep their names. A layer of a nested model keeps its name too,
    unless Keras made it up (`dense_3`) or another layer has it: then the names of the nested models
    go before it (`encoder_dense_3`).

    Operator layers (`x + y`, `tf.nn.relu(x)`) become Keras layers where an exact counterpart
    exists, see `operator_layers.py`; the rest stay operator layers.

    Note: layers none of whose outputs reach the outputs of `model` are dropped. What `compile` set
    is not copied, nor
      is an overridden `train_step`. Where an output comes from a nested model, `output_names` names
      the layer inside.

    Note: "Bit for bit" is operation by operation, as when a model is called. Inside a
    `tf.function`, so in `predict`,
      TensorFlow's graph optimizer regroups constants in an order that depends on layer names; there
      two equal models can differ by a few units in the last place, as can `model(x)` and
      `model.predict(x)` of one and the same model.

    Args:
      model: A built Sequential or Functional model.

    Returns:
      The flat model: its inputs and outputs have the names, order and structure (lists, dicts) of
        `model`'s.

    Raises:
      TypeError: `model` is no Keras 2 model, or it is or contains subclassed models; all are named.
      ValueError: A Sequential has no input shape yet, a layer cannot be copied, or the model uses
        what has no flat counterpart (`add_loss` with a tensor, a mask given to a nested model by
        hand).
    """
    _check(model)
    return _Flattener(model).result()


def nested_models(model: keras.Model) -> Iterator[tuple[str, keras.Model]]:
    """Yields (path, model) for `model` and every model among its layers, outermost first."""
    yield model.name, model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from ((f"{model.name}/{path}", inner) for path, inner in nested_models(layer))


def _check(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"flatten takes a tf_keras (Keras 2) model. Received: model={model!r} of"
            f" {type(model).__module__}."
        )
    found = list(nested_models(model))
    unbuilt = [
        path
        for path, inner in found
        if isinstance(inner, keras.Sequential) and not graph.is_functional(inner)
    ]
    own_call = [
        f"{path!r} ({type(inner).__name__})"
        for path, inner in found
        if path not in unbuilt and not _is_readable(inner)
    ]
    if own_call:
        raise TypeError(
            f"Cannot flatten {model.name!r}: subclassed models: {', '.join(own_call)}. {_WAYS_OUT}"
        )
    if unbuilt:
        raise ValueError(
            f"Cannot flatten {model.name!r}: Sequential models without an input shape: {unbuilt}."
            " Call `model.build((None, ...))` or add a keras.Input first."
        )
    losses = [
        layer.name
        for _, inner in found
        for layer in inner.layers
        if type(layer).__name__ in ("AddLoss", "AddMetric")
    ]
    if losses:
        raise ValueError(
            f"Cannot flatten {model.name!r}: it carries losses or metrics on its tensors: {losses}."
            " Build it without `add_loss` and `add_metric`, and give them to `compile`."
        )


def _is_readable(model: keras.Model) -> bool:
    """Whether calling `model` runs its graph: a subclass of Functional may override `call`."""
    return graph.is_functional(model) and type(model).call.__module__.startswith("tf_keras.")


class _Flattener:
    """Copies of the layers of one model, and how to call them on new inputs."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._names = _flat_names(model)
        self._taken = set(self._names.values())
        self._copies: dict[Any, keras.layers.Layer] = {}
        self._originals: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def result(self) -> keras.Model:
        inputs = [_copy_input(tensor._keras_history.layer) for tensor in self._model.inputs]
        outputs = self._run(self._model, inputs, (), None)
        structure = self._model._nested_inputs
        flat = graph.functional(
            tf.nest.pack_sequence_as(structure, inputs), outputs, name=self._model.name
        )
        for original, copy in self._originals:
            _copy_weights(original, copy)
        return flat

    def _run(
        self,
        model: keras.Model,
        inputs: list[Any],
        path: tuple[keras.Model, ...],
        training: bool | None,
    ) -> Any:
        """Calls the copies of `model`'s layers.

        `path` are the nested models they are in, `training` is what was given.
        """

        def call(record: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            layer = record.layer
            if isinstance(layer, keras.Model):
                return self._run_nested(layer, args, dict(kwargs), path, training)
            if operator_layers.is_operator(layer):
                return self._run_operator(record, args, kwargs, path)
            copy = self._copy(layer, path)
            if training is not None and kwargs.get("training") is None and _takes_training(layer):
                kwargs = {**kwargs, "training": training}
            return copy(*args, **kwargs)

        return graph.replay(model, inputs, call)

    def _run_nested(
        self,
        model: keras.Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: tuple[keras.Model, ...],
        training: bool | None,
    ) -> Any:
        arguments = dict(zip(("inputs", "training", "mask"), args, strict=False)) | kwargs
        if any(mask is not None for mask in tf.nest.flatten(arguments.get("mask"))):
            raise ValueError(
                f"Cannot flatten {self._model.name!r}: the nested model {model.name!r} is called"
                " with a mask. Let a Masking or Embedding layer make the mask instead."
            )
        own = arguments.get("training")
        tensors = model._flatten_to_reference_inputs(arguments["inputs"])
        path = (*path, model)
        tensors = [
            self._conform(tensor, like, path)
            for tensor, like in zip(tensors, model.inputs, strict=True)
        ]
        return self._run(model, tensors, path, training if own is None else own)

    def _run_operator(
        self,
        record: graph.Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: tuple[keras.Model, ...],
    ) -> Any:
        layer, shape = record.layer, record.outputs[0].shape
        found = operator_layers.substitute(layer, args, kwargs, shape)
        key = id(layer) if found is None else (id(layer), found.layer_class, repr(found.config))
        if key not in self._copies:
            if found is None:
                # `get_config` fails for functions outside TensorFlow's public names; a copy needs
                # the function only.
                self._copies[key] = type(layer)(layer.function, name=self._fresh(layer.name, path))
            else:
                name = self._fresh(
                    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found.layer_class.__name__).lower(),
                    path,
                )
                self._copies[key] = found.layer_class(**found.config, name=name)
        return (
            self._copies[key](*args, **kwargs) if found is None else self._copies[key](found.inputs)
        )

    def _copy(self, layer: keras.layers.Layer, path: tuple[keras.Model, ...]) -> keras.layers.Layer:
        if id(layer) not in self._copies:
            try:
                copy = type(layer).from_config(
                    {**layer.get_config(), "name": self._names[id(layer)]}
                )
            except Exception as error:
                raise ValueError(
                    f"Cannot copy layer {layer.name!r} of class {type(layer).__name__} from its"
                    " configuration. Give the class a `get_config` with all arguments of"
                    " `__init__`, and register the functions and classes it names"
                    f" (`keras.utils.register_keras_serializable`). Keras says: {error}"
                ) from error
            copy.trainable = (
                layer.trainable and self._model.trainable and all(model.trainable for model in path)
            )
            self._copies[id(layer)] = copy
            self._originals.append((layer, copy))
        return self._copies[id(layer)]

    def _conform(self, tensor: Any, like: Any, path: tuple[keras.Model, ...]) -> Any:
        """What a nested model does to its input: cast it, and add or drop a last dimension of 1."""
        shape, wanted = tensor.shape, like.shape
        if shape.rank is not None and wanted.rank is not None:
            if shape.rank == wanted.rank + 1 and shape[-1] == 1:
                tensor = keras.layers.Reshape(shape[1:-1], name=self._fresh("reshape", path))(
                    tensor
                )
            elif shape.rank == wanted.rank - 1 and wanted[-1] == 1:
                tensor = keras.layers.Reshape((*shape[1:], 1), name=self._fresh("reshape", path))(
                    tensor
                )
        return tensor if tensor.dtype == like.dtype else tf.cast(tensor, like.dtype)

    def _fresh(self, name: str, path: tuple[keras.Model, ...]) -> str:
        """A name that is not taken, and takes it."""
        name = _unique("_".join([*_spoken(path), name]), self._taken)
        self._taken.add(name)
        return name


def _copy_input(layer: keras.layers.InputLayer) -> Any:
    return type(layer).from_config(layer.get_config()).output


def _copy_weights(original: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    copy.set_weights(original.get_weights())
    if hasattr(
        copy, "finalize_state"
    ):  # Preprocessing layers keep what they compute from their weights.
        copy.finalize_state()


def _takes_training(layer: keras.layers.Layer) -> bool:
    return bool(layer._expects_training_arg)


def _is_made_up(name: str, class_name: str) -> bool:
    """Whether Keras made up `name`: the class in snake case, with a number."""
    return re.sub(r"_\d+$", "", name).replace("_", "") == class_name.lower()


def _spoken(path: tuple[keras.Model, ...]) -> list[str]:
    """The names of nested models that somebody gave."""
    made_up = ("model", "functional", "sequential")
    return [model.name for model in path if re.sub(r"_\d+$", "", model.name) not in made_up]


def _unique(name: str, taken: set[str]) -> str:
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _flat_names(model: keras.Model) -> dict[int, str]:
    """Names for the layers of the flat model, by the `id` of the original layer.

    Operator layers are left out.
    """
    found = {id(layer): (layer, path) for layer, path in reversed(list(_leaves(model, ())))}
    outer = {id(layer): layer.name for layer, path in found.values() if not path}
    taken = set(outer.values())
    counts = Counter(layer.name for layer, _ in found.values())
    names = dict(outer)
    for layer, path in reversed(found.values()):
        if id(layer) in outer:
            continue
        plain = counts[layer.name] == 1 and not _is_made_up(layer.name, type(layer).__name__)
        names[id(layer)] = _unique(
            layer.name if plain else "_".join([*_spoken(path), layer.name]), taken
        )
        taken.add(names[id(layer)])
    return names


def _leaves(
    model: keras.Model, path: tuple[keras.Model, ...]
) -> Iterator[tuple[keras.layers.Layer, tuple[keras.Model, ...]]]:
    """Yields (layer, nested models around it) for all layers that stay.

    The inputs of the outermost model are among them.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer, (*path, layer))
        elif not operator_layers.is_operator(layer) and not (
            path and isinstance(layer, keras.layers.InputLayer)
        ):
            yield layer, path
