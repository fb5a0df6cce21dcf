"""Distillation from the float teacher: CSD on convolution outputs (FPQ), and KD on the predictions.

CSD: J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian
Matrix*, arXiv 2503.11159 (2025), eq. 15-17. KD: G. Hinton, O. Vinyals, J. Dean, *Distilling the
Knowledge in a Neural Network*, arXiv 1503.02531.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.methods import divergence
from tf_fpq.methods.base import Method, Step
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.quantizers import grid_kernels

# Weights of CSD beside a cross entropy. The paper's total (eq. 22) prints none, which is 1. The
# other is chosen here: at 1, 2-bit students trained worse in trials before commit 2df3cbe, of which
# no rows were kept. experiments/README.md has W4A4 runs with 1.
PAPER_CSD_WEIGHT = 1.0
TUNED_CSD_WEIGHT = 0.1


def standardize(features: tf.Tensor, epsilon: float = 1e-5) -> tf.Tensor:
    """`(z - mean(z)) / sqrt(var(z) + epsilon)` per channel, in float32 (eq. 15-16).

    Mean and variance are over batch and space. The fused batch normalization kernel computes this
    formula with scale 1 and offset 0.

    Args:
      features: `[batch, ..., channels]`.
      epsilon: Keeps a constant channel finite (it becomes 0).
    """
    return tf.reshape(_normalized(_rank_four(features), epsilon).y, tf.shape(features))


def _rank_four(features: tf.Tensor) -> tf.Tensor:
    """Features `[batch, ..., channels]` in float32 as `[batch, places, 1, channels]`.

    oneDNN's kernel takes 3.3 ms for `[128, 1024, 1, 16]` on one thread, and 6.5 for
    `[131072, 1, 1, 16]`.
    """
    shape = [tf.shape(features)[0], -1, 1, features.shape[-1]]
    return tf.reshape(tf.cast(features, tf.float32), shape)


class _Statistics(NamedTuple):
    """What the fused batch normalization kernel finds out about its input.

    Attributes:
      variance: Variance of each channel, over all its elements.
      reserved: Its last three outputs, for its gradient.
    """

    variance: tf.Tensor
    reserved: Sequence[tf.Tensor]


def _statistics_of_reader(features: tf.Tensor) -> _Statistics | None:
    """Those of the batch norm that reads `features` in training, if there is one.

    Only a graph knows the readers of a tensor. A GPU's kernel does not reserve the variance.
    """
    if not tf.is_symbolic_tensor(features) or not grid_kernels.on_cpu_kernels():
        return None
    for reader in features.consumers():
        if reader.type == "FusedBatchNormV3" and reader.get_attr("is_training"):
            if reader.get_attr("data_format") == b"NHWC":
                reserved = [tf.stop_gradient(output) for output in reader.outputs[3:]]
                return _Statistics(reserved[1], reserved)
    return None


def _normalized(features: tf.Tensor, epsilon: float) -> Any:
    """What the fused batch normalization kernel returns for scale 1 and offset 0."""
    channels, none = features.shape[-1:], tf.constant([], tf.float32)
    return tf.raw_ops.FusedBatchNormV3(
        x=features,
        scale=tf.ones(channels),
        offset=tf.zeros(channels),
        mean=none,
        variance=none,
        epsilon=epsilon,
        is_training=True,
    )


def _elements(features: tf.Tensor) -> tf.Tensor:
    """Elements of a channel."""
    return tf.cast(tf.size(features) / features.shape[-1], tf.float32)


def _statistics(normalized: Any, features: tf.Tensor) -> _Statistics:
    """Those in what `_normalized(features)` returned."""
    # The kernel returns the unbiased variance.
    variance = normalized.batch_variance * (1.0 - 1.0 / _elements(features))
    return _Statistics(variance, normalized[3:])


def _standardized(features: tf.Tensor, epsilon: float) -> tf.Tensor:
    """`standardize` of features of rank 4 in operations that can be differentiated twice."""
    mean, variance = tf.nn.moments(features, axes=[0, 1, 2], keepdims=True)
    return (features - mean) * tf.math.rsqrt(variance + epsilon)


def standardized_distance(
    student: tf.Tensor, teacher: tf.Tensor, epsilon: float = 1e-5, weight: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """`weight` times the mean squared difference of the standardized features.

    It is 0 for equal features, and for any per-channel affine map of them with positive slope. It
    is `2 - 2 r` for a correlation of `r`: 0.1 at 0.95, 2 for unrelated features, and at most 4.

    With `r` the correlation of a channel, `v` its variance and `n` the elements of the features,
    the squares are multiplied out:

        distance     = mean over channels of v_s / (v_s + eps) + v_t / (v_t + eps) - 2 r
        d / d z_s    = 2 / n * (r * norm(z_s) - norm(z_t)) / sqrt(v_s + eps)

    The gradient of batch normalization, given `norm(z_t)` as its upstream gradient, has both `r`
    and the second line as its outputs, in one kernel.

    Note: the gradient of the first term is left out, a share of `eps / (v_s + eps)` of the whole.
    It would only shrink channels that hardly vary. There is no gradient to the teacher. A second
    derivative is that of the whole formula.

    Args:
      student: `[batch, ..., channels]`.
      teacher: The same shape.
      epsilon: Added to the variances.
      weight: Factor of the distance; here, so that it costs no pass over the gradient.
    """
    of_reader = _statistics_of_reader(student)
    student, teacher = _rank_four(student), _rank_four(tf.stop_gradient(teacher))
    weight = tf.stop_gradient(tf.convert_to_tensor(weight, tf.float32))

    def formula(features: tf.Tensor) -> tf.Tensor:
        difference = _standardized(features, epsilon) - _standardized(teacher, epsilon)
        return weight * tf.reduce_mean(tf.square(difference))

    @tf.custom_gradient
    def distance(features: tf.Tensor):
        constant = tf.stop_gradient(features)
        ours = of_reader or _statistics(_normalized(constant, epsilon), constant)
        value, slope = _distance_and_gradient(constant, ours, teacher, epsilon, weight)
        return value, lambda upstream: _scaled(features, upstream, slope, formula)

    return distance(student)


def _distance_and_gradient(
    student: tf.Tensor, ours: _Statistics, teacher: tf.Tensor, epsilon: float, weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The distance of features of rank four, and its gradient by the student's."""
    normalized = _normalized(teacher, epsilon)
    theirs = _statistics(normalized, teacher)
    elements = _elements(student)
    # The factor goes in as the batch norm's scale, which its gradient multiplies by in passing.
    factor = -2.0 * weight / (elements * student.shape[-1])
    gradient = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=normalized.y,
        x=student,
        scale=tf.fill(student.shape[-1:], factor),
        reserve_space_1=ours.reserved[0],
        reserve_space_2=ours.reserved[1],
        reserve_space_3=ours.reserved[2],
        epsilon=epsilon,
        is_training=True,
    )
    correlation = gradient.scale_backprop / elements
    shares = [x.variance / (x.variance + epsilon) for x in (ours, theirs)]
    terms = shares[0] + shares[1] - 2.0 * correlation
    # Multiplied out, the distance of equal features may round to a little below 0.
    return weight * tf.maximum(tf.reduce_mean(terms), 0.0), gradient.x_backprop


