"""The float teacher: which of its outputs a step needs, and in which precision.

The outputs may be computed once for all epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.methods.base import Method
from tf_fpq.training import folded_teacher, two_views

TEACHER_DTYPES = ("float32", "float16", "bfloat16")

# Teacher outputs that `cache_teacher` keeps in memory, at most. Chosen here: predictions for
# CIFAR-10 are 2 MB, and CSD's features of it in a ResNet-18 would be more than 100 GB.
CACHE_LIMIT_BYTES = 4 * 2**30


def graph_for(
    methods: Sequence[Method], teacher: keras.Model | None, dtype: str | None
) -> keras.Model | None:
    """The `teacher_graph` that the methods need; None if they need no teacher."""
    if not any(method.needs_teacher for method in methods):
        return None
    return teacher_graph(teacher, shown_to(methods), dtype)


def teacher_graph(
    teacher: keras.Model, shown: Mapping[str, float | None], dtype: str | None = None
) -> keras.Model:
    """A model that computes what the teacher computes in inference.

    Its outputs are `{"predictions": ..., "features": {name: output}}`. Its batch norms are folded
    into its kernels, see `folded_teacher`. The teacher itself is not changed.

    Args:
      teacher: A functional model.
      shown: Names of the calls whose outputs are features, as `folded_teacher.folded_graph` takes
        them.
      dtype: None as the teacher was made; "float16" or "bfloat16" copies it into layers that
        compute in half precision (their weights stay float32).

    Raises:
      ValueError: If the dtype is unknown, or if the teacher is no functional model but features are
        asked of it.
    """
    if dtype is not None and dtype not in TEACHER_DTYPES:
        raise ValueError(
            f"teacher_dtype must be one of {', '.join(TEACHER_DTYPES)}. Received:"
            f" teacher_dtype={dtype!r}."
        )
    if not graph.is_functional(teacher):
        raise ValueError(
            f"teacher {teacher.name!r} must be a built Sequential or Functional model. Received:"
            f" {type(teacher).__name__}. Call it on a keras.Input and wrap that in keras.Model."
        )
    if dtype is not None:
        teacher = _with_dtype(teacher, dtype)
    return folded_teacher.folded_graph(teacher, shown)


def shown_to(methods: Sequence[Method]) -> dict[str, float | None]:
    """The features that the methods compare, in the form that `folded_teacher.folded_graph` takes.

    A feature has None if a method needs it exactly. Else it has the variance from which on all that
    compare it take an affine map of it.
    """
    asked: dict[str, list[float | None]] = {}
    for method in methods:
        for name in method.teacher_features:
            asked.setdefault(name, []).append(method.affine_features_from)
    return {name: _largest(least) for name, least in asked.items()}


def _largest(least: Sequence[float | None]) -> float | None:
    """None where one of them is None."""
    known = [variance for variance in least if variance is not None]
    return max(known) if len(known) == len(least) else None


def _with_dtype(teacher: keras.Model, dtype: str) -> keras.Model:
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    return graph.clone(teacher, clone)


def with_outputs(
    data: Any, labels: Any, teacher: keras.Model, batch_size: int | None
) -> tuple[Any, Any]:
    """Data of `fit` together with the outputs of the teacher, each computed once.

    Args:
      data: Array of images, or a `tf.data.Dataset` of batches `(images, labels, ...)`.
      labels: What `fit` got as `y`.
      teacher: A model from `teacher_graph`.
      batch_size: Images that run at once, for an array.

    Returns:
      `x` and `y` for `fit`: images have become `{"images": ..., "teacher": ...}`. An array is
      shuffled by `fit` as ever. The batches of a dataset are those of its first epoch, in the order
      of its first epoch.

    Raises:
      ValueError: If the data has two views or does not end, or the outputs would not fit the memory
        limit.
      TypeError: If the data is neither.
    """
    if isinstance(data, tf.data.Dataset):
        return _dataset_with_outputs(data, teacher), labels
    if not isinstance(data, np.ndarray | tf.Tensor):
        raise TypeError(
            "cache_teacher=True needs x as one array or a tf.data.Dataset. Received: x of type"
            f" {type(data).__name__}."
        )
    _check_size(teacher, len(data))
    outputs = teacher.predict(data, batch_size=batch_size or 32, verbose=0)
    return {"images": data, "teacher": outputs}, labels


def images_of(x: Any) -> Any:
    """The images in what `with_outputs` made; anything else as it is.

    `validation_split`, for example, takes a part of what `with_outputs` made.
    """
    cached = isinstance(x, dict) and set(x) == {"images", "teacher"}
    return x["images"] if cached else x


def _dataset_with_outputs(data: tf.data.Dataset, teacher: keras.Model) -> tf.data.Dataset:
    first = data.element_spec[0] if isinstance(data.element_spec, tuple) else data.element_spec
    if two_views.has_two_views(first):
        raise ValueError(
            "cache_teacher=True does not go with augmented views: the teacher must see what the"
            " student sees."
        )
    batches = int(data.cardinality())
    if batches == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "cache_teacher=True needs a dataset that ends, as the teacher's outputs stay in memory."
            " Leave .repeat() out; fit begins a dataset again in every epoch. Received: an endless"
            " dataset."
        )
    size = first.shape[0] if isinstance(first, tf.TensorSpec) else None
    if batches > 0 and size:
        _check_size(teacher, batches * size)

    def add(images: Any, *rest: Any) -> Any:
        return {"images": images, "teacher": teacher(images, training=False)}, *rest

    return data.map(add, num_parallel_calls=2).cache()


def _check_size(teacher: keras.Model, images: int) -> None:
    shapes = [tensor.shape[1:] for tensor in tf.nest.flatten(teacher.output)]
    per_image = sum(4 * (shape.num_elements() or 0) for shape in shapes)
    if images * per_image > CACHE_LIMIT_BYTES:
        raise ValueError(
            f"cache_teacher=True would keep {images * per_image / 2**30:.1f} GiB of teacher outputs"
            f" ({per_image:,} bytes an image, {images:,} images), above the limit of"
            f" {CACHE_LIMIT_BYTES / 2**30:.0f} GiB. Train without the cache; KnowledgeDistillation"
            " alone needs predictions only."
        )
