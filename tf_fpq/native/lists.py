"""What a step does with many small tensors, in one operation for all; see `list_operations.cc`."""

from collections.abc import Sequence

import tensorflow as tf

from tf_fpq.native import library


def half_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Half the sum of squares of each float32 tensor, as `tf.nn.l2_loss` has it, in a vector."""
    return library.operations().tf_fpq_half_squares(tensors=tensors)


def interpolate(
    before: Sequence[tf.Tensor], after: Sequence[tf.Tensor], factor: float
) -> list[tf.Tensor]:
    """`before + factor * (after - before)` of each pair of float32 tensors.

    A worked number: a tenth of the way from 1 to 3 is 1.2.
    """
    return library.operations().tf_fpq_interpolate(before=before, after=after, factor=factor)
