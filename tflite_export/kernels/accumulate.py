"""Exact integer accumulation by float convolutions and matrix products.

A float32 sum of integers is exact, in any order, while every partial sum stays below 2^24; a
float64 sum below 2^53. The bound `max over channels of sum|w| * max|x - z| + |bias|` is known from
the weights, so the type is chosen when the kernel is built, and a layer whose accumulator could
leave int32 (where the runtimes themselves would overflow) is refused.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base

EXACT_FLOAT32 = 2**24
INT32_LIMIT = 2**31


def largest_offset(tensor: deployed.Tensor) -> int:
    """`max |code - zero_point|` over all codes of the tensor's dtype."""
    qmin, qmax = base.rounding_lib.RANGES[tensor.dtype]
    return max(qmax - tensor.one_zero_point, tensor.one_zero_point - qmin)


def accumulator_type(
    operator: deployed.Operator,
    weights: np.ndarray,
    bias: np.ndarray,
    offset: int,
    axes: tuple[int, ...],
) -> tf.DType:
    """float32 where it is exact, else float64.

    Args:
      operator: For the error.
      weights: Integer weights.
      bias: int32, `[channels]`, or 0.
      offset: `max |code - zero_point|` of the input.
      axes: Axes of `weights` that are summed over.

    Raises:
      ValueError: If the int32 accumulator of the runtimes could overflow.
    """
    magnitude = np.abs(weights.astype(np.int16)).sum(axis=axes, dtype=np.int64).reshape(-1)
    bound = int(np.max(magnitude * offset + np.abs(np.asarray(bias, np.int64))))
    if bound >= INT32_LIMIT:
        base.fail(
            operator, f"its int32 accumulator can overflow: largest possible sum {bound} >= 2^31."
        )
    return tf.float32 if bound < EXACT_FLOAT32 else tf.float64


def pad_amounts(
    size: int, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int, int]:
    """Padding before and after one spatial axis, and the number of output positions.

    SAME pads the odd element after, as TFLite does. Padding after is negative where positions at
    the end are never read.
    """
    reach = (kernel - 1) * dilation + 1
    outputs = -(-size // stride) if padding == "SAME" else (size - reach) // stride + 1
    missing = (outputs - 1) * stride + reach - size
    before = max(missing, 0) // 2 if padding == "SAME" else 0
    return before, missing - before, outputs


def window(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: str,
) -> tuple[Callable[[tf.Tensor], tf.Tensor], tuple[int, int]]:
    """What turns a strided, padded window over NHWC `shape` into one without padding.

    The window is that of a convolution or pooling.

    Returns:
      A function that pads the input with zeros and cuts off what is never read, and the strides, 1
      where there is one output position. Cut and stride change no result, but TensorFlow 2.21's
      float32 convolution (oneDNN) reads garbage for some shapes with one output column, one input
      channel and a stride that leaves columns unread.
    """
    sides = [
        pad_amounts(shape[axis + 1], kernel[axis], strides[axis], dilations[axis], padding)
        for axis in range(2)
    ]
    paddings = [[0, 0], *([before, max(after, 0)] for before, after, _ in sides), [0, 0]]
    rows, columns = (shape[axis + 1] + min(sides[axis][1], 0) for axis in range(2))

    def effective(axis: int) -> int:
        return 1 if sides[axis][2] == 1 else strides[axis]

    return lambda x: tf.pad(x[:, :rows, :columns, :], paddings), (effective(0), effective(1))


def depthwise(
    x: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], dilations: tuple[int, int]
) -> tf.Tensor:
    """Depthwise convolution without padding for any strides and dilations.

    TensorFlow's takes one stride for both axes, and either a stride or a dilation: otherwise it
    runs at stride 1 and the result is subsampled.
    """
    if strides[0] == strides[1] and dilations == (1, 1):
        return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], "VALID")
    dense = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID", dilations=dilations)
    return dense[:, :: strides[0], :: strides[1], :]
