"""The images of a calibration.

They are taken from whatever holds them, checked, and handed out in batches that fit in memory.
"""

from collections.abc import Iterator, Mapping
import math
from typing import Any
import warnings

import numpy as np
import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation

# Bytes of the largest tensor that a forward pass may make. A convolution, its batch norm and its
# activation hold a handful of such tensors at once: a pass of EfficientNet-B0 at 224 x 224 then
# needs half a gigabyte, and its 14 images are as fast, each, as 64 at once.
LARGEST_TENSOR = 2**26
# Of `training.two_views`, the view that is closest to the images as they are.
WEAK_VIEW = "weak"

Batch = list[np.ndarray]


class CalibrationImages:
    """Batches of images, one array per input of the student; iterated as often as needed.

    Attributes:
      range: Lowest and highest value of the images that were handed out.
    """

    def __init__(self, student: keras.Model, images: Any, batch_size: int):
        """Wraps `images`.

        Args:
          student: The model that they are for.
          images: See `calibrate`.
          batch_size: Images at once, for arrays.

        Raises:
          ValueError: If `batch_size` is not positive, or arrays are none or of several lengths.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}.")
        self._student = student
        self._images = images
        self._batch_size = batch_size
        self._arrays = None if isinstance(images, tf.data.Dataset) else self._checked_arrays()
        self.range = (math.inf, -math.inf)
        self._bytes: dict[str, None] = {}

    def __iter__(self) -> Iterator[Batch]:
        """Yields the arrays of each batch, in the order of the student's inputs.

        Raises:
          ValueError: If there is no image, an image has a NaN or an infinity, or shapes do not fit.
        """
        count = 0
        for batch in self._whole_batches():
            for arrays in self._parts(batch):
                count += 1
                yield arrays
        if not count:
            raise ValueError(
                "images is empty: calibration needs at least one image. Received: 0 images."
            )

    def warn_about_bytes(self, stacklevel: int) -> None:
        """Warns if images were bytes and no layer of the student brings bytes to its own range."""
        if self._bytes:
            warnings.warn(
                f"images for {', '.join(self._bytes)} are uint8, 0 to 255, and the student has no"
                " Rescaling or Normalization layer that reads them, so the ranges are those of"
                " bytes. If it was trained on other values, preprocess the images in the same way;"
                ' else pass images.astype("float32").',
                stacklevel=stacklevel + 1,
            )

    def _checked_arrays(self) -> Batch:
        what = (
            "images must be an array [images, ...]. Received: images of type"
            f" {type(self._images).__name__}."
        )
        try:
            arrays = [np.asarray(part) for part in self._in_order(self._images)]
        except ValueError as error:
            if "inhomogeneous" in str(error):  # NumPy's, of a list whose parts are no one array
                raise ValueError(what) from error
            raise
        if any(array.ndim == 0 for array in arrays):
            raise ValueError(what)
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1:
            raise ValueError(f"All inputs must have as many images. Received: {lengths}.")
        return arrays

    def _whole_batches(self) -> Iterator[Batch]:
        if self._arrays is None:
            for element in self._images:
                first = element[0] if isinstance(element, tuple) else element
                yield [np.asarray(part) for part in self._in_order(first)]
            return
        for start in range(0, len(self._arrays[0]), self._batch_size):
            yield [array[start : start + self._batch_size] for array in self._arrays]

    def _in_order(self, images: Any) -> list[Any]:
        """The parts of `images` in the order of the student's inputs."""
        names = graph.input_keys(self._student)
        if isinstance(images, Mapping):
            if len(names) == 1 and WEAK_VIEW in images and names[0] not in images:
                return [images[WEAK_VIEW]]
            if set(images) != set(names):
                raise ValueError(
                    f"images must have an array for each input, {', '.join(names)}. Received:"
                    f" {', '.join(map(str, images)) or 'none'}."
                )
            return [images[name] for name in names]
        several = isinstance(images, list | tuple) and (
            len(names) > 1 or (len(images) == 1 and np.ndim(images[0]) > 0)
        )
        parts = list(images) if several else [images]
        if len(parts) != len(names):
            raise ValueError(
                f"images must be a tuple of {len(names)} arrays, for the inputs"
                f" {', '.join(names)}, or a dict by these names. Received: {len(parts)} array(s)."
            )
        return parts

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """`batch` in the fewest equal parts that fit in memory."""
        student = self._student
        for array, tensor, name in zip(batch, student.inputs, student.input_names, strict=True):
            _check(array, tensor)
            if array.dtype == np.uint8 and not _is_rescaled(student, tensor):
                self._bytes[name] = None
        size = len(batch[0])
        if not size:
            return
        self.range = (
            min(self.range[0], *(array.min() for array in batch)),
            max(self.range[1], *(array.max() for array in batch)),
        )
        most = max(1, LARGEST_TENSOR // _bytes_of_largest_tensor(self._student, batch))
        part = math.ceil(size / math.ceil(size / most))
        for start in range(0, size, part):
            yield [array[start : start + part] for array in batch]


def _bytes_of_largest_tensor(student: keras.Model, batch: Batch) -> int:
    """Bytes that the largest tensor of a forward pass has for one image.

    A side that the model leaves open counts as that of the images: few layers enlarge it.
    """
    sides = max((array.shape[1:] for array in batch), key=len)
    shapes = [tensor.shape[1:] for call in graph.calls(student) for tensor in call.outputs]
    sizes = [
        math.prod(
            size if size is not None else sides[min(axis, len(sides) - 1)]
            for axis, size in enumerate(shape)
        )
        for shape in shapes
    ]
    return 4 * max(sizes, default=1)


def _check(batch: np.ndarray, tensor: Any) -> None:
    expected = tuple(tensor.shape[1:])
    fits = batch.ndim == len(expected) + 1 and all(
        e in (None, got) for e, got in zip(expected, batch.shape[1:])
    )
    if not fits:
        raise ValueError(
            f"images must have shape {(None, *expected)}, as the student's input. Received:"
            f" {batch.shape}."
        )
    if not (np.issubdtype(batch.dtype, np.number) or batch.dtype == bool):
        raise ValueError(f"images must be numbers. Received: images of dtype {batch.dtype}.")
    if not np.isfinite(batch).all():
        raise ValueError(
            "images contain NaN or infinity; a range estimated from them would be meaningless."
            " Clean them first."
        )


def _is_rescaled(student: keras.Model, tensor: Any) -> bool:
    """Whether all that reads `tensor`, past its quantizer, are layers that scale and shift."""
    readers = graph.readers(student)
    found = readers.get(id(tensor), [])
    while len(found) == 1 and (
        isinstance(found[0].layer, QuantizeActivation)
        or roles.role(found[0].layer) is roles.Role.SAME_GRID
    ):
        found = readers.get(id(found[0].outputs[0]), [])
    scales = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.BatchNormalization)
    return bool(found) and all(isinstance(call.layer, scales) for call in found)
