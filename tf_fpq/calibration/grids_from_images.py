"""Where step sizes and zero points start: from the weights, and from a few batches of real images.

The estimators themselves are in `quantizers/range_estimators.py`.
"""

from typing import Any
import warnings

import numpy as np

from tf_fpq import graph
from tf_fpq.calibration import batch_norms, xnnpack_steps
from tf_fpq.calibration.calibration_images import CalibrationImages
from tf_fpq.calibration.observation import observe
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import range_estimators
from tf_fpq.quantizers.base import GridQuantizer, assign
from tf_fpq.quantizers.range_estimators import Estimator, Grids, Samples
from tf_fpq.quantizers.spec import QuantSpec
from tf_fpq.student_layers.quantized_layers import (
    QuantizeActivation,
    observing,
    quantized_weights,
)


def estimate(samples: Samples, quantizer: GridQuantizer, estimator: str | Estimator) -> Grids:
    """Step sizes and zero points by an estimator.

    A grid that saw only zeros gets the largest step of its siblings. Its step is free to choose.
    One that is far smaller than the others would push the bias out of int32, as the deployed model
    holds the bias in units of it.
    """
    step_size, zero_point = quantizer.estimate(samples, estimator)
    largest = step_size.max()
    fallback = largest if largest > 0 else 1.0 / quantizer.spec.qmax
    return np.where(step_size > 0, step_size, fallback), zero_point


def start_weights(model: keras.Model, estimator: str | Estimator = "mse") -> None:
    """Sets the step sizes of all quantized weights from the weights themselves.

        student = tfmot.quantization.keras.quantize_apply(annotated)
        tf_fpq.start_weights(student)

    `quantize_model` does so. A model from tfmot's own `quantize_apply` needs this call: its step
    sizes cover [-6, 6] before.

    Raises:
      ValueError: If a weight has a NaN or an infinity, or `estimator` is unknown.
    """
    range_estimators.check_estimator("estimator", estimator)
    for layer in model.layers:
        for name, weight, quantizer, variables in quantized_weights(layer):
            spec, values = quantizer.spec, keras.backend.get_value(weight)
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
    """Replaces the float weights of all quantized layers by latent weights.

    The quantizers turn these into the float weights, before they round.
    """
    for layer in model.layers:
        for _, weight, quantizer, _ in quantized_weights(layer):
            assign(weight, quantizer.latent(keras.backend.get_value(weight)))


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
    reestimate_batch_norms: bool = False,
    batch_size: int = 64,
    verbose: int = 1,
) -> None:
    """Sets the activations' step sizes and zero points from images, before the first training step.

        tf_fpq.calibrate(student, train_images[:100])

    The images run through the student with its quantizers passing values through, so the ranges are
    the float network's. Memory does not grow with their number: a tensor leaves its range and a
    sample, and batches of large images run in parts.

    Warns where training will see other values than these: if the moving statistics of the batch
    norms are not those of the images.

    Args:
      student: A model from `quantize_model`.
      images: Array `[images, ...]`, or a `tf.data.Dataset` of batches (or of `(images, labels)`
        batches), preprocessed as for training. For several inputs, a tuple of arrays in their
        order or a dict by their names. Of `two_views` the weak view is taken. About 100 training
        images suffice (FPQ, section 4).
      estimator: "mse" (least squared error), "min_max" (FPQ eq. 6), "percentile" (99.9 % of the
        values on each side), "paper" (what the quantizer's own paper prescribes), or a function of
        `(samples, spec)`, such as `functools.partial(percentile, percent=99.99)` with the one of
        `tf_fpq.quantizers.range_estimators`.
      weight_estimator: Starts the weights' step sizes again by this estimator; None leaves them as
        they are.
      reestimate_batch_norms: Whether to replace the moving statistics of the student's batch norms
        by those of the images, before ranges are taken. For networks whose moving statistics never
        settled: a short training, a momentum near 1. A dataset is then read twice.
      batch_size: Images that run at once, for an array; fewer if they are large.
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
    batches = CalibrationImages(student, images, batch_size)
    if reestimate_batch_norms:
        with observing(student):
            batch_norms.reestimate(student, batches)
    seen = observe(student, batches, verbose)
    if weight_estimator is not None:
        start_weights(student, weight_estimator)
    for layer in layers:
        step_size, zero_point = estimate(seen.samples[layer.name], layer.quantizer, estimator)
        layer.quantizer.set_grid(layer.variables_of_quantizer, step_size[0], zero_point[0])
    # Behind all grids: the limits are ratios of steps of one operator.
    xnnpack_steps.raise_small_steps(student)
    _warn(seen.samples, uncalibrated(student))
    batches.warn_about_bytes(stacklevel=2)
    batch_norms.warn_about_statistics(student, seen.moments, batches.range, stacklevel=2)


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


def uncalibrated(student: keras.Model) -> list[str]:
    """Names of the activation quantizers that still have the range they were made with."""
    return [
        layer.name
        for layer in student.layers
        if isinstance(layer, QuantizeActivation)
        and layer.quantizer.uncalibrated(layer.variables_of_quantizer)
    ]
