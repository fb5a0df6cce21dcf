"""Rounding, quantizing and their gradients: pure functions of tensors, without Keras. The only
place that rounds.

A quantized value is `step_size * (code - zero_point)` with integer codes in `[qmin, qmax]`. Ties
round to even, as XNNPACK does. `step_size` and `zero_point` broadcast against the tensor: shape
`[]` for one grid per tensor, or the tensor's rank with 1 in every axis that shares a step.
"""

import tensorflow as tf

# Smallest step size that is ever divided by. Far below any trained step; it only keeps an untrained
# zero from becoming a NaN.
MIN_STEP_SIZE = 1e-12


def round_ste(x: tf.Tensor) -> tf.Tensor:
    """Rounds half to even; the gradient is the identity (straight-through), and second derivatives
    exist.
    """
    return x + tf.stop_gradient(tf.round(x) - x)


def clip_ste(x: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Clips; the gradient is the identity, so that what left the range can come back."""

    @tf.custom_gradient
    def clipped(value: tf.Tensor):
        return tf.clip_by_value(value, low, high), lambda upstream: upstream

    return clipped(x)


def scale_gradient(x: tf.Tensor, scale: tf.Tensor | float) -> tf.Tensor:
    """Identity whose gradient is multiplied by `scale` (LSQ, arXiv 1902.08153, section 2.2)."""

    @tf.custom_gradient
    def identity(value: tf.Tensor):
        return tf.identity(value), lambda upstream: upstream * scale

    return identity(x)


def quantize(
    x: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor, qmin: int, qmax: int
) -> tf.Tensor:
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
    *,
    slope_inside: bool = True,
    delta: tf.Tensor | None = None,
) -> tf.Tensor:
    """Quantizes and dequantizes with the gradients of LSQ (arXiv 1902.08153, eq. 1-3 and 5; FPQ eq.
    4-5).

    With `v = x / step_size`, `n = qmin - zero_point`, `p = qmax - zero_point`:

        y         = step_size * clip(round(v), n, p)
        dy/dx     = 1 if n < v < p else 0
        dy/dstep  = (round(v) - v if n < v < p else clip(v, n, p)) * gradient_scale

    The gradients are linear in the upstream gradient with constant coefficients, as those of the
    same expression written with `x + stop_gradient(round(x) - x)`, so Hessian-vector products of
    both agree. Two variations:

    - `slope_inside=False` is PACT's clip (arXiv 1805.06085, eq. 3): the step size only moves the
      ends of the range, so `dy/dstep` is 0 inside.
    - `delta` is EWGS (arXiv 2104.00903, eq. 5): inside, the upstream gradient `g` passes the
      rounding as `g * (1 + delta * sign(g) * (v - round(v)) / (qmax - qmin))`, into `dy/dx` and
      into the `-v` of `dy/dstep`.

    Args:
      x: Float tensor. Half precision is computed in float32 and cast back.
      step_size: Positive, shape `[]` or broadcastable with the rank of `x`.
      zero_point: Integer-valued, broadcastable against `x`; has no gradient.
      qmin: Lowest code.
      qmax: Highest code.
      gradient_scale: LSQ's `g = 1 / sqrt(N * qmax)`, multiplied into the gradient of `step_size`.
      slope_inside: Whether the step size has a gradient inside the range.
      delta: EWGS' scaling factor, or None for the straight-through estimator.

    Returns:
      Tensor with the shape and dtype of `x`, on the grid.
    """

    @tf.custom_gradient
    def quantized(x32: tf.Tensor, step: tf.Tensor):
        low, high = float(qmin) - zero_point, float(qmax) - zero_point
        v = tf.clip_by_value(x32 / step, low, high)  # finite, so that its product with a mask is
        levels = tf.round(v)

        def gradient(upstream: tf.Tensor):
            # Masks are multiplied: a third faster than tf.where on a CPU.
            inside = tf.stop_gradient(tf.cast(tf.logical_and(v > low, v < high), tf.float32))
            slope = levels - v * inside if slope_inside else levels * (1.0 - inside)
            dx, dstep = upstream * inside, upstream * tf.stop_gradient(slope)
            if delta is not None:
                extra = delta * tf.abs(dx) * tf.stop_gradient((v - levels) / float(qmax - qmin))
                dx, dstep = dx + extra, dstep - extra * tf.stop_gradient(v)
            return dx, reduce_to(dstep, step) * gradient_scale

        return levels * step, gradient

    dtype = x.dtype
    return tf.cast(quantized(tf.cast(x, tf.float32), step_size), dtype)


def fake_quant_fixed(
    x: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor, qmin: int, qmax: int
) -> tf.Tensor:
    """Quantizes and dequantizes on a grid that has no gradient: `dy/dx` is 1 where rounding does
    not saturate, else 0.

    Unlike `fake_quant`, a value that rounds to the first or last code passes its gradient: the
    largest weight of a grid made for it would never train otherwise. Arguments as `fake_quant`.
    """

    @tf.custom_gradient
    def quantized(x32: tf.Tensor):
        rounded = tf.round(x32 / step_size) + zero_point
        codes = tf.clip_by_value(rounded, float(qmin), float(qmax))
        inside = tf.cast(tf.equal(codes, rounded), tf.float32)
        return (
            codes - zero_point
        ) * step_size, lambda upstream: upstream * tf.stop_gradient(inside)

    return tf.cast(quantized(tf.cast(x, tf.float32)), x.dtype)


def divide_no_zero(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """`x / divisor`, and `x` where `divisor` is 0; neither value nor gradient is ever NaN."""
    return x / tf.where(divisor > 0, divisor, tf.ones_like(divisor))
