"""What `QatModel` asks of a Keras optimizer."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


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
