"""Weak and strong augmentation of image batches, in stateless tensor operations.

Images are grey or colour and may have any value range. The strong augmentation follows RandAugment
(E. D. Cubuk et al., arXiv 1909.13719): a number of operations drawn from a list for each image,
then cutout (T. DeVries, G. W. Taylor, arXiv 1708.04552).
"""

import dataclasses

import tensorflow as tf


def _uniform(
    shape: list, seed: tf.Tensor, use: int, low: float = 0.0, high: float = 1.0
) -> tf.Tensor:
    return tf.random.stateless_uniform(
        shape, tf.random.experimental.stateless_fold_in(seed, use), low, high
    )


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1. Received: {name}={value}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeakAugmentation:
    """Random shift and mirror.

        tf_fpq.two_views(labeled, weak=tf_fpq.WeakAugmentation(flip=False))

    `augmentation(images, seed)` takes images `[N, H, W, C]` and a seed of two integers.

    Attributes:
      shift: Largest shift, as a share of height and width. The default is the 4 pixels of 32 that
        are usual for CIFAR. Pixels from outside are copies of the edge.
      flip: Whether half of the images are mirrored left to right.
    """

    shift: float = 0.125
    flip: bool = True

    def __post_init__(self) -> None:
        _check_share("shift", self.shift)

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augmented images of the same shape and dtype."""
        if self.shift:
            images = _shift(images, seed, self.shift)
        if self.flip:
            mirrored = _uniform([tf.shape(images)[0], 1, 1, 1], seed, 2) < 0.5
            images = tf.where(mirrored, tf.reverse(images, [2]), images)
        return images


def _shift(images: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """Shifts each image by whole pixels: gathers rows and columns, clamped to the edge."""
    count = tf.shape(images)[0]
    for axis in (1, 2):
        size = tf.shape(images)[axis]
        largest = share * tf.cast(size, tf.float32)
        moves = tf.cast(
            tf.round(_uniform([count, 1], seed, axis - 1, -1.0, 1.0) * largest), tf.int32
        )
        places = tf.clip_by_value(tf.range(size)[tf.newaxis] + moves, 0, size - 1)
        images = tf.gather(images, places, axis=axis, batch_dims=1)
    return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrongAugmentation:
    """Weak augmentation, `operations` random operations per image, then cutout.

        tf_fpq.two_views(labeled, strong=tf_fpq.StrongAugmentation(magnitude=0.3))

    Each operation draws one of: nothing, rotation, shear, zoom, translation down or right,
    brightness, contrast. Its strength is uniform up to `magnitude`, to both sides.

    Attributes:
      weak: What comes first; None for nothing.
      operations: Number of operations per image. The default, and that of `magnitude`, are chosen
        here after RandAugment's 2 or 3 operations at half of its scale.
      magnitude: Strength at which an operation is drastic is 1: rotation by 30 degrees, shear by
        0.3, zoom by 0.3, translation by 0.3 of the size, brightness by a standard deviation of the
        image, contrast by a factor of 1.9.
      cutout: Side of the square that is cut out, as a share of height and width; its pixels take
        the image's mean.
    """

    weak: WeakAugmentation | None = WeakAugmentation()
    operations: int = 2
    magnitude: float = 0.5
    cutout: float = 0.5

    def __post_init__(self) -> None:
        _check_share("magnitude", self.magnitude)
        _check_share("cutout", self.cutout)
        if self.operations < 0:
            raise ValueError(
                f"operations must not be negative. Received: operations={self.operations}."
            )

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augmented images of the same shape and dtype."""
        dtype = images.dtype
        if self.weak is not None:
            images = self.weak(images, seed)
        images = tf.cast(images, tf.float32)
        for index in range(self.operations):
            images = _random_operation(
                images, tf.random.experimental.stateless_fold_in(seed, 10 + index), self.magnitude
            )
        if self.cutout:
            images = _cut_out(
                images, tf.random.experimental.stateless_fold_in(seed, 9), self.cutout
            )
        if dtype.is_integer:
            images = tf.clip_by_value(tf.round(images), dtype.min, dtype.max)
        return tf.cast(images, dtype)


# Choices 1 to 5 are geometric, 6 and 7 photometric, 0 leaves the image.
_CHOICES = 8


def _random_operation(images: tf.Tensor, seed: tf.Tensor, magnitude: float) -> tf.Tensor:
    """One operation per image, all images at once: those that were not drawn have strength 0."""
    count = tf.shape(images)[0]
    choice = tf.cast(_uniform([count], seed, 0, 0.0, float(_CHOICES)), tf.int32)
    amount = _uniform([count], seed, 1, -magnitude, magnitude)
    strengths = tf.where(
        tf.one_hot(choice, _CHOICES, on_value=True, off_value=False), amount[:, tf.newaxis], 0.0
    )
    images = _transform(images, *tf.unstack(strengths[:, 1:6], axis=1))
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    brightness, contrast = (
        strengths[:, index, tf.newaxis, tf.newaxis, tf.newaxis] for index in (6, 7)
    )
    deviation = tf.math.reduce_std(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * (1.0 + 0.9 * contrast) + deviation * brightness


def _transform(
    images: tf.Tensor,
    rotation: tf.Tensor,
    shear: tf.Tensor,
    zoom: tf.Tensor,
    down: tf.Tensor,
    right: tf.Tensor,
) -> tf.Tensor:
    """Affine map about the centre, bilinear, edges repeated; all strengths 0 is the identity."""
    height, width = (
        tf.cast(tf.shape(images)[1], tf.float32),
        tf.cast(tf.shape(images)[2], tf.float32),
    )
    angle, factor = rotation * (3.14159265 / 6.0), 1.0 + 0.3 * zoom
    cosine, sine = tf.cos(angle) * factor, tf.sin(angle) * factor
    a, b = cosine, -sine + 0.3 * shear
    c, d = sine, cosine
    middle_x, middle_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    e = middle_x - a * middle_x - b * middle_y + 0.3 * right * width
    f = middle_y - c * middle_x - d * middle_y + 0.3 * down * height
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, e, c, d, f, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _cut_out(images: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """Replaces a square around a random pixel by the image's mean."""
    inside = True
    for axis, shape in ((1, [1, -1, 1, 1]), (2, [1, 1, -1, 1])):
        size = tf.cast(tf.shape(images)[axis], tf.float32)
        centre = _uniform([tf.shape(images)[0], 1, 1, 1], seed, axis) * size
        place = tf.reshape(tf.range(size) + 0.5, shape)
        inside = tf.logical_and(inside, tf.abs(place - centre) < share * size / 2.0)
    return tf.where(inside, tf.reduce_mean(images, axis=[1, 2], keepdims=True), images)
