"""Images and labels of every structure as checked batches. Needs no TensorFlow.

They are read as they are needed, so memory does not depend on their number.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import tqdm

from tflite_export import model_inputs as inputs_lib


def has_classes(shape: Sequence[int]) -> bool:
    """Whether a tensor is `[images, classes]`, and so has a best class for each image."""
    return len(shape) == 2 and shape[1] > 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some images as float32, and their class numbers, if known.

    There is one array for each input of the model, in its order.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, count: int) -> "Batch":
        """The first `count` images."""
        return Batch(
            tuple(array[:count] for array in self.inputs),
            None if self.labels is None else self.labels[:count],
        )


def batches(images: Any, shapes: Mapping[str, tuple[int, ...]], batch_size: int) -> Iterator[Batch]:
    """Checked batches of at most `batch_size` images.

    Args:
      images: Array `[images, *shape]`, the pair `(images, labels)`, or a `tf.data.Dataset` of
        batches of either; labels are class numbers or one-hot, of the first output where there are
        several. Of a model with several inputs, images are a tuple or list of arrays in the order
        of `shapes`, or a dict by its names; a pair with labels then is `((a, b), labels)`.
      shapes: Shape of one image for each input of the model, by name.
      batch_size: Largest batch.

    Raises:
      ValueError: If there is no image, shapes do not fit, or an image has a NaN or an infinity.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive. Received: batch_size={batch_size}.")
    count = 0
    for found, labels in _parts(images, tuple(shapes)):
        arrays, size = _checked(found, shapes)
        labels = None if labels is None else _class_numbers(labels, size)
        for start in range(0, size, batch_size):
            stop = min(start + batch_size, size)
            chunks = tuple(np.asarray(array[start:stop], np.float32) for array in arrays)
            if not all(np.isfinite(chunk).all() for chunk in chunks):
                raise ValueError(
                    f"images contain NaN or infinity, among images {count + start} to"
                    f" {count + stop - 1}."
                )
            yield Batch(chunks, None if labels is None else labels[start:stop])
        count += size
    if not count:
        raise ValueError(
            "images is empty: verification needs at least one image. Received: 0 images."
        )


def number_of(images: Any, names: Sequence[str]) -> int | None:
    """Number of images, where it is known without reading them; `names` are the model's inputs."""
    if hasattr(images, "as_numpy_iterator"):
        return None
    found, _ = _without_labels(images, names)
    first, *_ = inputs_lib.in_order(found, names)
    return len(first) if np.ndim(first) else None  # what is no array is refused when it is read


def shown(
    images: Any,
    shapes: Mapping[str, tuple[int, ...]],
    batch_size: int,
    verbose: int,
    label: str = "",
    most: int | None = None,
) -> Iterator[Batch]:
    """`batches` of the first `most` images, with a progress bar called `label`.

    All images where `most` is None; no bar where `verbose` is 0.
    """
    counts = [count for count in (number_of(images, tuple(shapes)), most) if count is not None]
    with tqdm.tqdm(
        total=min(counts, default=None),
        desc=label,
        unit="image",
        disable=not verbose,
        leave=False,
        mininterval=1,
    ) as bar:
        found = batches(images, shapes, batch_size)
        for batch in found if most is None else _first(found, most):
            yield batch
            bar.update(len(batch))


def _first(found: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Batches of `count` images in all; what is behind them is not read."""
    for batch in found:
        yield batch.first(count)
        count -= len(batch)
        if count <= 0:
            break


def _parts(images: Any, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    elements = images.as_numpy_iterator() if hasattr(images, "as_numpy_iterator") else [images]
    for element in elements:
        found, labels = _without_labels(element, names)
        yield inputs_lib.in_order(found, names), labels


def _without_labels(element: Any, names: Sequence[str]) -> tuple[Any, Any]:
    """Images and labels.

    A tuple of arrays is a pair with labels for a model of one input, and the inputs' arrays for
    several.
    """
    if not isinstance(element, tuple):
        return element, None
    paired = element and isinstance(element[0], tuple | list | Mapping)
    if len(names) > 1 and not paired:
        return element, None
    if len(element) not in (2, 3):
        raise ValueError(
            f"images must be an array or a pair (images, labels). Received: {len(element)} parts."
        )
    return element[0], element[1]


def _checked(
    arrays: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[np.ndarray, ...], int]:
    """The arrays of all inputs, and the number of their images."""
    names, found = tuple(shapes), tuple(np.asarray(array) for array in arrays)
    for name, array in zip(names, found, strict=True):
        shape = shapes[name]
        fits = array.ndim and array.shape[1:] == tuple(shape)
        if not fits or array.dtype.kind not in "fiub":
            raise ValueError(
                f"{inputs_lib.title(name, names)} must be numbers of shape {(None, *shape)}, as the"
                f" model's input; a Dataset must be batched. Received: shape {array.shape}, dtype"
                f" {array.dtype}."
            )
    return found, inputs_lib.check_lengths(found, names)


def _class_numbers(labels: Any, count: int) -> np.ndarray:
    if isinstance(labels, tuple) and any(map(np.ndim, labels)):  # one array for each output
        labels, *_ = labels
    labels = np.asarray(labels)
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"labels must be class numbers. Received: labels of dtype {labels.dtype}.")
    if has_classes(labels.shape):  # one-hot
        labels = labels.argmax(1)
    labels = labels.ravel()
    if len(labels) != count:
        raise ValueError(
            f"labels must be one per image. Received: {len(labels)} labels for {count} images."
        )
    return labels
