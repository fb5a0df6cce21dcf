"""Where step sizes and zero points start: from the weights, and from a few batches of real images
(`quantizers/range_estimators.py`).
"""

from collections.abc import Iterable, Iterator
import dataclasses
from typing import Any
import warnings

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.placement import xnnpack_steps
from tf_fpq.placement.quantized_layers import QuantizeActivation, QuantizedLayer, observing
from tf_fpq.quantizers import range_estimators
from tf_fpq.quantizers.base import GridQuantizer, Variables
from tf_fpq.quantizers.range_estimators import Estimator, Grids, Samples
from tf_fpq.quantizers.spec import QuantSpec

# Values of one tensor and batch that an estimator looks at; the range is always exact.
SAMPLES_PER_BATCH = 16384


def estimate(samples: Samples, quantizer: GridQuantizer, estimator: str | Estimator) -> Grids:
    """Step sizes and zero points by an estimator; a grid that saw only zeros gets its siblings'
    largest step.

    A step for zeros is free to choose. One that is far smaller than the others would push the bias,
    which the deployed model holds in units of it, out of int32.
    """
    step_size, zero_point = quantizer.estimate(samples, estimator)
    largest = step_size.max()
    fallback = largest if largest > 0 else 1.0 / quantizer.spec.qmax
    return np.where(step_size > 0, step_size, fallback), zero_point


def start_weights(model: keras.Model, estimator: str | Estimator = "mse") -> None:
    """Sets the step sizes of all quantized weights from the weights themselves.

    `quantize_model` does so. A model from tfmot's own `quantize_apply` needs this call: its step
    sizes cover [-6, 6] before.

    Raises:
      ValueError: If a weight has a NaN or an infinity, or `estimator` is unknown.
    """
    range_estimators.check_estimator("estimator", estimator)
    for layer in model.layers:
        for name, weight, quantizer, variables in quantized_weights(layer):
            spec, values = quantizer.spec, weight.numpy()
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{name} of layer {layer.name!r} contains NaN or infinity; no grid covers"
                    " those."
                )
            step_size, zero_point = estimate(
                Samples.of(_by_grid(values, spec)), quantizer, estimator
            )
            shape = spec.step_shape(weight.shape)
            quantizer.set_grid(variables, step_size.reshape(shape), zero_point.reshape(shape))


def start_latents(model: keras.Model) -> None:
    """Replaces the float weights of all quantized layers by latent ones that the quantizers turn
    into them.
    """
    for layer in model.layers:
        for _, weight, quantizer, _ in quantized_weights(layer):
            weight.assign(quantizer.latent(weight.numpy()))


def quantized_weights(
    layer: keras.layers.Layer,
) -> list[tuple[str, tf.Variable, GridQuantizer, Variables]]:
    """Name, variable, quantizer and its variables of each weight of a `QuantizedLayer`, or in
    tfmot's own wrapper.
    """
    if isinstance(layer, QuantizedLayer):
        return layer.quantized_weights()
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        return [
            (w.name, w, q, variables)
            for w, q, variables in layer._weight_vars
            if isinstance(q, GridQuantizer)
        ]
    return []


