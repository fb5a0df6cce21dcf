"""A Keras 3 layer as a tf_keras layer: its class, its arguments and its weights.

Most layers have the same name and arguments in both. The rules: an argument that tf_keras lacks may
be left out where it has Keras 3's default; a class of one's own must be registered under the same
name for tf_keras too; whatever else does not fit is an `UnsupportedError`, never a silent
difference.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
import dataclasses
import inspect
import sys
from typing import Any

import numpy as np

from tf_fpq.conversion.keras3_operations import (
    OTHER_ACTIVATIONS,
    SAME_ACTIVATIONS,
    UnsupportedError,
)
from tf_fpq.keras_compat import keras

_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Layers of which the activation is the last thing they do, so that a layer after them can do it.
_ACTIVATION_LAST = (
    "Activation",
    "Dense",
    "EinsumDense",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Conv1DTranspose",
    "Conv2DTranspose",
    "Conv3DTranspose",
)
# Arguments that choose an implementation, not a result.
_WITHOUT_EFFECT = ("use_cudnn", "flash_attention", "seed")
# Defaults of arguments that do not stand in a signature.
_HIDDEN_DEFAULTS = {"rms_scaling": False}


@dataclasses.dataclass(frozen=True)
class Translation:
    """A tf_keras layer, not built, and a function to apply to its output.

    The function is there if the layer cannot apply its activation itself.
    """

    layer: keras.layers.Layer
    activation: Callable[[Any], Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, then the activation."""
        outputs = self.layer(*args, **kwargs)
        return outputs if self.activation is None else self.activation(outputs)


def translate(layer: Any) -> Translation:
    """Makes the tf_keras layer that computes what the Keras 3 `layer` computes.

    It has weights of its own.

    Raises:
      UnsupportedError: There is none; the message says why.
    """
    source, target = type(layer), _target_class(type(layer))
    config = _config(source, target, layer.get_config())
    activation = None
    if "activation" in config and source.__name__ in _ACTIVATION_LAST:
        config["activation"], activation = _split_activation(config["activation"], layer.name)
    _check_activations(config)
    try:
        return Translation(_make(source, target, config), activation)
    except Exception as error:
        raise UnsupportedError(f"tf_keras does not take its configuration: {error}") from error


def copy_weights(source: Any, target: keras.layers.Layer) -> None:
    """Sets the weights of the built layer `target` to those of the Keras 3 layer `source`.

    Weights are matched by name, those of one name in order, and in order altogether where the names
    differ.

    Raises:
      UnsupportedError: The weights differ in number or shape.
    """
    theirs = [
        (weight.path.split("/")[-1], np.asarray(_to_numpy(weight))) for weight in source.weights
    ]
    ours = [weight.name.split("/")[-1].split(":")[0] for weight in target.weights]
    if Counter(name for name, _ in theirs) == Counter(ours):
        by_name = defaultdict(list)
        for name, value in theirs:
            by_name[name].append(value)
        values = [by_name[name].pop(0) for name in ours]
    else:
        values = [value for _, value in theirs]
    wanted = [tuple(weight.shape) for weight in target.weights]
    if [value.shape for value in values] != wanted:
        raise UnsupportedError(
            f"its weights have shapes {[value.shape for value in values]}, tf_keras' {wanted}"
        )
    target.set_weights(values)
    if hasattr(
        target, "finalize_state"
    ):  # Preprocessing layers keep what they compute from their weights.
        target.finalize_state()


def _to_numpy(variable: Any) -> np.ndarray:
    return sys.modules["keras"].ops.convert_to_numpy(variable)


def _target_class(source: type) -> type:
    """The tf_keras class for a class of Keras 3, or for a user's class.

    A user's class is the one that is registered under the same name.
    """
    if source.__name__ == "Lambda":
        raise UnsupportedError(
            "a Lambda holds Python code of Keras 3: use operators or a registered layer"
        )
    if not source.__module__.startswith("keras."):
        name = sys.modules["keras"].saving.get_registered_name(source)
        found = keras.utils.get_registered_object(name)
        if found is None:
            raise UnsupportedError(
                f"a class of your own, {name!r}: write it for tf_keras too, with the same arguments"
                " and weights, and register both under one name (`register_keras_serializable` of"
                " either Keras)"
            )
        return found
    # The layers that applications bring along live beside their builders.
    rooms = [keras.layers, inspect.getmodule(keras.applications.ConvNeXtTiny)]
    rooms.append(inspect.getmodule(keras.applications.InceptionResNetV2))
    for room in rooms:
        if inspect.isclass(getattr(room, source.__name__, None)):
            return getattr(room, source.__name__)
    raise UnsupportedError("tf_keras has no such layer")


