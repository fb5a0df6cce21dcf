"""Rounding, quantizing and their gradients: pure functions of tensors, without Keras.

Quantizers round here and in `grid_kernels`, and nowhere else; operations in C++ do as these do
(`tf_fpq.native`).

A quantized value is `step_size * (code - zero_point)` with integer codes in `[qmin, qmax]`. Ties
round to even, as XNNPACK does. A worked number: on the step 0.5 with zero point 2 the value 0.7 is
1.4 steps, which round to 1. Its code is 3, and the quantized value is `0.5 * (3 - 2) = 0.5`.

`step_size` and `zero_point` broadcast against the tensor: shape
`[]` for one grid per tensor, or the tensor's rank with 1 in every axis that shares a step.
"""

import functools
import math

import tensorflow as tf

from tf_fpq.native import grids
from tf_fpq.native.linear_map import linear_map
from tf_fpq.quantizers import grid_kernels

# Smallest step size that is ever divided by. Far below any trained step; it only keeps an untrained
# zero from becoming a NaN.
MIN_STEP_SIZE = 1e-12

# How far inside its cell `into_cell` puts a value, in steps. `x * (1 / step)` rounds twice, by up
# to 2^-24 each, so at 255 steps it is off by up to 2^-15 steps. This is four times as much, and far
# below what a gradient sees.
CELL_MARGIN = 2.0**-13


def round_ste(x: tf.Tensor) -> tf.Tensor:
    """Rounds half to even, with the identity as gradient (straight-through).

    Second derivatives exist.
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
    """Codes of `x` on a grid, as a float tensor (FPQ eq. 4).

    They are `clip(round(x * (1 / step_size)) + zero_point, qmin, qmax)`.

    Note: the product with the reciprocal, and not the quotient, is the definition. XNNPACK's own
    quantization computes it, and so do the student, the integer twin and the interpreter's inputs.
    The two differ where the quotient lies within a rounding error of a tie, in no code of millions
    of random values.
    """
    levels = tf.round(x * (1.0 / step_size))
    return tf.clip_by_value(levels + zero_point, float(qmin), float(qmax))


def dequantize(codes: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor) -> tf.Tensor:
    """Values `(codes - zero_point) * step_size` (FPQ eq. 5)."""
    return (codes - zero_point) * step_size


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
    """Quantizes and dequantizes with the gradients of LSQ.

    The equations are 1-3 and 5 of arXiv 1902.08153, and 4-5 of FPQ.
    With `s = positive_step(step_size)`, `v = x / s`, `n = qmin - zero_point <= 0` and
    `p = qmax - zero_point >= 0`:

        y      = s * clip(round(v), n, p)
        dy/dx  = 1 if n < v < p else 0
        dy/ds  = (round(v) - v if n < v < p else clip(v, n, p)) * gradient_scale

    It is computed without `v`. Inside, `dy/ds` is `(y - x) / s`, and outside `y / s`, so that only
    `x` and `y` are kept for the gradient. `n < v < p` is computed as `n * s < x < p * s`.
    `grid_kernels` has the operations, as formula and fused.

    The gradients are linear in the upstream gradient with constant coefficients, as those of the
    same expression written with `x + stop_gradient(round(x) - x)`, so Hessian-vector products of
    both agree. Two variations:

    - `slope_inside=False` is PACT's clip (arXiv 1805.06085, eq. 3): the step size only moves the
      ends of the range, so `dy/ds` is 0 inside.
    - `delta` is EWGS (arXiv 2104.00903, eq. 5): inside, the upstream gradient `g` passes the
      rounding as `g * (1 + delta * sign(g) * (v - round(v)) / (qmax - qmin))`, into `dy/dx` and
      into the `-v` of `dy/ds`.

    Args:
      x: Float tensor. Half precision is computed in float32 and cast back.
      step_size: A quantizer's variable or a tensor, shape `[]` or broadcastable with the rank of
        `x`. The grid has its magnitude, see `positive_step`.
      zero_point: Integer-valued, from `qmin` to `qmax`, broadcastable against `x`; has no gradient.
      qmin: Lowest code.
      qmax: Highest code.
      gradient_scale: LSQ's `g = 1 / sqrt(N * qmax)`, multiplied into the gradient of `step_size`.
      slope_inside: Whether the step size has a gradient inside the range.
      delta: EWGS' scaling factor, or None for the straight-through estimator.

    Returns:
      Tensor with the shape and dtype of `x`, on the grid.
    """
    x32, step_size = _float32(x), tf.convert_to_tensor(step_size)
    if delta is None and grid_kernels.uses_native(x32, step_size):
        grid = grids.Grid(qmin, qmax, MIN_STEP_SIZE, gradient_scale, slope_inside)
        transposed = functools.partial(_transposed, zero_point, qmin, qmax, slope_inside)
        return tf.cast(grids.fake_quant(x32, step_size, zero_point, grid, transposed), x.dtype)
    kernels = grid_kernels.kernels_for(x, step_size)

    @tf.custom_gradient
    def quantized(x32: tf.Tensor, step: tf.Tensor):
        # Forward mode differentiates every operation that it sees, also in here.
        x32, step = tf.stop_gradient(x32), tf.stop_gradient(step)
        low, high = _ends(step, zero_point, qmin, qmax)
        y = kernels.on_grid(x32, step, low, high)

        def slope() -> tf.Tensor:
            """`step * dy/dstep`: `y` less what moves along with it inside."""
            return y - kernels.inside(x32 if slope_inside else y, x32, low, high)

        def slope_sum(upstream: tf.Tensor) -> tf.Tensor:
            if slope_inside:
                return kernels.slope_sum(upstream, x32, y, step, low, high)
            return kernels.product_sum(upstream, slope(), step)

        def forwards(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return kernels.inside(upstream, x32, low, high), slope_sum(upstream) / step

        def backwards(to_x: tf.Tensor, to_step: tf.Tensor) -> tf.Tensor:
            return kernels.inside(to_x, x32, low, high) + slope() * (to_step / step)

        def gradient(upstream: tf.Tensor):
            dx, dstep = linear_map(forwards, backwards)(upstream)
            if delta is not None:
                # EWGS: g * delta * sign(g) * (v - round(v)) / (qmax - qmin), and sign(g) * g = |g|.
                with tf.control_dependencies([upstream]):
                    scaling = tf.stop_gradient(slope() * (-delta / step / (qmax - qmin)))
                    moved = tf.stop_gradient(kernels.inside(x32, x32, low, high))
                extra = tf.abs(dx) * scaling
                dx, dstep = dx + extra, dstep - kernels.product_sum(extra, moved, step) / step
            return dx, dstep * gradient_scale

        return y, gradient

    return tf.cast(quantized(x32, positive_step(step_size)), x.dtype)


def _ends(
    step: tf.Tensor, zero_point: tf.Tensor, qmin: int, qmax: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Values of the first and of the last code."""
    return (float(qmin) - zero_point) * step, (float(qmax) - zero_point) * step


