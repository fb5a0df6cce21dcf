"""Keras 3 models as tf_keras models: the bridge into a library that works on Keras 2.

Both Keras live in one process: `import keras` is Keras 3, `import tf_keras` is Keras 2, and
`TF_USE_LEGACY_KERAS`, which tfmot sets, only says which of them `tf.keras` is. No environment
variable is needed. Keras 3 may run on any backend: only its configurations, weights and outputs are
read. Nothing here imports Keras 3; only `loading.py` does, for a file that Keras 3 wrote.
"""

from collections.abc import Iterator
import dataclasses
import sys
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

from tf_fpq.conversion import keras3_operations, parity
from tf_fpq.conversion.keras3_layers import Translation, copy_weights, translate
from tf_fpq.conversion.keras3_operations import UnsupportedError
from tf_fpq.conversion.parity import Difference
from tf_fpq.graph import check_finite, functional
from tf_fpq.keras_compat import keras


def is_keras3_model(model: object) -> bool:
    """Whether `model` is a Keras 3 model.

    Keras 3 is not imported for this: what it made, it made after its import.
    """
    module: Any = sys.modules.get("keras")
    return getattr(module, "__version__", "").startswith("3.") and isinstance(model, module.Model)


def from_keras3(model: Any, samples: Any = None) -> keras.Model:
    """Converts a Keras 3 Sequential or Functional model, with its weights, to tf_keras.

    Layers keep their names, sharing and nesting; functions of `keras.ops` become operator layers,
    which `flatten` turns into layers where it can. Initializers are not kept, nor is what `compile`
    set.

    The result is checked: both models compute the samples, and no output may differ by more than
    `1e-5 * max(1, m)`, m being its largest element. If one does, each layer is compared by itself,
    on what the Keras 3 layer reads: a layer that differs by more than that (m is then the largest
    element that it reads or computes) is an error that names it. If none does, every layer is right
    and the network itself carries rounding far; a warning says so, with the numbers.

    Note: Keras 3 overrides `training=` that was given to a layer or nested model in a functional
    model by that of the
      outermost call. The converted model does the same: it forgets what was given.

    Args:
      model: A built Keras 3 Sequential or Functional model.
      samples: Inputs to compare on, as a call of `model` takes them; random ones by default.

    Returns:
      A tf_keras Functional model that shares nothing with `model`.

    Raises:
      TypeError: `model` is no Keras 3 model, or it is or contains subclassed models.
      ValueError: Parts of the model cannot be converted (all are named), or a layer computes
        something else.
    """
    converter, converted = _convert(model)
    samples = parity.random_samples(model, converted) if samples is None else samples
    wrong = [found for found in parity.outputs(model, converted, samples) if not found.ok]
    if wrong:
        _explain(model, converter, samples, wrong)
    return converted


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a conversion is from its source.

    Attributes:
      outputs: Differences of the outputs.
      layers: Differences of each layer by itself, on what the Keras 3 layer reads, in execution
        order.
    """

    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]


def measure(model: Any, samples: Any = None) -> Parity:
    """Converts a Keras 3 model as `from_keras3` does and measures all differences, allowed or not.

    Args:
      model: As for `from_keras3`.
      samples: As for `from_keras3`.

    Raises:
      TypeError, ValueError: As `from_keras3`, but for differences.
    """
    converter, converted = _convert(model)
    samples = parity.random_samples(model, converted) if samples is None else samples
    outputs = parity.outputs(model, converted, samples)
    return Parity(tuple(outputs), tuple(converter.differences(model, samples, model.name)))


def _convert(model: Any) -> tuple["_Converter", keras.Model]:
    if not is_keras3_model(model):
        raise TypeError(
            f"from_keras3 takes a Keras 3 model. Received: model={model!r} of"
            f" {type(model).__module__}."
        )
    _check_readable(model)
    converter = _Converter()
    converter.translate_all(model)
    converted = converter.model(model)
    converter.copy_weights(model.name)
    check_finite(converted, "model")
    return converter, converted


def _explain(model: Any, converter: "_Converter", samples: Any, wrong: list[Difference]) -> None:
    """Raises an error that names the first layer that is wrong, or warns if none is."""
    listed = "; ".join(map(str, wrong))
    layers = [] if _has_masks(model) else list(converter.differences(model, samples, model.name))
    culprit = next((found for found in layers if not found.ok), None)
    if layers and culprit is None:
        logging.warning(
            "Keras 3 model %r: %s. Each of its %d layers, on the same inputs, computes the same:"
            " the network amplifies rounding.",
            model.name,
            listed,
            len(layers),
        )
        return
    raise ValueError(
        f"The converted model {model.name!r} computes something else than the Keras 3 model:"
        f" {listed}. "
        + (f"The first layer that does: {culprit}. " if culprit else "")
        + "A layer of your own must compute the same in both Keras; for any other, please"
        " report it."
    )


def _check_readable(model: Any) -> None:
    found = list(_models(model, model.name))
    own_call = [
        f"{path!r} ({type(inner).__name__})" for path, inner in found if not _has_graph(inner)
    ]
    unbuilt = [path for path, inner in found if _has_graph(inner) and _graph(inner) is None]
    if own_call:
        raise TypeError(
            f"Cannot convert the Keras 3 model {model.name!r}: subclassed models:"
            f" {', '.join(own_call)}. Their graph cannot be read. Two ways out: build a functional"
            " model of it, which for a `call` made of layers and keras.ops is `inputs ="
            " keras.Input(shape); keras.Model(inputs, model.call(inputs))`; or write it in"
            " tf_keras with tf_fpq's layers and quantizers inside its `call`."
        )
    if unbuilt:
        raise ValueError(
            f"Cannot convert the Keras 3 model {model.name!r}: Sequential models without an input"
            f" shape: {unbuilt}. Call `model.build((None, ...))` or add a keras.Input first."
        )


def _has_graph(model: Any) -> bool:
    """Whether calling the Keras 3 `model` runs a graph of layers.

    A subclass may override `call`.
    """
    readable = hasattr(model, "operations") or isinstance(model, sys.modules["keras"].Sequential)
    return readable and type(model).call.__module__.startswith("keras.")


def _graph(model: Any) -> Any:
    """The Keras 3 `Function` that `model` runs; None for a Sequential that is not built."""
    return model._functional if isinstance(model, sys.modules["keras"].Sequential) else model


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a Keras 3 `Function` in execution order, without its inputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _all_values(model: Any, samples: Any) -> dict[int, np.ndarray]:
    """What each symbolic tensor of the Keras 3 `model` is for these samples, by its `id`."""
    graph = _graph(model)
    tensors = [*graph._inputs, *(tensor for node in _nodes(graph) for tensor in node.outputs)]
    observed = sys.modules["keras"].Model(graph._inputs_struct, tensors)
    return {
        id(tensor): value
        for tensor, value in zip(
            tensors, parity.arrays(observed(samples, training=False)), strict=True
        )
    }


def _has_masks(model: Any) -> bool:
    """Whether masks travel beside the tensors of the graph.

    Arrays alone then do not show what a layer reads.
    """
    graphs = [_graph(inner) for _, inner in _models(model, model.name)]
    tensors = (tensor for graph in graphs for node in _nodes(graph) for tensor in node.outputs)
    return any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors)


def _models(model: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (path, model) for `model` and all models among its layers."""
    yield path, model
    for layer in model.layers:
        if is_keras3_model(layer):
            yield from _models(layer, f"{path}/{layer.name}")