def _by_grid(values: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """`values` as `[grids, elements per grid]`."""
    axes = [axis % values.ndim for axis in spec.axis or ()]
    grids = int(np.prod([values.shape[axis] for axis in axes]))
    return np.moveaxis(values, axes, range(len(axes))).reshape(grids, -1)


def calibrate(
    student: keras.Model,
    images: Any,
    *,
    estimator: str | Estimator = "mse",
    weight_estimator: str | Estimator | None = None,
    batch_size: int = 64,
    verbose: int = 1,
) -> None:
    """Sets the activations' step sizes and zero points from images, before the first training step.

    The images run through the student with its quantizers passing values through, so the ranges are
    the float network's.

    Args:
      student: A model from `quantize_model`.
      images: Array `[images, ...]`, or a `tf.data.Dataset` of batches (or of `(images, labels)`
        batches), preprocessed as for training. About 100 training images suffice (FPQ, section 4).
      estimator: "mse" (least squared error), "min_max" (FPQ eq. 6), "percentile" (99.9 % of the
        values on each side), "paper" (what the quantizer's own paper prescribes), or a function of
        `(samples, spec)`, such as `functools.partial(tf_fpq.quantizers.range_estimators.percentile, percent=99.99)`.
      weight_estimator: Starts the weights' step sizes again by this estimator; None leaves them as
        they are.
      batch_size: Images that run at once, for an array.
      verbose: 1 shows a progress bar, 0 nothing.

    Raises:
      ValueError: If there is no image, an image has a NaN or an infinity, shapes do not fit, an
        estimator is unknown, or the student has no quantizers or weights that are no numbers.
    """
    range_estimators.check_estimator("estimator", estimator)
    if weight_estimator is not None:
        range_estimators.check_estimator("weight_estimator", weight_estimator)
    layers = [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]
    if not layers:
        raise ValueError(
            f"student {student.name!r} has no activation quantizers; make it with"
            " tf_fpq.quantize_model first."
        )
    graph.check_finite(student, "student")
    seen = _observe(student, layers, _batches(student, images, batch_size), verbose)
    if weight_estimator is not None:
        start_weights(student, weight_estimator)
    for layer in layers:
        step_size, zero_point = estimate(seen[layer.name], layer.quantizer, estimator)
        layer.quantizer.set_grid(layer.variables_of_quantizer, step_size[0], zero_point[0])
    xnnpack_steps.raise_small_steps(student)
    _warn(seen, uncalibrated(student))
    _warn_about_batch_norms(student)


def _warn(seen: dict[str, Samples], unmoved: list[str]) -> None:
    """Warns about ranges that mean nothing."""
    dead = [name for name, samples in seen.items() if samples.low[0] == samples.high[0] == 0.0]
    constant = [
        name for name, samples in seen.items() if name not in dead and np.ptp(samples.values) == 0.0
    ]
    for names, what in (
        (dead, "were 0 for every calibration image"),
        (constant, "had one and the same value everywhere, for every calibration image"),
        (unmoved, "still have the range they were made with"),
    ):
        if names:
            warnings.warn(f"These tensors {what}: {', '.join(names)}.", stacklevel=3)


def _warn_about_batch_norms(student: keras.Model) -> None:
    """Warns if no batch norm has ever seen an image: training will normalize by statistics that
    these ranges know nothing of.
    """
    norms = [
        layer for layer in student.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if norms and all(
        not norm.moving_mean.numpy().any() and np.all(norm.moving_variance.numpy() == 1.0)
        for norm in norms
    ):
        warnings.warn(
            "All batch norms have the statistics they were made with, so the ranges are not those"
            " of training. Train the float model before it is quantized, or set its batch norms'"
            " momentum to 0 and call it once on images with training=True.",
            stacklevel=3,
        )


def _batches(student: keras.Model, images: Any, batch_size: int) -> Iterator[Any]:
    """Checked batches of images."""
    if isinstance(images, tf.data.Dataset):
        batches: Iterable[Any] = (
            batch[0] if isinstance(batch, tuple) else batch for batch in images
        )
    else:
        arrays = [
            np.asarray(part) for part in (images if isinstance(images, list | tuple) else [images])
        ]
        if any(array.ndim == 0 for array in arrays):
            raise ValueError(
                "images must be an array [images, ...]. Received: images of type"
                f" {type(images).__name__}."
            )
        starts = range(0, len(arrays[0]), batch_size)
        batches = ([array[start : start + batch_size] for array in arrays] for start in starts)
    count = 0
    for batch in batches:
        parts = batch if isinstance(batch, list | tuple) else [batch]
        for part, tensor in zip(parts, student.inputs, strict=True):
            _check_images(np.asarray(part), tensor)
        count += 1
        yield parts if len(parts) > 1 else parts[0]
    if not count:
        raise ValueError(
            "images is empty: calibration needs at least one image. Received: 0 images."
        )


def _check_images(batch: np.ndarray, tensor: Any) -> None:
    expected = tuple(tensor.shape[1:])
    fits = batch.ndim == len(expected) + 1 and all(
        e in (None, got) for e, got in zip(expected, batch.shape[1:])
    )
    if not fits:
        raise ValueError(
            f"images must have shape {(None, *expected)}, as the student's input. Received:"
            f" {batch.shape}."
        )
    if not np.isfinite(batch).all():
        raise ValueError(
            "images contain NaN or infinity; a range estimated from them would be meaningless."
            " Clean them first."
        )


def _observe(
    student: keras.Model, layers: list[QuantizeActivation], batches: Iterator[Any], verbose: int
) -> dict[str, Samples]:
    """Runs the batches and returns what every activation quantizer saw, by layer name."""
    points: dict[str, list[Any]] = {layer.name: [] for layer in layers}
    for call in graph.calls(
        student
    ):  # not the layer's own nodes: those of other models that share it count as well
        if call.layer.name in points:
            points[call.layer.name].append(call.inputs[0])
    probe = keras.Model(student.inputs, points)
    seen: dict[str, Samples] = {}
    with observing(student):
        run = tf.function(
            lambda batch: probe(batch, training=False)
        )  # traced here, so that it observes; dropped after
        progress = keras.utils.Progbar(None, verbose=verbose, unit_name="batch")
        for index, batch in enumerate(batches):
            for name, tensors in run(tf.nest.map_structure(tf.convert_to_tensor, batch)).items():
                for tensor in tensors:
                    samples = _sample(tensor.numpy())
                    seen[name] = seen[name].merge(samples) if name in seen else samples
            progress.update(index + 1)
        if verbose:
            print()
    return seen


def _sample(values: np.ndarray) -> Samples:
    """A regular subsample of `values` with their exact range."""
    flat = values.astype(np.float32).reshape(1, -1)
    exact = Samples.of(flat)
    stride = -(-flat.shape[1] // SAMPLES_PER_BATCH)
    # A stride that shares no factor with the channel count visits all channels.
    while stride > 1 and np.gcd(stride, values.shape[-1]) > 1:
        stride += 1
    return dataclasses.replace(exact, values=flat[:, ::stride])


def uncalibrated(student: keras.Model) -> list[str]:
    """Names of the activation quantizers that still have the range they were made with."""
    return [
        layer.name
        for layer in student.layers
        if isinstance(layer, QuantizeActivation)
        and layer.quantizer.uncalibrated(layer.variables_of_quantizer)
    ]
