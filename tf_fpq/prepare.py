"""What every model goes through before anything else: checked, Keras 2, flat and canonical."""

from tf_fpq import graph
from tf_fpq.canonical import canonical
from tf_fpq.keras_compat import keras


def prepare(model: keras.Model) -> keras.Model:
    """Returns `model` as one flat functional model in canonical layers; itself if it is one.

    The student is made from what this returns, and a teacher's features are taken from it, so that both have the same layers.

    Raises:
      TypeError: If `model` is a Keras 3 model or no Keras model.
      ValueError: If `model` is subclassed, nested or not built.
    """
    check_model(model)
    return canonical(model)


def check_model(model: object) -> None:
    """Raises an error that says the way out if `model` is not a flat, functional Keras 2 model."""
    if not isinstance(model, keras.Model):
        if any(base.__module__.split(".")[0] == "keras" for base in type(model).__mro__):
            raise TypeError(
                "model is a Keras 3 model; tfmot and tf_fpq work on Keras 2. Build it with `import tf_keras as keras`. "
                f"Received: model={model!r}."
            )
        raise TypeError(f"model must be a tf_keras Model. Received: model={model!r}.")
    if not graph.is_functional(model):
        raise ValueError(
            f"model {model.name!r} is subclassed or not built, so its graph cannot be read. Write it with the functional API, "
            f"or call it on a keras.Input and wrap that in keras.Model. Received: {type(model).__name__}."
        )
    nested = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        raise ValueError(
            f"model {model.name!r} contains nested models: {', '.join(nested)}. Call their layers in one functional model."
        )
