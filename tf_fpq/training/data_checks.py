"""Checks of the data of `fit`, each with a message of one sentence.

Without them such data would train the wrong thing in silence, or end in an error of many lines from
inside TensorFlow.

What an array or the specification of a dataset shows is checked before the training; no image is
read twice for it, so that random data pipelines give the same images as without the checks.
"""

from collections.abc import Iterator, Sequence
import contextlib
import re
from typing import Any
import warnings

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tf_fpq.training import two_views

# How many times larger than the calibrated range the images' root mean square may be. Images within
# the range are at most 1, and calibration clips a few outliers. Chosen here, between that and what
# forgotten preprocessing makes: bytes of 0 to 255 on a range of 0 to 1 are at some 130.
FAR_OUTSIDE = 1.5


def check(student: keras.Model, loss: Any, x: Any, y: Any) -> None:
    """Checks shapes, types and, of arrays, values.

    Args:
      student: The model that trains; labels are checked if it has one output.
      loss: What `compile` got.
      x: What `fit` got: an array or a `tf.data.Dataset`. Others are not checked.
      y: Labels of an array.

    Raises:
      ValueError: Naming what does not fit.
    """
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        x, y = spec[:2] if isinstance(spec, tuple) and len(spec) > 1 else (spec, None)
    x = two_views.evaluated(x)
    images = [part for part in tf.nest.flatten(x) if _is_array(part)]
    if not isinstance(x, dict) and len(images) == len(student.inputs):
        for part, tensor in zip(images, student.inputs, strict=True):
            _check_images(part, tensor)
    if images and y is None and loss:  # Keras keeps {} where there is none
        raise ValueError(
            "y must be given, as the loss compares with it; without labels compile without a loss."
            " Received: y=None."
        )
    if isinstance(y, np.ndarray) and all(isinstance(part, np.ndarray) for part in images):
        _check_lengths([len(part) for part in images], len(y))
    if _is_array(y) and len(student.outputs) == 1:
        _check_labels(y, student.outputs[0].shape, loss)


def _is_array(part: Any) -> bool:
    """Whether `part` is an array, a tensor or the specification of one."""
    return hasattr(part, "shape") and hasattr(part, "dtype")


def _check_images(images: Any, tensor: Any) -> None:
    shape, expected = tf.TensorShape(images.shape), tf.TensorShape(tensor.shape)
    if tf.as_dtype(images.dtype) == tf.string or not expected.is_compatible_with(shape):
        raise ValueError(
            f"x must be numbers of shape {_text(expected)}, as the student's input"
            f" {tensor.name!r}. Received: x of shape {_text(shape)} and type {_dtype(images)}."
        )


def _check_lengths(images: Sequence[int], labels: int) -> None:
    if set(images) != {labels} or not labels:
        raise ValueError(
            "x and y must have as many images as labels, and at least one. Received:"
            f" {', '.join(map(str, images))} images and {labels} labels."
        )


def _check_labels(labels: Any, output: tf.TensorShape, loss: Any) -> None:
    dtype, shape = tf.as_dtype(labels.dtype), tf.TensorShape(labels.shape)
    received = f"Received: y of shape {_text(shape)} and type {_dtype(labels)}"
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise ValueError(f"y must be numbers, classes count from 0. {received}.")
    if isinstance(labels, np.ndarray) and dtype.is_floating and not np.isfinite(labels).all():
        raise ValueError(f"y must be finite. {received}, with NaN or infinity.")
    kind, classes = _kind(loss), output[-1]
    if kind == "sparse" and shape.rank == output.rank and shape[-1] not in (1, None):
        raise ValueError(
            "y must hold a class number for each image, as a sparse loss reads it. One-hot labels"
            f" go with CategoricalCrossentropy, or as np.argmax(y, -1). {received}."
        )
    if kind == "one-hot" and shape.rank == 1:
        raise ValueError(
            "y must be one-hot, as CategoricalCrossentropy reads it. Class numbers go with"
            f" SparseCategoricalCrossentropy. {received}."
        )
    if kind == "sparse" and classes and isinstance(labels, np.ndarray):
        ignored = loss.get_config().get("ignore_class") if hasattr(loss, "get_config") else None
        _check_range(labels[labels != ignored], classes)


def _check_range(labels: np.ndarray, classes: int) -> None:
    if not labels.size:
        return
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"y must be class numbers from 0 to {classes - 1}, as the student has {classes}"
            f" classes. Received: y from {low} to {high}."
        )


def _kind(loss: Any) -> str | None:
    """Which labels a loss reads: "sparse", "one-hot" or another kind, None."""
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    return {
        "sparse_categorical_crossentropy": "sparse",
        "categorical_crossentropy": "one-hot",
    }.get(name)


def _text(shape: tf.TensorShape) -> str:
    return "unknown" if shape.rank is None else str(tuple(shape))


def _dtype(array: Any) -> str:
    return tf.as_dtype(array.dtype).name


# What TensorFlow says of a label that is no class: its kernel, and the operations that stand for
# the kernel where op determinism is on.
_NO_CLASS = (
    r"label value of (-?\d+) which is outside",
    r"indices\[[\d, ]*\] = (-?\d+) is not in \[0, \d+\)[^]]*CrossEntropy",
)


@contextlib.contextmanager
def explained(student: keras.Model) -> Iterator[None]:
    """Within the context, TensorFlow's error about a label becomes a ValueError that says it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for found in filter(None, (re.search(words, str(error)) for words in _NO_CLASS)):
            _check_range(np.array([int(found[1])]), student.outputs[0].shape[-1])
        raise


def warn_of_range(student: keras.Model, size: float) -> None:
    """Warns if the images' root mean square, `size`, is far outside the input's calibrated range.

    They are scaled otherwise then than those that the student was calibrated with, such as bytes
    from 0 to 255 instead of numbers from 0 to 1.
    """
    ends = _input_range(student)
    if ends is not None and size > FAR_OUTSIDE * max(-ends[0], ends[1]):
        warnings.warn(
            f"The images are far outside the range of the student's input, {ends[0]:.3g} to"
            f" {ends[1]:.3g}: their root mean square is {size:.3g}. Preprocess them as those of"
            " tf_fpq.calibrate, or calibrate with these.",
            stacklevel=2,
        )


def _input_range(student: keras.Model) -> tuple[float, float] | None:
    """The ends of the grid of a student's only input."""
    readers: Sequence[graph.Call] = graph.readers(student).get(id(student.inputs[0]), [])
    if len(student.inputs) != 1 or len(readers) != 1:
        return None
    layer = readers[0].layer
    if not isinstance(layer, QuantizeActivation):
        return None
    step_size, zero_point = (
        float(tf.convert_to_tensor(part))
        for part in layer.quantizer.grid(layer.variables_of_quantizer)
    )
    spec = layer.quantizer.spec
    return (spec.qmin - zero_point) * step_size, (spec.qmax - zero_point) * step_size
