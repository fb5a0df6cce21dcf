"""What the tensors of a student hold while images run through it.

Memory does not grow with the number of images: only minima, maxima, moments and a subsample leave
TensorFlow's graph, so that a tensor is dropped as soon as its readers have run.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.calibration.calibration_images import CalibrationImages
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers.range_estimators import Reservoir, Samples
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, observing

# Values of one tensor and batch that an estimator looks at; the range is always exact. Chosen here:
# four batches fill a `Reservoir`, and a batch moves 64 KB a tensor out of TensorFlow.
SAMPLES_PER_BATCH = 16384
# As many consecutive numbers hold one without a common factor with any number of channels below 9.7
# million, a product of the first eight primes (Jacobsthal's function of it is 34).
_STRIDES = 34


@dataclasses.dataclass
class Moments:
    """Mean and variance per channel of what one batch norm reads, over all images.

    Attributes:
      images: Number of images.
    """

    images: int
    mean: np.ndarray
    variance: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both together (the parallel update of Chan, Golub and LeVeque, 1979)."""
        images = self.images + other.images
        share = other.images / images
        apart = other.mean - self.mean
        mean = self.mean + share * apart
        within = (1 - share) * self.variance + share * other.variance
        return Moments(images, mean, within + share * (1 - share) * np.square(apart))


@dataclasses.dataclass
class Observed:
    """What was seen.

    Attributes:
      samples: By name of an activation quantizer, what it would quantize.
      moments: By name of a batch norm, what it reads.
    """

    samples: dict[str, Samples]
    moments: dict[str, Moments]


def observe(student: keras.Model, images: CalibrationImages, verbose: int) -> Observed:
    """Runs images through a student whose quantizers pass values through.

    Args:
      student: The student.
      images: Its images.
      verbose: 1 shows a progress bar.
    """
    tensors = _inputs_of(student, QuantizeActivation)
    normalized = _inputs_of(student, keras.layers.BatchNormalization)
    probe = graph.functional(student.inputs, [tensors, normalized])
    reservoirs = {name: Reservoir() for name in tensors}
    moments: dict[str, Moments] = {}

    @tf.function(input_signature=[[tf.TensorSpec((None, *t.shape[1:])) for t in student.inputs]])
    def run(batch: list[tf.Tensor]) -> Any:  # traced while observing; dropped after
        values, inputs = probe(batch, training=False)
        return (
            {name: [_look(value) for value in found] for name, found in values.items()},
            {
                name: [_moments(value, student.get_layer(name)) for value in found]
                for name, found in inputs.items()
            },
        )

    with observing(student):
        progress = keras.utils.Progbar(None, verbose=verbose, unit_name="batch")
        for index, batch in enumerate(images):
            seen, statistics = run([tf.constant(array, tf.float32) for array in batch])
            for name, found in seen.items():
                for values, low, high in found:
                    reservoirs[name].add(values.numpy(), low.numpy(), high.numpy())
            for name in normalized:
                for mean, variance in statistics[name]:
                    new = Moments(len(batch[0]), *_doubles(mean, variance))
                    moments[name] = moments[name].merge(new) if name in moments else new
            progress.update(index + 1)
        if verbose:
            print()
    return Observed({name: found.samples() for name, found in reservoirs.items()}, moments)


def _inputs_of(student: keras.Model, layer_class: type[Any]) -> dict[str, list[Any]]:
    """The tensors that layers of a class read, by layer name.

    Not from the layers' own nodes: those of other models that share a layer count as well.
    """
    found: dict[str, list[Any]] = {}
    for call in graph.calls(student):
        if isinstance(call.layer, layer_class):
            found.setdefault(call.layer.name, []).append(call.inputs[0])
    return found


def _look(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A regular subsample of a tensor, its lowest and its highest value."""
    flat = tf.reshape(tf.cast(tensor, tf.float32), [-1])
    stride = _stride(tf.size(flat), _channels(tensor))
    return flat[::stride], tf.reduce_min(flat), tf.reduce_max(flat)


def _channels(tensor: tf.Tensor) -> int:
    return (tensor.shape[-1] or 1) if tensor.shape.rank > 1 else 1


def _stride(size: tf.Tensor, channels: int) -> tf.Tensor:
    """The lowest stride that leaves at most `SAMPLES_PER_BATCH` values and visits all channels.

    A stride visits all channels if it shares no factor with their number. Of 16 channels a stride
    of 4 would only ever see four; 5 sees all.
    """
    lowest = -(-size // SAMPLES_PER_BATCH)
    strides = lowest + tf.range(_STRIDES)
    primes = tf.constant(_prime_factors(channels), tf.int32)
    coprime = tf.reduce_all(strides[:, None] % primes != 0, axis=1)
    return tf.where(lowest == 1, 1, strides[tf.argmax(coprime)])


def _prime_factors(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        if number % divisor == 0:
            found.append(divisor)
        while number % divisor == 0:
            number //= divisor
        divisor += 1
    return found


def _moments(tensor: tf.Tensor, layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance per channel of a batch norm's input."""
    rank = tensor.shape.rank
    channels = {axis % rank for axis in tf.nest.flatten(layer.axis)}
    return tf.nn.moments(tensor, [axis for axis in range(rank) if axis not in channels])


def _doubles(*tensors: tf.Tensor) -> list[np.ndarray]:
    return [tensor.numpy().astype(np.float64) for tensor in tensors]
