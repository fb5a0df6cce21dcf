"""The one place that imports Keras: tf_keras (Keras 2), the Keras that tfmot works on.

`tensorflow_model_optimization` sets `TF_USE_LEGACY_KERAS` on import, and what `tf.keras` means then
depends on who touched it first. The library therefore never says `tf.keras`; every module takes
`keras` from here.
"""

from collections.abc import Iterable, Iterator
import contextlib
from typing import Any, TypeAlias

import tf_keras as keras

register = keras.utils.register_keras_serializable(package="tf_fpq")


# A model of Keras 2 (tf_keras) or Keras 3. Neither brings types, and Keras 3 may be absent.
AnyModel: TypeAlias = Any


def serialize(thing: Any) -> dict[str, Any]:
    """`thing` as its registered name and config, read back by `deserialize` in every file format.

    Keras' own functions write two dialects, and the HDF5 and SavedModel readers do not understand
    the newer one.
    """
    return {
        "class_name": keras.utils.get_registered_name(type(thing)),
        "config": thing.get_config(),
    }


def deserialize(config: dict[str, Any]) -> Any:
    """Makes what `serialize` described.

    Raises:
      ValueError: If the class is neither registered nor in a `custom_object_scope`.
    """
    return deserialize_class(config["class_name"]).from_config(config["config"])


def registered_name(cls: type) -> str:
    """The name that `deserialize_class` finds `cls` under."""
    return keras.utils.get_registered_name(cls)


def deserialize_class(name: str) -> type[Any]:
    """The class registered under `name`.

    Raises:
      ValueError: If no class is, nor is there one in a `custom_object_scope`.
    """
    found = keras.utils.get_registered_object(name)
    if found is None:
        raise ValueError(
            f"Unknown class {name!r}: import the module that registers it, or load within"
            " keras.utils.custom_object_scope."
        )
    return found


def untracked(thing: Any, **attributes: Any) -> None:
    """Sets attributes of a layer or model past Keras' tracking.

    Keras takes every layer, model and variable that is assigned to an attribute for a part: it is
    then trained, regularised and saved with the whole. What belongs to somebody else is set by this
    function. It is read like any other attribute.

    Args:
      thing: The layer or model.
      **attributes: Values by attribute name.
    """
    vars(thing).update(attributes)


@contextlib.contextmanager
def switched(things: Iterable[Any], **attributes: Any) -> Iterator[None]:
    """Within the context the attributes have these values; after it, those from before.

    The one way to put layers and quantizers into a mode (observing, watching) for a while. It goes
    past Keras' tracking, which would take tensors for new weights.

    Args:
      things: Objects that have the attributes already.
      **attributes: Values by attribute name.
    """
    saved = [(thing, {name: vars(thing)[name] for name in attributes}) for thing in things]
    try:
        for thing, _ in saved:
            vars(thing).update(attributes)
        yield
    finally:
        for thing, values in saved:
            vars(thing).update(values)


__all__ = [
    "deserialize",
    "deserialize_class",
    "keras",
    "register",
    "registered_name",
    "serialize",
    "switched",
    "untracked",
]
