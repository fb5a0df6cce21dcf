"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR on codes; input and output share one grid.

Both take inputs `(x, size int32 [2])` and the options align_corners=False, half_pixel_centers=False
(not both).
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base
from tflite_export.kernels import rounding as rounding_lib

# Fraction bits of the interpolation weights: XNNPACK's and the reference kernel's.
XNNPACK_BITS, REFERENCE_BITS = 11, 10


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Per output position: the two input positions and the integer weight of the second."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def resize_bilinear(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """RESIZE_BILINEAR.

    single (XNNPACK): positions in float32, weights rounded to 11 bits, sum in 22 bits rounded with
    ties upward. double: positions and weights in 10-bit fixed point, sum in 20 bits rounded with
    ties away from zero.
    """
    x, opts = _checked(operator, tensors)
    build = _axis_single if rounding == "single" else _axis_double
    rows, columns = (
        build(x.shape[axis], size, opts["align_corners"], opts["half_pixel_centers"])
        for axis, size in zip((1, 2), base.output_tensor(operator, tensors).shape[1:3], strict=True)
    )
    bits = XNNPACK_BITS if rounding == "single" else REFERENCE_BITS
    row_weight = tf.constant(rows.weight.reshape(1, -1, 1, 1), tf.int32)
    column_weight = tf.constant(columns.weight.reshape(1, 1, -1, 1), tf.int32)
    one = 1 << bits

    def run(codes: tf.Tensor) -> tf.Tensor:
        left, right = (
            tf.gather(codes, columns.first, axis=2),
            tf.gather(codes, columns.second, axis=2),
        )
        blended = left * (one - column_weight) + right * column_weight
        top, bottom = (
            tf.gather(blended, rows.first, axis=1),
            tf.gather(blended, rows.second, axis=1),
        )
        total = top * (one - row_weight) + bottom * row_weight
        half = 1 << (2 * bits - 1)
        if rounding == "single":
            return tf.bitwise.right_shift(total + half, 2 * bits)
        return tf.truncatediv(total + tf.where(total > 0, half, -half), 1 << (2 * bits))

    return run


def resize_nearest_neighbor(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """RESIZE_NEAREST_NEIGHBOR: gathers the codes at the nearest input positions.

    A position is `floor((i + offset) * ratio)` in float32, rounded under align_corners.
    """
    del rounding  # Codes are only moved.
    x, opts = _checked(operator, tensors)
    rows, columns = (
        _nearest(x.shape[axis], size, opts["align_corners"], opts["half_pixel_centers"])
        for axis, size in zip((1, 2), base.output_tensor(operator, tensors).shape[1:3], strict=True)
    )
    return lambda codes: tf.gather(tf.gather(codes, rows, axis=1), columns, axis=2)


def _checked(operator: deployed.Operator, tensors: base.Tensors) -> tuple[deployed.Tensor, dict]:
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    base.require_same_grid(operator, x, output)
    size = np.reshape(base.constant(operator, tensors, 1, "size"), (-1,)).tolist()
    opts = base.options(operator)
    if size != list(output.shape[1:3]) or (opts["align_corners"] and opts["half_pixel_centers"]):
        base.fail(
            operator,
            f"size must be the output's and only one of the options set. Received: {size}, {opts}.",
        )
    return x, opts


def _ratio(size: int, target: int, align_corners: bool) -> np.float32:
    if align_corners and target > 1:
        return np.float32(size - 1) / np.float32(target - 1)
    return np.float32(size) / np.float32(target)


def _axis_single(size: int, target: int, align_corners: bool, half_pixel_centers: bool) -> _Axis:
    ratio = _ratio(size, target, align_corners)
    offset = np.float32(0.5) * ratio - np.float32(0.5) if half_pixel_centers else np.float32(0)
    positions = np.clip(
        np.arange(target, dtype=np.float32) * ratio + offset, 0, np.float32(size - 1)
    )
    first = positions.astype(np.int32)
    weight = np.rint((positions - first.astype(np.float32)) * np.float32(1 << XNNPACK_BITS)).astype(
        np.int32
    )
    return _Axis(first, np.minimum(first + 1, size - 1), weight)


def _axis_double(size: int, target: int, align_corners: bool, half_pixel_centers: bool) -> _Axis:
    one = 1 << REFERENCE_BITS
    aligned = int(align_corners and target > 1)
    ratio = (one * (size - aligned) + (target - aligned) // 2) // (target - aligned)
    positions = np.arange(target, dtype=np.int64) * ratio
    if half_pixel_centers:
        positions += ratio // 2 - one // 2
    # C's integer division truncates: a position just left of the image belongs to pixel 0.
    first = np.trunc(positions / one).astype(np.int64)
    second = np.minimum(np.trunc((positions + one - 1) / one).astype(np.int64), size - 1)
    return _Axis(first, second, positions - one * first)


def _nearest(size: int, target: int, align_corners: bool, half_pixel_centers: bool) -> np.ndarray:
    offset = np.float32(0.5) if half_pixel_centers else np.float32(0)
    positions = (np.arange(target, dtype=np.float32) + offset) * _ratio(size, target, align_corners)
    chosen = rounding_lib.round_half_away(positions) if align_corners else np.floor(positions)
    return np.minimum(chosen.astype(np.int32), size - 1)
