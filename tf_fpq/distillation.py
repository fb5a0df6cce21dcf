"""CSD, channel-wise standardization distillation: the student's features follow the float teacher's.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian Matrix*, arXiv 2503.11159
(2025), eq. 15-17.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.method import Method, Step


def standardize(features: tf.Tensor, epsilon: float = 1e-5) -> tf.Tensor:
    """`(z - mean(z)) / sqrt(var(z) + epsilon)` per channel, over batch and space (eq. 15-16), in float32.

    Args:
      features: `[batch, ..., channels]`.
      epsilon: Keeps a constant channel finite (it becomes 0).
    """
    features = tf.cast(features, tf.float32)
    mean, variance = tf.nn.moments(features, axes=list(range(features.shape.rank - 1)), keepdims=True)
    return (features - mean) * tf.math.rsqrt(variance + epsilon)


def standardized_distance(student: tf.Tensor, teacher: tf.Tensor, epsilon: float = 1e-5) -> tf.Tensor:
    """Mean squared difference of the standardized features: 0 for equal features, and for any per-channel affine map of them
    with positive slope; at most 4.
    """
    return tf.reduce_mean(tf.math.squared_difference(standardize(student, epsilon), standardize(teacher, epsilon)))


@register
class ChannelStandardizedDistillation(Method):
    """Adds FPQ's distillation loss on convolution outputs before batch norm (eq. 17):

        L_CSD = weight * sum over convolutions of mean || norm(z_t) - norm(z_s) ||^2

    Note: the paper prints a sum over channels of a sum over elements and no weight; on ResNet-18 that would be 480 times the
    cross entropy at a correlation of 0.95. The mean over all elements of a layer makes the weight independent of size.
    Statistics are per channel over batch, height and width.

    Works without `QatModel` too: `ChannelStandardizedDistillation()([student_features, teacher_features])` in a functional
    model adds the loss to the model and returns `student_features`.
    """

    needs_teacher = True
    needs_features = True
    has_loss = True

    def __init__(self, weight: float = 1.0, epsilon: float = 1e-5, name: str = "csd", **kwargs: Any):
        """Creates the method.

        Args:
          weight: Factor of the loss; the paper's total is CE + L_CSD (eq. 22).
          epsilon: Added to the variances.
          name: Name of the method; the loss is logged as `<name>_loss`.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `weight` is negative or `epsilon` is not positive.
        """
        super().__init__(name=name, **kwargs)
        if weight < 0:
            raise ValueError(f"weight must not be negative. Received: weight={weight}.")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be positive. Received: epsilon={epsilon}.")
        self.weight = weight
        self.epsilon = epsilon

    def call(self, inputs: Sequence[Any]) -> Any:
        """Adds the loss of `[student_features, teacher_features]` (tensors, or lists of them) and returns the former."""
        student, teacher = inputs
        pairs = zip(tf.nest.flatten(student), tf.nest.flatten(teacher), strict=True)
        distances = [standardized_distance(s, tf.stop_gradient(t), self.epsilon) for s, t in pairs]
        self.add_loss(self.weight * tf.add_n(distances))
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares all convolutions of the student with the teacher's of the same name."""
        names = list(step.features)
        self([[step.features[name] for name in names], [step.teacher_features[name] for name in names]])

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "weight": self.weight, "epsilon": self.epsilon}


def convolution_outputs(model: keras.Model) -> dict[str, Any]:
    """Symbolic outputs of the convolutions of `model`, by layer name."""
    return {graph.call_name(c): c.outputs[0] for c in graph.calls(model) if roles.is_convolution(c.layer)}


def check_pairs(student: keras.Model, teacher: keras.Model) -> None:
    """Raises ValueError unless both models have convolutions of the same names and output shapes."""
    ours, theirs = convolution_outputs(student), convolution_outputs(teacher)
    if set(ours) != set(theirs):
        raise ValueError(
            "The teacher's convolutions do not pair with the student's by layer name, so their features cannot be compared. "
            f"Only in the student: {sorted(set(ours) - set(theirs))}. Only in the teacher: {sorted(set(theirs) - set(ours))}. "
            "Quantize the teacher itself, or give its layers the student's names."
        )
    if not ours:
        raise ValueError(f"student {student.name!r} has no convolutions, so there are no features to distill.")
    different = [
        f"{name}: student {tuple(ours[name].shape)}, teacher {tuple(theirs[name].shape)}"
        for name in ours
        if tuple(ours[name].shape) != tuple(theirs[name].shape)
    ]
    if different:
        raise ValueError(f"These convolutions have other output shapes in the teacher: {'; '.join(different)}.")
