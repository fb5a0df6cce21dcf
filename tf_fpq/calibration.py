"""Where step sizes and zero points start: from the weights, and from a few batches of real images.

An estimator looks at samples `[grids, elements]` and their exact range and returns one step size and zero point per grid.
Grids are asymmetric as FPQ prints them (arXiv 2503.11159, eq. 6), `s = (x_max - x_min) / (2^q - 1)`,
`z = round(q_max - x_max / s)`, or symmetric, `s = max|x| / qmax`; 0 is always on the grid.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.layers import QuantizeActivation, QuantizedLayer, observing
from tf_fpq.quantizers.base import UNCALIBRATED_RANGE
from tf_fpq.spec import QuantSpec

# Values of one tensor and batch that an estimator looks at; the range is always exact.
SAMPLES_PER_BATCH = 16384


@dataclasses.dataclass
class Samples:
    """Values of one or more grids: `values[grids, elements]`, and the exact range `low[grids]` to `high[grids]`."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Samples":
        """Samples whose range is that of `values`; 0 always belongs to it."""
        return cls(values, np.minimum(values.min(axis=1), 0.0), np.maximum(values.max(axis=1), 0.0))

    def merge(self, other: "Samples") -> "Samples":
        """Both together."""
        values = np.concatenate([self.values, other.values], axis=1)
        return Samples(values, np.minimum(self.low, other.low), np.maximum(self.high, other.high))


Grids = tuple[np.ndarray, np.ndarray]


def min_max(samples: Samples, spec: QuantSpec) -> Grids:
    """The whole range, nothing is clipped (FPQ eq. 6)."""
    if spec.symmetric:
        step_size = np.maximum(-samples.low, samples.high) / spec.qmax
        return step_size, np.zeros_like(step_size)
    step_size = (samples.high - samples.low) / (spec.qmax - spec.qmin)
    safe = np.where(step_size > 0, step_size, 1.0)
    return step_size, np.clip(np.round(spec.qmax - samples.high / safe), spec.qmin, spec.qmax)


def mse(samples: Samples, spec: QuantSpec) -> Grids:
    """The fraction of the min-max range with the smallest squared error, found by two rounds of search."""
    full, zero_point = min_max(samples, spec)
    best = np.ones_like(full)
    for ratios in (np.geomspace(1.0, 0.05, 25), np.geomspace(1.1, 1 / 1.1, 11)):
        candidates = np.stack([np.minimum(best * ratio, 1.0) for ratio in ratios])
        errors = np.stack([_squared_error(samples.values, full * c, zero_point, spec) for c in candidates])
        best = np.take_along_axis(candidates, errors.argmin(axis=0)[None], axis=0)[0]
    return full * best, zero_point


def _squared_error(values: np.ndarray, step_size: np.ndarray, zero_point: np.ndarray, spec: QuantSpec) -> np.ndarray:
    step, offset = np.where(step_size > 0, step_size, 1.0)[:, None], zero_point[:, None]
    levels = np.clip(np.round(values / step), spec.qmin - offset, spec.qmax - offset)
    return np.square(levels * step - values).sum(axis=1)


def lsq_start(samples: Samples, spec: QuantSpec) -> Grids:
    """LSQ's start `s = 2 mean|x| / sqrt(qmax)` (arXiv 1902.08153, section 2.1), with min-max's zero point."""
    step_size = 2.0 * np.abs(samples.values).mean(axis=1) / np.sqrt(spec.qmax)
    return step_size, min_max(samples, spec)[1]


ESTIMATORS: dict[str, Callable[[Samples, QuantSpec], Grids]] = {"mse": mse, "min_max": min_max, "lsq": lsq_start}


def estimate(samples: Samples, spec: QuantSpec, estimator: str) -> Grids:
    """Step sizes and zero points by the named estimator; a grid that saw only zeros gets its siblings' largest step.

    A step for zeros is free to choose. One that is far smaller than the others would push the bias, which the deployed model
    holds in units of it, out of int32.
    """
    step_size, zero_point = ESTIMATORS[estimator](samples, spec)
    largest = step_size.max()
    fallback = largest if largest > 0 else 1.0 / spec.qmax
    dead = step_size <= 0
    return np.where(dead, fallback, step_size), np.where(dead & ~np.isfinite(zero_point), 0.0, zero_point)


