"""Distillation from the float teacher: CSD on convolution outputs (FPQ), and KD on the predictions.

CSD: J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian
Matrix*, arXiv 2503.11159 (2025), eq. 15-17. KD: G. Hinton, O. Vinyals, J. Dean, *Distilling the
Knowledge in a Neural Network*, arXiv 1503.02531.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.methods import divergence
from tf_fpq.methods.base import Method, Step
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.methods.standardization import standardized_distance
from tf_fpq.placement.feature_taps import Tap

# Weights of CSD beside a cross entropy. The paper's total (eq. 22) prints none, which is 1. The
# other is chosen here: at 1, 2-bit students trained worse in trials before commit 2df3cbe, of which
# no rows were kept. experiments/README.md has W4A4 runs with 1.
PAPER_CSD_WEIGHT = 1.0
TUNED_CSD_WEIGHT = 0.1


@register
class ChannelStandardizedDistillation(Method):
    """Adds FPQ's distillation loss on convolution outputs before batch norm (eq. 17).

        L_CSD = weight * sum over convolutions of mean || norm(z_t) - norm(z_s) ||^2

    Note: the paper prints a sum over channels of a sum over elements and no weight. On ResNet-18
    that would be 480 times the cross entropy at a correlation of 0.95. The mean over all elements
    of a layer makes the weight independent of size. Statistics are per channel over batch, height
    and width, under `tf.distribute` over those of a replica.

    A worked number: a ResNet-18 has 20 convolutions, and at a correlation of 0.95 each adds 0.1.
    Their sum 2 counts 0.2 with the weight 0.1.

    Note: `weight` is `TUNED_CSD_WEIGHT`, 0.1, and not the paper's 1 (`PAPER_CSD_WEIGHT`), at which
    2-bit students trained worse here.

    Works without `QatModel` too: `ChannelStandardizedDistillation()([student_features,
    teacher_features])` in a functional model adds the loss to the model and returns
    `student_features`.

        model = tf_fpq.QatModel(student, teacher, [tf_fpq.ChannelStandardizedDistillation()])
    """

    needs_teacher = True
    has_loss = True
    coefficients = ("weight",)

    def __init__(
        self,
        weight: float = TUNED_CSD_WEIGHT,
        epsilon: float = 1e-5,
        name: str = "csd",
        **kwargs: Any,
    ):
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
        check_not_negative("weight", weight)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive. Received: epsilon={epsilon}.")
        self.weight = weight
        self.epsilon = epsilon
        # Above, epsilon changes a standardized value by less than 1 / 2000: 1 / sqrt(1.001).
        self.affine_features_from = 1000.0 * epsilon

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Pairs the convolutions of both by name; raises ValueError where they do not pair."""
        super().attach(student, teacher)
        self.student_features = self.teacher_features = check_pairs(student, teacher)

    def call(self, inputs: Sequence[Any], taps: Sequence[Tap | None] | None = None) -> Any:
        """Adds the loss of `[student_features, teacher_features]` and returns the former.

        Both are tensors, or lists of tensors; `taps` are those of a `Step` then.
        """
        student, teacher = inputs
        ours, theirs = tf.nest.flatten(student), tf.nest.flatten(teacher)
        weight, taps = self.coefficient("weight"), taps or [None] * len(ours)
        distances = [
            standardized_distance(s, t, self.epsilon, weight, tap)
            for s, t, tap in zip(ours, theirs, taps, strict=True)
        ]
        self.add_loss(tf.add_n(distances))
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares all convolutions of the student with the teacher's of the same name."""
        names = self.student_features
        self(
            [
                [step.features[name] for name in names],
                [step.teacher_features[name] for name in names],
            ],
            taps=[step.taps.get(name) for name in names],
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "weight": self.weight, "epsilon": self.epsilon}


@register
class KnowledgeDistillation(Method):
    """Adds Hinton's distillation loss (section 2).

        L_KD = weight * T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )

    It is averaged over the batch, beside the task loss at weight 1. `T^2` keeps the gradient's size
    the same over temperatures. The teacher may have any architecture with the same classes.

    Without `QatModel`, `KnowledgeDistillation()([student_logits, teacher_logits])` adds the loss.

        model = tf_fpq.QatModel(student, teacher, [tf_fpq.KnowledgeDistillation(temperature=2.0)])
    """

    needs_teacher = True
    has_loss = True
    coefficients = ("weight",)

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 4.0,
        from_logits: bool = True,
        name: str = "kd",
        **kwargs: Any,
    ):
        """Creates the method.

        Args:
          weight: Factor of the loss.
          temperature: Softens both distributions; above 1 the teacher's small probabilities count
            more. The default is chosen here; the paper finds 2.5 to 4 best for small students.
          from_logits: Whether the models end in logits (else in a softmax).
          name: Name of the method; the loss is logged as `<name>_loss`.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `weight` is negative or `temperature` is not positive.
        """
        super().__init__(name=name, **kwargs)
        check_not_negative("weight", weight)
        divergence.check_temperature(temperature)
        self.weight = weight
        self.temperature = temperature
        self.from_logits = from_logits

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Checks that both models have outputs of the same shape."""
        super().attach(student, teacher)
        if teacher is not None and student.output_shape != teacher.output_shape:
            raise ValueError(
                "The teacher's output must have the shape of the student's, class for class. "
                f"Received: student {student.output_shape}, teacher {teacher.output_shape}."
            )

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Adds the loss of `[student_predictions, teacher_predictions]` and returns the former."""
        student, teacher = inputs
        distance = divergence.kl(
            tf.stop_gradient(teacher), student, self.temperature, self.from_logits
        )
        self.add_loss(self.coefficient("weight") * self.temperature**2 * distance)
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares the predictions of student and teacher."""
        self([step.predictions, step.teacher_predictions])

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        own = {
            "weight": self.weight,
            "temperature": self.temperature,
            "from_logits": self.from_logits,
        }
        return {**super().get_config(), **own}


def check_pairs(student: keras.Model, teacher: keras.Model) -> tuple[str, ...]:
    """Names of the convolutions of both models, in the student's order.

    Raises:
      ValueError: Unless both have convolutions of the same names and output shapes.
    """
    ours, theirs = _convolution_shapes(student), _convolution_shapes(teacher)
    if set(ours) != set(theirs):
        raise ValueError(
            "The teacher's convolutions do not pair with the student's by layer name, so their"
            f" features cannot be compared. Only in the student: {sorted(set(ours) - set(theirs))}."
            f" Only in the teacher: {sorted(set(theirs) - set(ours))}. Quantize the teacher itself,"
            " or give its layers the student's names."
        )
    if not ours:
        raise ValueError(
            f"student {student.name!r} has no convolutions, so there are no features to distill."
        )
    different = [
        f"{n}: student {ours[n]}, teacher {theirs[n]}" for n in ours if ours[n] != theirs[n]
    ]
    if different:
        raise ValueError(
            f"These convolutions have other output shapes in the teacher: {'; '.join(different)}."
        )
    return tuple(ours)


def _convolution_shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    convolutions = [call for call in graph.calls(model) if roles.is_convolution(call.layer)]
    return {call.name: tuple(call.outputs[0].shape) for call in convolutions}
