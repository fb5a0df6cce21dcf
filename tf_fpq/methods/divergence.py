"""Distances between two predicted distributions: pure functions of tensors, in float32."""

import tensorflow as tf

# Probabilities below have the logarithm of this one, so that 0 has a finite one: Keras' epsilon, at
# which its own cross entropies clip.
_SMALLEST = 1e-7


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless `temperature` is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive. Received: temperature={temperature}.")


def logits_of(predictions: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """`predictions` as float32 logits; of probabilities their logarithm."""
    predictions = tf.cast(predictions, tf.float32)
    return predictions if from_logits else tf.math.log(tf.maximum(predictions, _SMALLEST))


def kl(
    teacher: tf.Tensor, student: tf.Tensor, temperature: float = 1.0, from_logits: bool = True
) -> tf.Tensor:
    """`KL(softmax(teacher / T) || softmax(student / T))` over the last axis, mean over the others.

    A worked number: two classes at 0.9 and 0.1 against 0.8 and 0.2 are
    `0.9 log(0.9 / 0.8) + 0.1 log(0.1 / 0.2) = 0.037`.
    """
    # Logarithms of a softmax, which stay finite where its probabilities are 0 in float32.
    log_p = tf.nn.log_softmax(logits_of(teacher, from_logits) / temperature)
    log_q = tf.nn.log_softmax(logits_of(student, from_logits) / temperature)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1))


def mse(
    teacher: tf.Tensor, student: tf.Tensor, temperature: float = 1.0, from_logits: bool = True
) -> tf.Tensor:
    """Squared difference of `softmax(. / T)`, summed over the last axis, mean over the others."""
    p = tf.nn.softmax(logits_of(teacher, from_logits) / temperature)
    q = tf.nn.softmax(logits_of(student, from_logits) / temperature)
    return tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(p, q), axis=-1))


DIVERGENCES = {"kl": kl, "mse": mse}
