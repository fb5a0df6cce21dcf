"""Rounding, quantizing and their gradients: pure functions of tensors, without Keras. The only place that rounds.

A quantized value is `step_size * (code - zero_point)` with integer codes in `[qmin, qmax]`. Ties round to even, as
XNNPACK does. `step_size` and `zero_point` broadcast against the tensor: shape `[]` for one grid per tensor, or the
tensor's rank with 1 in every axis that shares a step.
"""

import tensorflow as tf

# Smallest step size that is ever divided by. Far below any trained step; it only keeps an untrained zero from becoming a NaN.
MIN_STEP_SIZE = 1e-12


def round_ste(x: tf.Tensor) -> tf.Tensor:
    """Rounds half to even; the gradient is the identity (straight-through), and second derivatives exist."""
    return x + tf.stop_gradient(tf.round(x) - x)


def scale_gradient(x: tf.Tensor, scale: tf.Tensor | float) -> tf.Tensor:
    """Identity whose gradient is multiplied by `scale` (LSQ, arXiv 1902.08153, section 2.2)."""

    @tf.custom_gradient
    def identity(value: tf.Tensor):
        return tf.identity(value), lambda upstream: upstream * scale

    return identity(x)


def quantize(x: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor, qmin: int, qmax: int) -> tf.Tensor:
    """Codes `clip(round(x / step_size) + zero_point, qmin, qmax)` as a float tensor (FPQ eq. 4)."""
    return tf.clip_by_value(tf.round(x / step_size) + zero_point, float(qmin), float(qmax))


def dequantize(codes: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor) -> tf.Tensor:
    """Values `(codes - zero_point) * step_size` (FPQ eq. 5)."""
    return (codes - zero_point) * step_size


def reduce_to(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `x` over the axes in which `like` (rank 0, or the rank of `x`) has one element."""
    if like.shape.rank == 0:
        return tf.reduce_sum(x)
    axes = [axis for axis, size in enumerate(like.shape) if size == 1]
    return tf.reduce_sum(x, axis=axes, keepdims=True)


def fake_quant(
    x: tf.Tensor,
    step_size: tf.Tensor,
    zero_point: tf.Tensor,
    qmin: int,
    qmax: int,
    gradient_scale: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Quantizes and dequantizes with the gradients of LSQ (arXiv 1902.08153, eq. 1-3 and 5; FPQ eq. 4-5).

    With `v = x / step_size`, `n = qmin - zero_point`, `p = qmax - zero_point`:

        y         = step_size * clip(round(v), n, p)
        dy/dx     = 1 if n < v < p else 0
        dy/dstep  = (round(v) - v if n < v < p else clip(v, n, p)) * gradient_scale

    The gradients are linear in the upstream gradient with constant coefficients, as those of the same expression written
    with `x + stop_gradient(round(x) - x)`, so Hessian-vector products of both agree.

    Args:
      x: Float tensor. Half precision is computed in float32 and cast back.
      step_size: Positive, shape `[]` or broadcastable with the rank of `x`.
      zero_point: Integer-valued, broadcastable against `x`; has no gradient.
      qmin: Lowest code.
      qmax: Highest code.
      gradient_scale: LSQ's `g = 1 / sqrt(N * qmax)`, multiplied into the gradient of `step_size`.

    Returns:
      Tensor with the shape and dtype of `x`, on the grid.
    """

    @tf.custom_gradient
    def quantized(x32: tf.Tensor, step: tf.Tensor):
        low, high = float(qmin) - zero_point, float(qmax) - zero_point
        v = x32 / step
        levels = tf.clip_by_value(tf.round(v), low, high)

        def gradient(upstream: tf.Tensor):
            inside = tf.stop_gradient(tf.logical_and(v > low, v < high))
            slope = tf.stop_gradient(levels - tf.where(inside, v, tf.zeros_like(v)))
            dx = tf.where(inside, upstream, tf.zeros_like(upstream))
            return dx, reduce_to(upstream * slope, step) * gradient_scale

        return levels * step, gradient

    dtype = x.dtype
    return tf.cast(quantized(tf.cast(x, tf.float32), step_size), dtype)
