"""Moving statistics of batch norms: whether they are those of given images, and making them so."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
from typing import Any
import warnings

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.calibration.observation import Moments
from tf_fpq.keras_compat import keras

# How far the median channel of a batch norm may be off: by a standard deviation, or by a factor of
# 2 in it. Chosen here for what it means: a factor of 2 is one bit of a grid, clipped or unused.
MOST = 1.0
# Batch norms that a warning lists.
_LISTED = 5


def reestimate(student: keras.Model, batches: Iterable[Any]) -> None:
    """Replaces the moving statistics of all batch norms by means over batches.

    This is section 4.1 of arXiv 2203.11086. Nothing else changes.

    Args:
      student: A functional model.
      batches: Batches of images: an array, arrays in the order of its inputs, or arrays by name.

    Raises:
      ValueError: If there is no batch.
    """
    norms = [
        layer for layer in student.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    statistics = [
        variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)
    ]
    # float64, so that the mean of equal values (a frozen norm's) is that value.
    sums = [np.zeros(variable.shape) for variable in statistics]
    count = 0
    with _momentum(norms, 0.0):  # so that a forward pass leaves the statistics of its batch
        forward = tf.function(lambda x: _normalize_by_batch(student, x))
        for batch in batches:
            forward(tf.nest.map_structure(tf.convert_to_tensor, batch))
            sums = [total + value.numpy() for total, value in zip(sums, statistics, strict=True)]
            count += 1
    if not count:
        raise ValueError(
            "batches is empty: batch norms need at least one batch. Received: 0 batches."
        )
    for variable, total in zip(statistics, sums, strict=True):
        variable.assign(total / count)


def _normalize_by_batch(student: keras.Model, images: Any) -> None:
    """Runs the student with its batch norms, and nothing else, in training mode."""
    parts = [images[name] for name in student.input_names] if isinstance(images, dict) else images
    inputs = [
        tf.cast(part, tensor.dtype)
        for part, tensor in zip(tf.nest.flatten(parts), student.inputs, strict=True)
    ]

    def run(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.layer._expects_training_arg:
            norm = isinstance(call.layer, keras.layers.BatchNormalization)
            kwargs = {**kwargs, "training": norm}
        return call.layer(*args, **kwargs)

    graph.replay(student, inputs, run)


@contextlib.contextmanager
def _momentum(norms: list[keras.layers.Layer], momentum: float) -> Iterator[None]:
    """Within the context the norms have this momentum."""
    before = [layer.momentum for layer in norms]
    try:
        for layer in norms:
            layer.momentum = momentum
        yield
    finally:
        for layer, old in zip(norms, before, strict=True):
            layer.momentum = old


def disagreement(norm: keras.layers.BatchNormalization, moments: Moments) -> float:
    """How far moving statistics are from what a batch norm reads, for its median channel.

    A channel is off by the larger of `|mean - moving_mean| / sigma` and `|log2(std / sigma)|`.
    Here `sigma^2 = moving_variance + epsilon` and `std^2 = variance + epsilon`. The median is
    deaf to dead channels, of which trained networks have some.

    A worked number: moving statistics 0 and 1 against a mean of 0.5 and a variance of 1/16 are off
    by max(0.5, |log2(1/4)|) = 2.
    """
    mean, variance = (
        np.asarray(statistic, np.float64).ravel()
        for statistic in (norm.moving_mean, norm.moving_variance)
    )
    # `tiny` keeps the quotient finite where a norm has epsilon 0 and a channel no variance.
    epsilon = norm.epsilon + np.finfo(np.float32).tiny
    sigma = np.sqrt(variance + epsilon)
    off = np.abs(moments.mean.ravel() - mean) / sigma
    spread = np.abs(np.log2(np.sqrt(moments.variance.ravel() + epsilon) / sigma))
    return float(np.median(np.maximum(off, spread)))


def warn_about_statistics(
    student: keras.Model,
    moments: Mapping[str, Moments],
    values: tuple[float, float],
    stacklevel: int,
) -> None:
    """Warns if training will normalize by other statistics than those that the ranges stand on.

    Frozen batch norms are not looked at: they normalize by their moving statistics in training too.

    Args:
      student: A student.
      moments: By name of a batch norm, what it reads.
      values: Lowest and highest value of the images.
      stacklevel: As for `warnings.warn`, from the caller.
    """
    norms = [student.get_layer(name) for name in moments]
    norms = [norm for norm in norms if norm.trainable]
    if norms and all(map(_is_new, norms)):
        warnings.warn(
            "All batch norms have the statistics they were made with, so the ranges are not those"
            " of training. Train the float model before it is quantized, or calibrate with"
            " reestimate_batch_norms=True.",
            stacklevel=stacklevel + 1,
        )
        return
    off = {norm.name: disagreement(norm, moments[norm.name]) for norm in norms}
    off = {name: amount for name, amount in off.items() if not amount <= MOST}  # NaN is off too
    if off:
        listed = ", ".join(f"{name} ({amount:.1f})" for name, amount in list(off.items())[:_LISTED])
        more = f" and {len(off) - _LISTED} more" if len(off) > _LISTED else ""
        low, high = values
        warnings.warn(
            f"The moving statistics of {len(off)} of {len(norms)} batch norms are not those of"
            f" these images, which lie in [{low:.4g}, {high:.4g}]: {listed}{more} (the median"
            " channel's distance in standard deviations, or in doublings of one). Training"
            " normalizes by the batch, so it will not fit these ranges and may diverge. If the"
            " images are not preprocessed as for training, do that. If the statistics never"
            " settled (a short training, a momentum near 1), calibrate with"
            " reestimate_batch_norms=True, and give a teacher the same by"
            " tf_fpq.callbacks.reestimate_batch_norm(teacher, batches).",
            stacklevel=stacklevel + 1,
        )


def _is_new(norm: keras.layers.BatchNormalization) -> bool:
    """Whether a batch norm has never seen an image."""
    return not norm.moving_mean.numpy().any() and bool(np.all(norm.moving_variance.numpy() == 1.0))
