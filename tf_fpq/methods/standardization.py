"""Features standardized per channel, and their distance: what CSD computes for a convolution.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian
Matrix*, arXiv 2503.11159 (2025), eq. 15-17.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_fpq.native import library, tracing
from tf_fpq.placement.feature_taps import Tap


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
    if not tf.is_symbolic_tensor(features) or not tracing.on_cpu_kernels():
        return None
    for reader in features.consumers():
        if tracing.is_training_batch_norm(reader):
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
    student: tf.Tensor,
    teacher: tf.Tensor,
    epsilon: float = 1e-5,
    weight: tf.Tensor | float = 1.0,
    tap: Tap | None = None,
) -> tf.Tensor:
    """`weight` times the mean squared difference of the standardized features.

    It is 0 for equal features, and for any per-channel affine map of them with positive slope. It
    is `2 - 2 r` for a correlation of `r`: 0.1 at 0.95, 2 for unrelated features, and at most 4.

    With `r` the correlation of a channel, `v` its variance and `n` the elements of the features,
    the squares are multiplied out:

        distance     = mean over channels of v_s / (v_s + eps) + v_t / (v_t + eps) - 2 r
        d / d z_s    = 2 / n * (r * norm(z_s) - norm(z_t)) / sqrt(v_s + eps)

    The gradient of batch normalization, given `norm(z_t)` as its upstream gradient, has both `r`
    and the second line as its outputs, in one kernel. Given a tap, operations of our own take one
    pass each for the two lines (`tf_fpq.native`), and the second is added to the gradient that the
    rest of the network has for the features.

    Note: the gradient of the first term is left out, a share of `eps / (v_s + eps)` of the whole.
    It would only shrink channels that hardly vary. There is no gradient to the teacher. A second
    derivative is that of the whole formula.

    Args:
      student: `[batch, ..., channels]`.
      teacher: The same shape.
      epsilon: Added to the variances.
      weight: Factor of the distance; here, so that it costs no pass over the gradient.
      tap: That of the student's features, if they have one.
    """
    if tap is not None:
        return _tapped_distance(student, tf.cast(teacher, tf.float32), epsilon, weight, tap)
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


def _tapped_distance(
    student: tf.Tensor, teacher: tf.Tensor, epsilon: float, weight: tf.Tensor | float, tap: Tap
) -> tf.Tensor:
    """`standardized_distance` by operations of our own."""
    operations = library.operations()
    student, teacher = tf.stop_gradient(student), tf.stop_gradient(teacher)
    pair = {"student": student, "teacher": teacher}
    value, coefficients = operations.tf_fpq_standardized_distance(**pair, epsilon=epsilon)

    def add(upstream: tf.Tensor, of_loss: tf.Tensor) -> tf.Tensor:
        return operations.tf_fpq_add_distance_gradient(
            added=upstream, of_loss=of_loss * weight, coefficients=coefficients, **pair
        )

    return tap.loss(weight * value, add)


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
