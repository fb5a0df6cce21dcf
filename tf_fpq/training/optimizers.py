"""What `QatModel` asks of a Keras optimizer."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.native import lists, tracing


def check(optimizer: Any) -> None:
    """Raises TypeError if `optimizer` is one of Keras 3 or a legacy one."""
    if isinstance(optimizer, str | dict | keras.optimizers.Optimizer):
        return
    raise TypeError(
        "optimizer must be a name or one of tf_keras, such as tf_keras.optimizers.SGD(0.01):"
        " Keras 3's do not know its models, and the legacy ones offer no compute_gradients."
        f" Received: optimizer of type {type(optimizer).__module__}.{type(optimizer).__name__}."
    )


def exempt_from_weight_decay(optimizer: Any, variables: Sequence[tf.Variable]) -> None:
    """Adds `variables` to those that weight decay leaves alone.

    Keras' `exclude_from_weight_decay` replaces what the user excluded, and refuses an optimizer
    that was built; this keeps both.

    Args:
      optimizer: A Keras optimizer, or a loss scaling one around it.
      variables: Variables of the model that it trains.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    exempt = list(getattr(optimizer, "_exclude_from_weight_decay", []))
    keys = [optimizer._var_key(variable) for variable in variables]
    optimizer._exclude_from_weight_decay = [*exempt, *(key for key in keys if key not in exempt)]


def part_of_the_way(
    before: Sequence[tf.Tensor], variables: Sequence[tf.Variable], factor: float
) -> list[tf.Tensor]:
    """`before + factor * (variable - before)` of each variable, which an optimizer has updated."""
    after = [tf.convert_to_tensor(variable) for variable in variables]
    if after and tracing.may_use_native():
        return lists.interpolate(before, after, factor)
    return [old + factor * (new - old) for old, new in zip(before, after, strict=True)]