def _scaled(
    features: tf.Tensor,
    upstream: tf.Tensor,
    slope: tf.Tensor,
    formula: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """`upstream * slope`, the gradient of `formula` at `features`, which can be differentiated."""

    @tf.custom_gradient
    def scaled(features: tf.Tensor, upstream: tf.Tensor):
        def second(direction: tf.Tensor):
            with tf.GradientTape() as outer:
                outer.watch([features, upstream])
                with tf.GradientTape() as inner:
                    inner.watch(features)
                    value = formula(features)
                gradient = upstream * inner.gradient(value, features)
            return outer.gradient(gradient, [features, upstream], direction)

        return tf.stop_gradient(upstream) * slope, second

    return scaled(features, upstream)


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

    def call(self, inputs: Sequence[Any]) -> Any:
        """Adds the loss of `[student_features, teacher_features]` and returns the former.

        Both are tensors, or lists of tensors.
        """
        student, teacher = inputs
        pairs = zip(tf.nest.flatten(student), tf.nest.flatten(teacher), strict=True)
        weight = self.coefficient("weight")
        self.add_loss(
            tf.add_n([standardized_distance(s, t, self.epsilon, weight) for s, t in pairs])
        )
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares all convolutions of the student with the teacher's of the same name."""
        names = self.student_features
        self(
            [
                [step.features[name] for name in names],
                [step.teacher_features[name] for name in names],
            ]
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