def _transposed(
    zero_point: tf.Tensor,
    qmin: int,
    qmax: int,
    slope_inside: bool,
    x: tf.Tensor,
    step_size: tf.Tensor,
    to_x: tf.Tensor,
    to_step: tf.Tensor,
) -> tf.Tensor:
    """`dy/dx * to_x + dy/dstep_size * to_step` by the plain formula."""
    kernels, step = grid_kernels.PLAIN, positive_step(step_size)
    low, high = _ends(step, zero_point, qmin, qmax)
    y = kernels.on_grid(x, step, low, high)
    slope = y - kernels.inside(x if slope_inside else y, x, low, high)
    moves = tf.sign(step_size) * tf.cast(tf.abs(step_size) >= MIN_STEP_SIZE, step.dtype)
    return kernels.inside(to_x, x, low, high) + slope * (to_step * moves / step)


def positive_step(step_size: tf.Tensor) -> tf.Tensor:
    """The magnitude of a step size, at least `MIN_STEP_SIZE`.

    Note: LSQ leaves the sign of a step size to luck, and a large learning rate drives it below
    zero, where the quantizer is meaningless. The magnitude is that of a step which overshot zero
    and was reflected: it stays a step.
    """
    return tf.maximum(tf.abs(step_size), MIN_STEP_SIZE)


def _float32(x: tf.Tensor) -> tf.Tensor:
    """`x` as a float32 tensor; of a variable its value, which a gradient may keep."""
    return tf.cast(tf.convert_to_tensor(x), tf.float32)


def fake_quant_fixed(
    x: tf.Tensor, step_size: tf.Tensor, zero_point: tf.Tensor, qmin: int, qmax: int
) -> tf.Tensor:
    """Quantizes and dequantizes on a grid that has no gradient.

    `dy/dx` is 1 where `x` is less than half a step outside of the range, so that rounding does not
    saturate. Elsewhere it is 0.

    Unlike `fake_quant`, a value that rounds to the first or last code passes its gradient. The
    largest weight of a grid that is made for it would never train otherwise. Arguments are those of
    `fake_quant`.
    """
    kernels = grid_kernels.kernels_for(x, step_size)
    low, high = _ends(step_size, zero_point, qmin, qmax)

    @tf.custom_gradient
    def quantized(x32: tf.Tensor):
        x32 = tf.stop_gradient(x32)

        @tf.custom_gradient
        def passed(upstream: tf.Tensor):
            margin = 0.5 * step_size  # what still rounds to the first or last code
            with tf.control_dependencies([upstream]):
                upstream = tf.stop_gradient(upstream)
                return kernels.inside(upstream, x32, low - margin, high + margin), passed

        return kernels.on_grid(x32, step_size, low, high), passed

    return tf.cast(quantized(_float32(x)), x.dtype)


def straight_through(x: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`value`, with the gradient of `x`."""

    @tf.custom_gradient
    def replaced(original: tf.Tensor):
        del original
        return tf.identity(value), lambda upstream: upstream

    return replaced(x)


def into_cell(
    x: tf.Tensor, step_size: tf.Tensor, levels: tf.Tensor, lowest: tf.Tensor, highest: tf.Tensor
) -> tf.Tensor:
    """`x`, moved where it must be so that `x / step_size` rounds to `levels`, whoever rounds it.

    A value outside the cell of its level goes `CELL_MARGIN` steps inside the nearer end. Values
    beyond the range stay there: the cells of `lowest` and `highest` are open outwards. A worked
    number: 2.5 steps round to 2, half to even; at level 3 they become `2.5 + 2^-13` steps. No
    gradient is meant to pass: see `straight_through`.

    Args:
      x: Float32 tensor.
      step_size: Positive.
      levels: Integer-valued, `code - zero_point`.
      lowest: Level of the grid's first code.
      highest: Level of the grid's last code.
    """
    reach = 0.5 - CELL_MARGIN
    low = tf.where(levels > lowest, (levels - reach) * step_size, -math.inf)
    high = tf.where(levels < highest, (levels + reach) * step_size, math.inf)
    return tf.clip_by_value(x, low, high)


def divide_no_zero(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """`x / divisor`, and `x` where `divisor` is 0; neither value nor gradient is ever NaN."""
    return x / tf.where(divisor > 0, divisor, tf.ones_like(divisor))
