"""The four operations that a quantizer is made of, each as plain formula and as one kernel.

    on_grid(x, step, low, high)           y = clip(step * round(x * (1 / step)), low, high)
    inside(g, x, low, high)               g where low < x < high, else 0
    product_sum(a, b, like)               sum(a * b), over the axes that share an element of `like`
    slope_sum(g, x, y, step, low, high)   sum(g * (y - inside(x, x, low, high))), likewise

`PLAIN` is their definition. `FUSED` computes the first two in one pass over memory each, with the
operators of `tf.quantization.quantize_and_dequantize_v2` and of its gradient, and sums without
storing the products. It has the same values, bit for bit, and sums that differ in their last bits.
`COMPILED` is `FUSED` with a `slope_sum` that XLA compiles: it reads `g` and `x` once.

`kernels_for` chooses: fused for one step per tensor on a CPU, and compiled where the tensor is
large. It chooses plain for a step per channel (the operator takes one range), under XLA (which has
no kernel for the gradient, and fuses the plain formula itself) and where there is a GPU.
`uses_native` says where operations of our own compute all four at once, `tf_fpq.native`.
"""

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow as tf

from tf_fpq.native import tracing

# The largest float32 below 1 (a float times this is the float next to it, towards zero) and the
# smallest normal one: together they make an open interval of a closed one. Smaller numbers count as
# zero in TensorFlow's threads.
_BELOW_ONE = float(np.float32(1.0 - 2.0**-24))
_TINY = float(np.finfo(np.float32).tiny)

# Numbers of one image from which on a tensor is large. Chosen here: with 128 images they are 2 MiB,
# about a core's cache, and a shape takes 0.08 s to compile.
_LARGE = 4096

# Products that are added up, and places that are computed at once, by the compiled kernel.
_ROWS, _LANES = 8, 16

# Codes of the fused operator, less the zero point: from -255 to 255, which 9 bits hold. A power of
# two, so that the step that the operator derives from its range is exactly the step that made the
# range.
_REACH = 256.0


@dataclasses.dataclass(frozen=True)
class GridKernels:
    """One way to compute the four operations; see the module.

    Attributes:
      on_grid: Values on the grid.
      inside: Gradient of a clip.
      product_sum: Sum of products, in the shape of a step size.
      slope_sum: Gradient of a step size, times the step.
    """

    on_grid: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    inside: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    product_sum: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    slope_sum: Callable[..., tf.Tensor]


def reduce_to(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `x` over the axes in which `like` (rank 0, or the rank of `x`) has one element."""
    if like.shape.rank == 0:
        return tf.reduce_sum(x)
    axes = [axis for axis, size in enumerate(like.shape) if size == 1]
    return tf.reduce_sum(x, axis=axes, keepdims=True)


def _plain_on_grid(x: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.round(x * (1.0 / step)) * step, low, high)


def _plain_inside(g: tf.Tensor, x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    # A product with the mask is a third faster than tf.where on a CPU.
    return g * tf.cast(tf.logical_and(x > low, x < high), g.dtype)


def _plain_product_sum(a: tf.Tensor, b: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return reduce_to(a * b, like)


def _plain_slope_sum(
    g: tf.Tensor, x: tf.Tensor, y: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    return _plain_product_sum(g, y - _plain_inside(x, x, low, high), step)


PLAIN = GridKernels(_plain_on_grid, _plain_inside, _plain_product_sum, _plain_slope_sum)


def _fused_on_grid(x: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    # The operator refuses a range that is no number. With an infinite one all values are NaN, as a
    # diverged training makes them by the plain formula.
    step = tf.where(step > 0, step, np.inf)
    rounded = tf.raw_ops.QuantizeAndDequantizeV4(
        input=x,
        input_min=-_REACH * step,
        input_max=tf.zeros_like(step),
        signed_input=True,
        num_bits=9,
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=False,
    )
    # Both work in place; ClipByValue, which is one kernel, takes more time.
    return tf.minimum(tf.maximum(rounded, low), high)


def _fused_inside(g: tf.Tensor, x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    # The operator's interval is closed, ours is open: one float further in at either end.
    low, high = low * _BELOW_ONE + _TINY, high * _BELOW_ONE - _TINY
    return tf.raw_ops.QuantizeAndDequantizeV4Grad(
        gradients=g, input=x, input_min=low, input_max=high
    ).input_backprop


def _fused_product_sum(a: tf.Tensor, b: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    # This layout runs as a dot product; with a column on the right it is four times slower.
    product = tf.matmul(tf.reshape(a, [1, -1]), tf.reshape(b, [1, -1]), transpose_b=True)
    return tf.reshape(product, [])


def _fused_slope_sum(
    g: tf.Tensor, x: tf.Tensor, y: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    return _fused_product_sum(g, y - _fused_inside(x, x, low, high), step)


FUSED = GridKernels(_fused_on_grid, _fused_inside, _fused_product_sum, _fused_slope_sum)


def _compiled_slope_sum(
    g: tf.Tensor, x: tf.Tensor, y: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    del y  # what is in registers costs less than what is in memory
    # A function called in the gradient of a tf.cond cannot take tensors of the branch itself.
    step, low, high = (tf.identity(number) for number in (step, low, high))
    partial = _partial_slope_sums(tf.reshape(g, [-1]), tf.reshape(x, [-1]), step, low, high)
    return tf.reduce_sum(partial)


@tf.function(
    input_signature=[tf.TensorSpec([None])] * 2 + [tf.TensorSpec([])] * 3,
    jit_compile=True,
    autograph=False,
)
def _partial_slope_sums(
    g: tf.Tensor, x: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    """Sums of `_ROWS` products each, written out: XLA's own reductions are not vectorized."""
    y = _plain_on_grid(x, step, low, high)
    products = g * (y - tf.where(tf.logical_and(x > low, x < high), x, 0.0))
    products = tf.pad(products, [[0, -tf.size(products) % (_ROWS * _LANES)]])
    return tf.add_n(tf.unstack(tf.reshape(products, [-1, _ROWS, _LANES]), axis=1))


COMPILED = dataclasses.replace(FUSED, slope_sum=_compiled_slope_sum)


def uses_native(x: tf.Tensor, step: tf.Tensor) -> bool:
    """Whether `tf_fpq.native` quantizes a tensor, at the place where the caller is being traced."""
    return tracing.may_use_native() and _has_last_axis(x, step)


def _has_last_axis(x: tf.Tensor, step: tf.Tensor) -> bool:
    """Whether all numbers have one step, or neighbours in memory have neighbouring steps."""
    axes = [axis for axis, size in enumerate(step.shape) if size != 1]
    if not axes:
        return True
    last = axes[-1]
    return len(axes) == 1 and all(size == 1 for size in x.shape[last + 1 :])


def kernels_for(x: tf.Tensor, step: tf.Tensor) -> GridKernels:
    """The kernels for a tensor and its step size, at the place where the caller is being traced."""
    if tracing.wants_plain_formula() or step.shape.rank != 0 or not tracing.on_cpu_kernels():
        return PLAIN
    return COMPILED if _is_large(x) and tf.test.is_built_with_xla() else FUSED


def _is_large(x: tf.Tensor) -> bool:
    image = tf.TensorShape(x.shape[1:])  # NumPy's arrays have tuples
    return image.is_fully_defined() and image.num_elements() >= _LARGE
