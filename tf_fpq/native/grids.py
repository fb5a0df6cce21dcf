"""A quantizer's values and gradient, one operation each; see `grid_operations.cc`."""

from collections.abc import Callable
import dataclasses
from typing import Any

import tensorflow as tf

from tf_fpq.native import library, tracing
from tf_fpq.native.linear_map import linear_map


@dataclasses.dataclass(frozen=True)
class Grid:
    """What does not change in training about a grid; `numerics.fake_quant` explains all.

    Attributes:
      qmin: Lowest code.
      qmax: Highest code.
      min_step_size: Smallest step.
      gradient_scale: Factor of the step size's gradient.
      slope_inside: Whether the step size has a gradient inside the range.
    """

    qmin: int
    qmax: int
    min_step_size: float
    gradient_scale: tf.Tensor | float
    slope_inside: bool


def fake_quant(
    x: tf.Tensor,
    step_size: tf.Tensor,
    zero_point: tf.Tensor,
    grid: Grid,
    transposed: Callable[..., tf.Tensor],
) -> tf.Tensor:
    """`numerics.fake_quant` of a float32 tensor, where `grid_kernels.uses_native` says so.

    Args:
      x: The tensor.
      step_size: Its step sizes.
      zero_point: Their zero points.
      grid: What does not change.
      transposed: `transposed(x, step_size, to_x, to_step)` is `dy/dx * to_x + dy/dstep_size *
        to_step` by the plain formula, for derivatives of higher order.
    """
    operations = library.operations()
    zero_point = tf.convert_to_tensor(zero_point)
    if zero_point.shape != step_size.shape:
        zero_point = tf.broadcast_to(zero_point, step_size.shape)
    # What only the graph knows, as the number of places of an image of any size, is no attribute.
    of_graph = tf.is_tensor(grid.gradient_scale)
    scale = 1.0 if of_graph else float(grid.gradient_scale)
    normalized = _batch_norm_of(x) if step_size.shape.num_elements() == 1 else {}
    codes = {"qmin": grid.qmin, "qmax": grid.qmax, "min_step_size": grid.min_step_size}

    @tf.custom_gradient
    def quantized(x: tf.Tensor, step_size: tf.Tensor):
        # Forward mode differentiates every operation that it sees, also in here.
        x, step_size = tf.stop_gradient(x), tf.stop_gradient(step_size)

        def forwards(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own = {"g": upstream, "step_size": step_size, "zero_point": zero_point}
            own |= {**codes, "gradient_scale": scale, "slope_inside": grid.slope_inside}
            if normalized:
                return operations.tf_fpq_normalized_fake_quant_gradient(**own, **normalized)
            return operations.tf_fpq_fake_quant_gradient(x=x, **own)

        def backwards(to_x: tf.Tensor, to_step: tf.Tensor) -> tf.Tensor:
            return transposed(x, step_size, to_x, scale * to_step)

        def gradient(upstream: tf.Tensor):
            dx, dstep = linear_map(forwards, backwards)(upstream)
            return dx, dstep * grid.gradient_scale if of_graph else dstep

        return operations.tf_fpq_fake_quant(
            x=x, step_size=step_size, zero_point=zero_point, **codes
        ), gradient

    return quantized(x, step_size)


def _batch_norm_of(x: tf.Tensor) -> dict[str, Any]:
    """What `x` is computed from, if it is what a batch norm in training returned; else nothing.

    A gradient that keeps this, and not `x`, keeps what the batch norm's own gradient keeps.
    """
    if not tf.is_symbolic_tensor(x) or not tracing.is_training_batch_norm(x.op):
        return {}
    norm = x.op
    z, scale, offset = norm.inputs[:3]
    mean, variance = norm.outputs[3:5]
    tensors = {"z": z, "mean": mean, "variance": variance, "scale": scale, "offset": offset}
    stopped = {name: tf.stop_gradient(tensor) for name, tensor in tensors.items()}
    return {**stopped, "epsilon": norm.get_attr("epsilon")}