def _config(source: type, target: type, config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `target` out of the Keras 3 configuration of a `source`."""
    accepted, defaults = _accepted(target), _defaults(source)
    own_class = not source.__module__.startswith("keras.")
    translated = {}
    for name, value in config.items():
        name = _RENAMED.get(source.__name__, {}).get(name, name)
        if name == "dtype":
            translated[name] = _dtype(value)
        elif name.endswith("_initializer") and not own_class:
            continue  # The weights are copied.
        elif own_class or (name in accepted and not (name == "seed" and isinstance(value, dict))):
            translated[name] = _nested(name, value)
        elif name not in _WITHOUT_EFFECT and not _is_default(name, value, defaults):
            raise UnsupportedError(f"tf_keras has no argument {name!r}. Received: {name}={value!r}")
    return translated


def _make(source: type, target: type[Any], config: dict[str, Any]) -> keras.layers.Layer:
    return (
        target(**config) if source.__module__.startswith("keras.") else target.from_config(config)
    )


def _accepted(target: type) -> set[str]:
    classes = [base for base in target.__mro__ if "__init__" in vars(base)]
    hidden = {"zero_output_for_mask"} if issubclass(target, keras.layers.RNN) else set()
    return hidden | {
        name for base in classes for name in inspect.signature(vars(base)["__init__"]).parameters
    }


def _defaults(source: type) -> dict[str, Any]:
    classes = [base for base in reversed(source.__mro__) if "__init__" in vars(base)]
    found = {
        name: p.default
        for base in classes
        for name, p in inspect.signature(vars(base)["__init__"]).parameters.items()
    }
    return _HIDDEN_DEFAULTS | found


def _is_default(name: str, value: Any, defaults: dict[str, Any]) -> bool:
    if name == "data_format":
        return value in (None, "channels_last")
    plain = tuple(value) if isinstance(value, list) else value
    return name in defaults and plain == defaults[name]


def _dtype(value: Any) -> str:
    """The name of a dtype policy, which Keras 3 writes as an object."""
    if not isinstance(value, dict):
        return value
    if value["class_name"] != "DTypePolicy":
        raise UnsupportedError(
            f"dtype policy {value['class_name']}: convert the model before it is quantized by Keras"
        )
    return value["config"]["name"]


def _nested(name: str, value: Any) -> Any:
    """Translates layers in arguments like any other.

    Bidirectional, TimeDistributed and RNN have such arguments.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(_nested(name, item) for item in value)
    if not isinstance(value, dict) or "class_name" not in value or name == "activation":
        return value
    if value.get("module") in ("keras", "keras.models", "keras.src.models.functional"):
        raise UnsupportedError(f"a model as an argument. Received: {name}={value['class_name']}")
    if value.get("module") != "keras.layers":
        return value
    source = getattr(sys.modules["keras"].layers, value["class_name"])
    target = _target_class(source)
    config = _config(source, target, value["config"])
    _check_activations(config)
    return _make(source, target, config)


def _split_activation(value: Any, layer_name: str) -> tuple[Any, Callable[[Any], Any] | None]:
    """(activation that the layer can do itself, function for the rest)."""
    if isinstance(value, dict) and value.get("module") == "keras.layers":
        layer = sys.modules["keras"].layers.deserialize(value)
        layer.name = f"{layer_name}_{layer.name}"
        return "linear", translate(layer)
    if isinstance(value, str) and value in OTHER_ACTIVATIONS:
        return "linear", OTHER_ACTIVATIONS[value]
    return value, None


def _check_activations(config: dict[str, Any]) -> None:
    """Writes activations in `config` as tf_keras names them."""
    for name in ("activation", "recurrent_activation"):
        value = config.get(name)
        if isinstance(value, str) and value in SAME_ACTIVATIONS:
            config[name] = SAME_ACTIVATIONS[value]
        elif isinstance(value, dict) and keras.utils.get_registered_object(
            str(value.get("registered_name"))
        ):
            config[name] = keras.utils.get_registered_object(value["registered_name"])
        elif value is not None:
            raise UnsupportedError(
                f"tf_keras has no such activation here. Received: {name}={value!r}"
            )