class _Converter:
    """What has been made of the parts of one Keras 3 model, by their identity."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._sources: list[tuple[Any, keras.layers.Layer]] = []

    def translate_all(self, model: Any) -> None:
        """Makes all layers; raises one error that names everything that has no counterpart."""
        problems = []
        for path, inner in _models(model, model.name):
            for operation in _graph(inner).operations:
                try:
                    self._translate(operation)
                except UnsupportedError as error:
                    problems.append(
                        f"{path}/{operation.name} ({type(operation).__name__}): {error}"
                    )
        _raise(model.name, problems)

    def model(self, model: Any) -> keras.Model:
        """Calls the made layers as the graph of `model` does."""
        if id(model) not in self._made:
            graph = _graph(model)
            inputs = {id(tensor): _input(tensor) for tensor in graph._inputs}
            values = dict(inputs)
            for node in _nodes(graph):
                outputs = tf.nest.flatten(self._call(node, values))
                values.update(
                    {id(old): new for old, new in zip(node.outputs, outputs, strict=True)}
                )
            structures = graph._inputs_struct, graph._outputs_struct
            inputs, results = (
                tf.nest.map_structure(lambda tensor: values[id(tensor)], structure)
                for structure in structures
            )
            self._made[id(model)] = functional(inputs, results, name=model.name)
        return self._made[id(model)]

    def copy_weights(self, name: str) -> None:
        problems = []
        for source, layer in self._sources:
            try:
                copy_weights(source, layer)
            except UnsupportedError as error:
                problems.append(f"{source.name} ({type(source).__name__}): {error}")
        _raise(name, problems)

    def differences(self, model: Any, samples: Any, path: str) -> Iterator[Difference]:
        """Yields how far each made layer is from the Keras 3 layer.

        It is called on what the Keras 3 layer reads.
        """
        values = _all_values(model, samples)
        tensors = {key: tf.constant(value) for key, value in values.items()}
        for node in _nodes(_graph(model)):
            where, read = f"{path}/{node.operation.name}", node.arguments
            if is_keras3_model(node.operation):
                args, kwargs = read.fill_in(values)
                yield from self.differences(
                    node.operation, args[0] if args else kwargs["inputs"], where
                )
                continue
            found = parity.arrays(self._call(node, tensors))
            expected = [values[id(tensor)] for tensor in node.outputs]
            inputs = [values[id(tensor)] for tensor in read.keras_tensors]
            yield parity.difference(
                f"{where} ({type(node.operation).__name__})", expected, found, inputs
            )

    def _translate(self, operation: Any) -> None:
        if (
            is_keras3_model(operation)
            or type(operation).__name__ == "InputLayer"
            or id(operation) in self._made
        ):
            return
        if not isinstance(operation, sys.modules["keras"].layers.Layer):
            keras3_operations.check(operation)
            return
        made = translate(operation)
        self._made[id(operation)] = made
        self._sources.append((operation, made.layer))

    def _call(self, node: Any, values: dict[int, Any]) -> Any:
        operation = node.operation
        args, kwargs = node.arguments.fill_in(values)
        try:
            if is_keras3_model(operation):
                return self.model(operation)(*args, **_meant(node, kwargs))
            made = self._made.get(id(operation))
            if isinstance(made, Translation):
                return made(*args, **_meant(node, kwargs))
            return keras3_operations.apply(operation, args, kwargs)
        except Exception as error:
            what = f"{operation.name!r} ({type(operation).__name__})"
            raise ValueError(f"Cannot rebuild {what} in tf_keras: {error}") from error


def _meant(node: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that somebody gave.

    Keras 3 also records `training` and the masks that travel with tensors.
    """
    masks = {
        id(getattr(tensor, "_keras_mask", None)) for tensor in node.arguments.keras_tensors
    } | {id(None)}

    def is_automatic(name: str, given: Any) -> bool:
        return name == "training" or (
            name.endswith("mask") and all(id(part) in masks for part in tf.nest.flatten(given))
        )

    return {
        name: value
        for name, value in kwargs.items()
        if not is_automatic(name, node.arguments.kwargs[name])
    }


def _input(tensor: Any) -> Any:
    shape = tuple(tensor.shape)
    return keras.Input(
        shape[1:],
        batch_size=shape[0],
        dtype=tensor.dtype,
        name=tensor._keras_history.operation.name,
    )


def _raise(name: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(
            f"Cannot convert the Keras 3 model {name!r} to tf_keras:\n  " + "\n  ".join(problems)
        )
