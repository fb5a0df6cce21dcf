"""Keras 3 models as tf_keras models: the bridge into a library that works on Keras 2.

Both Keras live in one process: `import keras` is Keras 3, `import tf_keras` is Keras 2, and `TF_USE_LEGACY_KERAS`,
which tfmot sets, only says which of them `tf.keras` is. No environment variable is needed. Keras 3 may run on any
backend: only its configurations, weights and outputs are read. Nothing here imports Keras 3, except `load` for a file
that Keras 3 wrote.
"""

import importlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.conversion import keras3_operations
from tf_fpq.conversion.keras3_layers import Translation, copy_weights, translate
from tf_fpq.conversion.keras3_operations import UnsupportedError
from tf_fpq.keras_compat import keras

TOLERANCE = 1e-5
_SIZES = (32, 96, 224)  # Tried in order for dimensions that a model leaves open.


def is_keras3_model(model: object) -> bool:
    """Whether `model` is a Keras 3 model. Keras 3 is not imported: what it made, it made after its import."""
    module = sys.modules.get("keras")
    return getattr(module, "__version__", "").startswith("3.") and isinstance(model, module.Model)


def from_keras3(model: Any, samples: Any = None) -> keras.Model:
    """Converts a Keras 3 Sequential or Functional model, with its weights, to tf_keras.

    Layers keep their names, sharing and nesting; functions of `keras.ops` become operator layers, which `flatten` turns
    into layers where it can. Initializers are not kept, nor is what `compile` set.

    The result is checked: both models compute the samples, and no output may differ by more than 1e-5 times the
    largest output (or 1, if that is larger). The two run the same float32 sums in orders that may differ, which costs
    about 1e-7 of the largest term per layer, so a wrong argument stands out and a deep model does not.

    Note: Keras 3 overrides `training=` that was given to a layer or nested model in a functional model by that of the
      outermost call. The converted model does the same: it forgets what was given.

    Args:
      model: A built Keras 3 Sequential or Functional model.
      samples: Inputs to compare on, as a call of `model` takes them; random ones by default.

    Returns:
      A tf_keras Functional model that shares nothing with `model`.

    Raises:
      TypeError: `model` is no Keras 3 model, or it is or contains subclassed models.
      ValueError: Parts of the model cannot be converted (all are named), or the outputs differ.
    """
    if not is_keras3_model(model):
        raise TypeError(f"from_keras3 takes a Keras 3 model. Received: model={model!r} of {type(model).__module__}.")
    _check_readable(model)
    converter = _Converter()
    converter.translate_all(model)
    converted = converter.model(model)
    converter.copy_weights(model.name)
    _check_parity(model, converted, samples)
    return converted


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a model file that Keras 2 or Keras 3 wrote, as a tf_keras model.

    Which Keras wrote a `.keras` file stands in its `metadata.json`, for an HDF5 file in its attributes; other formats
    are left to tf_keras. Classes of one's own must be registered, for Keras 3 in both Keras.

    Args:
      path: A file, or a SavedModel folder.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: Keras 3 wrote the file and cannot be imported; the message says what to do.
      ValueError, TypeError: As `from_keras3`.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No model file. Received: path={os.fspath(path)!r}.")
    if not _keras_version(path).startswith("3."):
        return keras.models.load_model(path, compile=False)
    return from_keras3(_import_keras3(path).saving.load_model(path, compile=False))


def _keras_version(path: str | os.PathLike[str]) -> str:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" in archive.namelist():
                return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
    elif os.path.isfile(path):
        import h5py

        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                return str(file.attrs.get("keras_version", ""))
    return ""


def _import_keras3(path: str | os.PathLike[str]) -> Any:
    reason = f"{os.fspath(path)!r} was written by Keras 3"
    try:
        module = importlib.import_module("keras")
    except Exception as error:
        raise ImportError(
            f"{reason}, and `import keras` fails: {error} Install it (`pip install 'keras>=3'`); if the backend is "
            "missing, set the environment variable KERAS_BACKEND=tensorflow before Python starts."
        ) from error
    if not module.__version__.startswith("3."):
        raise ImportError(f"{reason}, but `keras` is version {module.__version__}: `pip install 'keras>=3'`.")
    return module


def _check_readable(model: Any) -> None:
    found = list(_models(model, model.name))
    own_call = [f"{path!r} ({type(inner).__name__})" for path, inner in found if not _has_graph(inner)]
    unbuilt = [path for path, inner in found if _has_graph(inner) and _graph(inner) is None]
    if own_call:
        raise TypeError(
            f"Cannot convert the Keras 3 model {model.name!r}: subclassed models: {', '.join(own_call)}. Their graph "
            "cannot be read. Two ways out: build a functional model of it, which for a `call` made of layers and "
            "keras.ops is `inputs = keras.Input(shape); keras.Model(inputs, model.call(inputs))`; or write it in "
            "tf_keras with tf_fpq's layers and quantizers inside its `call`."
        )
    if unbuilt:
        raise ValueError(
            f"Cannot convert the Keras 3 model {model.name!r}: Sequential models without an input shape: {unbuilt}. "
            "Call `model.build((None, ...))` or add a keras.Input first."
        )


