"""Weights that came to rest where two codes meet.

A weight that oscillates between two codes ends within a rounding error of their threshold when the
learning rate falls to 0. There the last bit of `weight * (1 / step size)` decides, and TensorFlow
computes it in one way eagerly and in another in a graph, with a reciprocal that is an
approximation. So the student that `predict` runs could have another code than the file.
"""

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizedWeight, quantized_weights

# A share of a weight: 8 units in its last place. The ways to compute a code differ by two or three.
_NEAR = 2.0**-20


def leave(student: keras.Model) -> int:
    """Moves weights that are near a threshold away from it, in place, to the side of their code.

    The code is the one that the deployed model has. It stays, however it is computed.

    A worked number: with a step size of 1, the weight 0.49999997 has the code 0. It becomes
    0.499999, and a weight of 0.5001 stays as it is.

    Args:
      student: A student.

    Returns:
      How many weights moved. Each moved by a share of at most 2^-19.
    """
    return sum(_leave(weight) for layer in student.layers for weight in quantized_weights(layer))


def _leave(found: QuantizedWeight) -> int:
    def codes(values: np.ndarray) -> np.ndarray:
        return found.quantizer.codes(tf.constant(values, tf.float32), found.variables).numpy()

    weight, ours = found.variable.numpy(), found.codes().numpy()
    left = near = codes(weight * (1 - _NEAR)) != codes(weight * (1 + _NEAR))
    if not near.any():
        return 0
    for factor in (1 - 2 * _NEAR, 1 + 2 * _NEAR):
        inside = left & (codes(weight * factor) == ours)
        weight = np.where(inside, weight * factor, weight)
        left = left & ~inside
    found.variable.assign(weight)
    return int(np.count_nonzero(near & ~left))
