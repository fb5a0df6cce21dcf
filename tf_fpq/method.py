"""What a training method is: something that adds noise to the student, losses to its step, or both."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import tensorflow as tf

from tf_fpq.keras_compat import keras


@dataclasses.dataclass(frozen=True)
class Step:
    """What methods can see of one training step.

    Attributes:
      predictions: The student's outputs.
      features: The student's convolution outputs, by layer name; empty unless a method `needs_features`.
      teacher_predictions: The teacher's outputs; None unless a method needs the teacher.
      teacher_features: The teacher's convolution outputs, by layer name.
    """

    predictions: Any
    features: Mapping[str, tf.Tensor]
    teacher_predictions: Any
    teacher_features: Mapping[str, tf.Tensor]


class Method(keras.layers.Layer):
    """Base class. A method contributes to the loss by `add_loss` in its `call`, and is logged under its own name.

    Attributes:
      needs_teacher: The method compares with a float teacher's predictions.
      needs_features: The method compares convolution outputs with the teacher's (so needs the teacher as well).
      has_loss: The method adds a loss, which is logged as `<name>_loss`.
    """

    needs_teacher = False
    needs_features = False
    has_loss = False

    def add_step_losses(self, step: Step) -> None:
        """Calls the layer on what it compares. Called once in every training step, under the gradient tape."""
        return