def _has_graph(model: Any) -> bool:
    """Whether calling the Keras 3 `model` runs a graph of layers: a subclass may override `call`."""
    readable = hasattr(model, "operations") or isinstance(model, sys.modules["keras"].Sequential)
    return readable and type(model).call.__module__.startswith("keras.")


def _graph(model: Any) -> Any:
    """The Keras 3 `Function` that `model` runs; None for a Sequential that is not built."""
    return model._functional if isinstance(model, sys.modules["keras"].Sequential) else model


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
                    problems.append(f"{path}/{operation.name} ({type(operation).__name__}): {error}")
        _raise(model.name, problems)

    def model(self, model: Any) -> keras.Model:
        """Calls the made layers as the graph of `model` does."""
        if id(model) not in self._made:
            graph = _graph(model)
            inputs = {id(tensor): _input(tensor) for tensor in graph._inputs}
            values = dict(inputs)
            for depth in sorted(graph._nodes_by_depth, reverse=True):
                for node in graph._nodes_by_depth[depth]:
                    if not node.is_input:
                        outputs = tf.nest.flatten(self._call(node, values))
                        values.update({id(old): new for old, new in zip(node.outputs, outputs, strict=True)})
            structures = graph._inputs_struct, graph._outputs_struct
            mapped = [tf.nest.map_structure(lambda tensor: values[id(tensor)], structure) for structure in structures]
            self._made[id(model)] = keras.Model(*mapped, name=model.name)
        return self._made[id(model)]

    def copy_weights(self, name: str) -> None:
        problems = []
        for source, layer in self._sources:
            try:
                copy_weights(source, layer)
            except UnsupportedError as error:
                problems.append(f"{source.name} ({type(source).__name__}): {error}")
        _raise(name, problems)

    def _translate(self, operation: Any) -> None:
        if is_keras3_model(operation) or type(operation).__name__ == "InputLayer" or id(operation) in self._made:
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
    """The arguments that somebody gave: Keras 3 also records `training` and the masks that travel with tensors."""
    masks = {id(getattr(tensor, "_keras_mask", None)) for tensor in node.arguments.keras_tensors} | {id(None)}

    def is_automatic(name: str, given: Any) -> bool:
        return name == "training" or (
            name.endswith("mask") and all(id(part) in masks for part in tf.nest.flatten(given))
        )

    return {name: value for name, value in kwargs.items() if not is_automatic(name, node.arguments.kwargs[name])}


def _input(tensor: Any) -> Any:
    shape = tuple(tensor.shape)
    return keras.Input(shape[1:], batch_size=shape[0], dtype=tensor.dtype, name=tensor._keras_history.operation.name)


def _raise(name: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"Cannot convert the Keras 3 model {name!r} to tf_keras:\n  " + "\n  ".join(problems))


def _check_parity(model: Any, converted: keras.Model, samples: Any) -> None:
    expected, samples = _reference(model, converted, samples)
    found = tf.nest.flatten(converted(samples, training=False))
    for number, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
        difference = np.max(np.abs(theirs - ours), initial=0.0)
        allowed = TOLERANCE * max(1.0, np.max(np.abs(theirs), initial=0.0))
        if theirs.shape != ours.shape or not difference <= allowed:
            raise ValueError(
                f"The converted model {model.name!r} computes something else than the Keras 3 model: output {number} "
                f"of shape {ours.shape} differs by {difference:.3g}, allowed are {allowed:.3g}. Please report it."
            )


def _reference(model: Any, converted: keras.Model, samples: Any) -> tuple[list[Any], Any]:
    """(flat outputs of the Keras 3 model, samples): by default the first random ones that it can take."""
    sizes: tuple[int, ...] = _SIZES if samples is None else (0,)
    for size in sizes:
        inputs = _random(converted, size) if samples is None else samples
        try:
            outputs = model(inputs, training=False)
        except Exception:
            if size == sizes[-1]:
                raise
            continue
        module = sys.modules["keras"]
        return [module.ops.convert_to_numpy(output) for output in module.tree.flatten(outputs)], inputs
    raise AssertionError("unreachable: the last size returns or raises")


def _random(model: keras.Model, size: int) -> Any:
    generator = np.random.default_rng(0)

    def draw(tensor: Any) -> np.ndarray:
        batch, *rest = tensor.shape.as_list()
        shape = [2 if batch is None else batch, *[size if length is None else length for length in rest]]
        if tensor.dtype.is_floating:
            return generator.uniform(-1.0, 1.0, shape).astype(tensor.dtype.as_numpy_dtype)
        return generator.integers(0, 2, shape).astype(tensor.dtype.as_numpy_dtype)

    return tf.nest.map_structure(draw, model._nested_inputs)
