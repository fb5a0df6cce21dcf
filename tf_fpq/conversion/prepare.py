"""What every model goes through before anything else: Keras 2, flat and canonical.

    Keras 3 model -> tf_keras (`keras3.py`) -> nested models and operators dissolved (`flatten.py`)
      -> one integer operator a layer (`canonical.py`)

The student is made from what `prepare` returns, and a teacher's features are taken from it, so both
have the same layers under the same names.
"""

from tf_fpq import graph
from tf_fpq.conversion import flatten, keras3, operator_layers
from tf_fpq.conversion.canonical import canonical
from tf_fpq.keras_compat import AnyModel, keras


def prepare(model: AnyModel) -> keras.Model:
    """Returns `model` as one flat functional model in canonical layers.

    Args:
      model: A built Sequential or Functional model of Keras 2 (tf_keras) or Keras 3, nested to any
        depth.

    Returns:
      `model` itself if it is Keras 2, flat and canonical; else a new model with the same weights
      and, up to float rounding, the same outputs that shares no variable with `model`. The same
      model gives the same layer names every time.

    Raises:
      TypeError: If `model` is no Keras model, or is or contains a subclassed model, whose graph
        cannot be read.
      ValueError: If `model` is not built, or parts of it cannot be copied; all are named.
    """
    return canonical(flat(model))


def flat(model: AnyModel) -> keras.Model:
    """Returns `model` as one flat functional Keras 2 model, in its own layers.

    Otherwise it is as `prepare`.
    """
    if keras3.is_keras3_model(model):
        model = keras3.from_keras3(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a Keras model (tf_keras or Keras 3). Received: model={model!r}."
        )
    if graph.is_functional(model) and not any(_is_dissolved(layer) for layer in model.layers):
        return model
    return flatten.flatten(model)


def _is_dissolved(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Model) or operator_layers.is_operator(layer)