def start_weights(model: keras.Model, estimator: str = "mse") -> None:
    """Sets the step sizes of all quantized weights from the weights themselves."""
    for layer in model.layers:
        if not isinstance(layer, QuantizedLayer):
            continue
        for _, weight, quantizer, variables in layer.quantized_weights():
            spec = quantizer.spec
            step_size, zero_point = estimate(Samples.of(_by_grid(weight.numpy(), spec)), spec, estimator)
            shape = spec.step_shape(weight.shape)
            quantizer.set_grid(variables, step_size.reshape(shape), zero_point.reshape(shape))


def _by_grid(values: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """`values` as `[grids, elements per grid]`."""
    axes = [axis % values.ndim for axis in spec.axis or ()]
    grids = int(np.prod([values.shape[axis] for axis in axes]))
    return np.moveaxis(values, axes, range(len(axes))).reshape(grids, -1)


def calibrate(
    student: keras.Model, images: Any, *, estimator: str = "mse", batch_size: int = 64, verbose: int = 1
) -> None:
    """Sets the activations' step sizes and zero points from images, before the first training step.

    The images run through the student with its quantizers passing values through, so the ranges are the float network's.

    Args:
      student: A model from `quantize_model`.
      images: Array `[images, ...]`, or a `tf.data.Dataset` of batches (or of `(images, labels)` batches), preprocessed as for
        training. About 100 training images suffice (FPQ, section 4).
      estimator: "mse" (least squared error), "min_max" (FPQ eq. 6) or "lsq" (LSQ's start).
      batch_size: Images that run at once, for an array.
      verbose: 1 shows a progress bar, 0 nothing.

    Raises:
      ValueError: If there is no image, an image has a NaN or an infinity, shapes do not fit, or the student has no quantizers.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}. Received: estimator={estimator!r}.")
    layers = [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]
    if not layers:
        raise ValueError(
            f"student {student.name!r} has no activation quantizers; make it with tf_fpq.quantize_model first."
        )
    seen = _observe(student, layers, _batches(student, images, batch_size), verbose)
    dead = []
    for layer in layers:
        samples = seen[layer.name]
        if samples.low[0] == samples.high[0] == 0.0:
            dead.append(layer.name)
        step_size, zero_point = estimate(samples, layer.quantizer.spec, estimator)
        layer.quantizer.set_grid(layer.variables_of_quantizer, step_size[0], zero_point[0])
    if dead:
        warnings.warn(f"These tensors were 0 for every calibration image: {', '.join(dead)}.", stacklevel=2)


def _batches(student: keras.Model, images: Any, batch_size: int) -> Iterator[Any]:
    """Checked batches of images."""
    if isinstance(images, tf.data.Dataset):
        batches: Iterable[Any] = (batch[0] if isinstance(batch, tuple) else batch for batch in images)
    else:
        arrays = [np.asarray(part) for part in (images if isinstance(images, list | tuple) else [images])]
        if any(array.ndim == 0 for array in arrays):
            raise ValueError(
                f"images must be an array [images, ...]. Received: images of type {type(images).__name__}."
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
        raise ValueError("images is empty: calibration needs at least one image. Received: 0 images.")


def _check_images(batch: np.ndarray, tensor: Any) -> None:
    expected = tuple(tensor.shape[1:])
    fits = batch.ndim == len(expected) + 1 and all(e in (None, got) for e, got in zip(expected, batch.shape[1:]))
    if not fits:
        raise ValueError(
            f"images must have shape {(None, *expected)}, as the student's input. Received: {batch.shape}."
        )
    if not np.isfinite(batch).all():
        raise ValueError(
            "images contain NaN or infinity; a range estimated from them would be meaningless. Clean them first."
        )


def _observe(
    student: keras.Model, layers: list[QuantizeActivation], batches: Iterator[Any], verbose: int
) -> dict[str, Samples]:
    """Runs the batches and returns what every activation quantizer saw, by layer name."""
    points = {layer.name: [layer.get_input_at(index) for index in range(len(layer._inbound_nodes))] for layer in layers}
    probe = keras.Model(student.inputs, points)
    seen: dict[str, Samples] = {}
    with observing(student):
        run = tf.function(lambda batch: probe(batch, training=False))  # traced here, so that it observes; dropped after
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
    names = []
    for layer in student.layers:
        if isinstance(layer, QuantizeActivation) and not layer.quantizer.spec.symmetric:
            start = np.float32(2 * UNCALIBRATED_RANGE / layer.quantizer.spec.qmax)
            step_size = layer.variables_of_quantizer["step_size"].numpy()
            if np.all(step_size == start):
                names.append(layer.name)
    return names
