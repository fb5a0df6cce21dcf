"""The data of consistency training: two augmented views of every image.

Labeled batches may be zipped with unlabeled ones. The input pipeline hands a step its views under
fixed keys in place of the images. In the second form the N labels are those of the first N images:

    {"weak": [N, ...], "strong": [N, ...]}                                 with labels [N]
    {..., "unlabeled_weak": [M, ...], "unlabeled_strong": [M, ...]}        with labels [N]

`QatModel` reads them with `split`. Plain images are a view for both purposes.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_fpq.autograph import translated
from tf_fpq.methods.base import Batch
from tf_fpq.training.augmentation import StrongAugmentation, WeakAugmentation

WEAK, STRONG = "weak", "strong"
UNLABELED_WEAK, UNLABELED_STRONG = "unlabeled_weak", "unlabeled_strong"

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def has_two_views(x: Any) -> bool:
    """Whether `x`, the first part of a batch, holds views by the keys above."""
    return isinstance(x, dict) and WEAK in x and STRONG in x


def split(x: Any) -> Batch:
    """The images of a step: labeled ones first, then the unlabeled."""
    if not has_two_views(x):
        return Batch(images=x, weak_images=x)
    if UNLABELED_STRONG not in x:
        return Batch(images=x[STRONG], weak_images=x[WEAK])
    images = tf.concat([x[STRONG], x[UNLABELED_STRONG]], axis=0)
    weak_images = tf.concat([x[WEAK], x[UNLABELED_WEAK]], axis=0)
    return Batch(images=images, weak_images=weak_images, labeled=tf.shape(x[STRONG])[0])


def evaluated(x: Any) -> Any:
    """The images that evaluation sees: of two views the weak one of the labeled images.

    It is the one that is closer to an image as it is.
    """
    return x[WEAK] if has_two_views(x) else x


def two_views(
    labeled: tf.data.Dataset,
    unlabeled: tf.data.Dataset | None = None,
    *,
    weak: Augmentation | None = None,
    strong: Augmentation | None = None,
    seed: int | None = None,
) -> tf.data.Dataset:
    """A dataset of batches with a weak and a strong view of each image.

        views = tf_fpq.two_views(labeled, unlabeled, seed=0)
        tf_fpq.QatModel(student, methods=tf_fpq.cr()).fit(views)

    Args:
      labeled: Batches `(images, labels)` or `(images, labels, sample_weights)`, images `[N, H, W,
        C]` (grey or colour), already preprocessed and not augmented.
      unlabeled: Batches of images, or tuples that begin with images (labels are dropped); repeated
        for as long as `labeled` lasts.
      weak: Makes the view of the EMA teacher: `augmentation(images, seed)`; default
        `WeakAugmentation()`.
      strong: Makes the view of the student; default `StrongAugmentation()`.
      seed: Seed of all augmentation; epochs differ. None draws one.

    Returns:
      Batches for `QatModel.fit`; see the module.

    Raises:
      ValueError: If a dataset does not hold batches of images.
    """
    weak, strong = weak or WeakAugmentation(), strong or StrongAugmentation()
    _check("labeled", labeled, tuple_needed=True)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(
        8, drop_remainder=True
    )
    parts = [labeled, seeds]
    if unlabeled is not None:
        _check("unlabeled", unlabeled, tuple_needed=False)
        parts.append(unlabeled.map(lambda *batch: batch[0]).repeat())

    def make(
        batch: tuple[tf.Tensor, ...], numbers: tf.Tensor, more: tf.Tensor | None = None
    ) -> tuple[Any, ...]:
        numbers = tf.reshape(tf.bitcast(numbers, tf.int32), [-1])
        images, *rest = batch
        weaken, strengthen = translated(weak), translated(strong)
        result = {WEAK: weaken(images, numbers[0:2]), STRONG: strengthen(images, numbers[2:4])}
        if more is not None:
            result[UNLABELED_WEAK] = weaken(more, numbers[4:6])
            result[UNLABELED_STRONG] = strengthen(more, numbers[6:8])
        return result, *rest

    return (
        tf.data.Dataset.zip(tuple(parts))
        .map(make, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _check(name: str, dataset: tf.data.Dataset, tuple_needed: bool) -> None:
    spec = dataset.element_spec
    if tuple_needed and not (isinstance(spec, tuple) and len(spec) in (2, 3)):
        raise ValueError(f"{name} must hold batches (images, labels). Received: elements {spec}.")
    images = spec[0] if isinstance(spec, tuple) else spec
    if not isinstance(images, tf.TensorSpec) or images.shape.rank != 4:
        raise ValueError(
            f"{name} must hold batches of images [N, H, W, C]. Received: images {images}."
        )
