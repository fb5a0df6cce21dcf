"""How many steps a training has, for methods that ramp over a share of it."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.methods.base import Method


class TotalSteps(keras.callbacks.Callback):
    """Tells methods that ramp over a share of the training how long it is."""

    def __init__(self, methods: Sequence[Method]):
        super().__init__()
        self._methods = methods

    def on_train_begin(self, logs: Any = None) -> None:
        """Tells them."""
        steps, epochs = self.params.get("steps"), self.params["epochs"]
        for method in self._methods:
            method.set_total_steps(None if steps is None else steps * epochs)


def with_total_steps(callbacks: Any, methods: Sequence[Method]) -> Any:
    """`callbacks` of `fit` with one more."""
    own = TotalSteps(methods)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(own)
        return callbacks
    return [own, *tf.nest.flatten(callbacks or [])]
