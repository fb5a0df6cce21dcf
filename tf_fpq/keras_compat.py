"""The one place that imports Keras: tf_keras (Keras 2), the Keras that tfmot works on.

`tensorflow_model_optimization` sets `TF_USE_LEGACY_KERAS` on import, and what `tf.keras` means then depends on who
touched it first. The library therefore never says `tf.keras`; every module takes `keras` from here.
"""

from typing import Any

import tf_keras as keras

register = keras.utils.register_keras_serializable(package="tf_fpq")


def serialize(thing: Any) -> dict[str, Any]:
    """`thing` as its registered name and config, read back by `deserialize` in every file format.

    Keras' own functions write two dialects, and the HDF5 and SavedModel readers do not understand the newer one.
    """
    return {"class_name": keras.utils.get_registered_name(type(thing)), "config": thing.get_config()}


def deserialize(config: dict[str, Any]) -> Any:
    """Makes what `serialize` described.

    Raises:
      ValueError: If the class is neither registered nor in a `custom_object_scope`.
    """
    found = keras.utils.get_registered_object(config["class_name"])
    if found is None:
        raise ValueError(
            f"Unknown class {config['class_name']!r}: import the module that registers it, or load within "
            "keras.utils.custom_object_scope."
        )
    return found.from_config(config["config"])


__all__ = ["deserialize", "keras", "register", "serialize"]
