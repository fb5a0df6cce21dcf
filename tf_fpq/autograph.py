"""AutoGraph, TensorFlow's translator of Python's `if` and `while` on tensors, and this library.

Nothing in the library branches on a tensor in Python, and to parse it took a third of the time
until a training's first step. So the library is called as it is written, which is what TensorFlow
does with Keras. Code of users is translated as ever: Keras sees to it in layers, losses and
metrics, `translated` in what only this library calls.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_PACKAGES = ("tf_fpq", "tflite_export")


def leave_as_written() -> None:
    """Adds the library to the packages that TensorFlow knows as such, which are Keras and others.

    There is no public way to. A TensorFlow that has the list elsewhere goes on translating, which
    is slower and computes the same.
    """
    try:
        from tensorflow.python.autograph.core import config

        ours = tuple(config.DoNotConvert(name) for name in _PACKAGES)
        config.CONVERSION_RULES = (*ours, *config.CONVERSION_RULES)
    except (ImportError, AttributeError):
        return


def translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that may be a user's, as AutoGraph makes it where TensorFlow traces; as Keras does
    with a layer's `call`.
    """
    if tf.executing_eagerly():
        return function
    autograph = tf.__internal__.autograph
    return autograph.tf_convert(function, autograph.control_status_ctx())
