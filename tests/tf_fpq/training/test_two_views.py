"""Two views per image, labeled and unlabeled data, and what augmentation keeps."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import images, labels
from tf_fpq.training.augmentation import StrongAugmentation, WeakAugmentation
from tf_fpq.training.two_views import split, two_views


def batches(count: int = 12, size: int = 4) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((images(count), labels(count))).batch(size)


def same(images, seed):
    return images


def test_views_of_a_batch_and_its_labels():
    data = list(two_views(batches(), weak=same, strong=lambda x, seed: -x, seed=0))
    assert len(data) == 3
    for (x, y), (image, label) in zip(data, batches()):
        np.testing.assert_array_equal(x["weak"], image)
        np.testing.assert_array_equal(x["strong"], -image)
        np.testing.assert_array_equal(y, label)


def test_unlabeled_images_repeat_for_as_long_as_there_are_labels():
    unlabeled = tf.data.Dataset.from_tensor_slices(images(10, seed=9)).batch(5)
    data = list(two_views(batches(), unlabeled, weak=same, strong=same, seed=0))
    assert [x["unlabeled_weak"].shape[0] for x, _ in data] == [5, 5, 5]
    np.testing.assert_array_equal(data[0][0]["unlabeled_strong"], data[2][0]["unlabeled_strong"])
    batch = split(data[0][0])
    assert batch.images.shape[0] == 9 and int(batch.labeled) == 4


def test_labels_of_unlabeled_data_are_dropped():
    x, _ = next(
        iter(
            two_views(
                batches(), batches().map(lambda i, label: (i, label / 0)), weak=same, strong=same
            )
        )
    )
    assert set(x) == {"weak", "strong", "unlabeled_weak", "unlabeled_strong"}


def test_plain_images_are_both_views():
    batch = split(images(3))
    assert batch.images is batch.weak_images and batch.labeled is None


def test_seed_repeats_and_epochs_differ():
    def views(seed):
        data = two_views(batches(), seed=seed)
        return [np.concatenate([x["strong"] for x, _ in data]) for _ in range(2)]

    first, second = views(1), views(1)
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[0] - first[1]).max() > 0
    assert np.abs(first[0] - views(2)[0]).max() > 0


@pytest.mark.parametrize("augmentation", [WeakAugmentation(), StrongAugmentation()])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [tf.float32, tf.uint8])
def test_shape_dtype_and_change(augmentation, channels, dtype):
    x = tf.cast(tf.random.stateless_uniform([16, 12, 10, channels], [0, 1]) * 200, dtype)
    result = augmentation(x, tf.constant([3, 4]))
    assert result.shape == x.shape and result.dtype == dtype
    assert (result != x).numpy().any()
    np.testing.assert_array_equal(result, augmentation(x, tf.constant([3, 4])))
    assert (result != augmentation(x, tf.constant([3, 5]))).numpy().any()


def test_switched_off_augmentation_is_the_identity():
    x = images(8)
    seed = tf.constant([0, 1])
    np.testing.assert_array_equal(WeakAugmentation(shift=0.0, flip=False)(x, seed), x)
    nothing = StrongAugmentation(weak=None, operations=0, cutout=0.0)
    np.testing.assert_array_equal(nothing(tf.constant(x), seed), x)
    still = StrongAugmentation(weak=None, operations=3, magnitude=0.0, cutout=0.0)
    np.testing.assert_allclose(still(tf.constant(x), seed), x, atol=1e-5)


def test_half_of_the_images_are_mirrored():
    x = tf.tile(
        tf.range(8, dtype=tf.float32)[tf.newaxis, tf.newaxis, :, tf.newaxis], [1000, 2, 1, 1]
    )
    result = WeakAugmentation(shift=0.0)(x, tf.constant([0, 1])).numpy()
    mirrored = (result == x.numpy()[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (result == x.numpy()).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_shift_moves_whole_pixels_up_to_its_share():
    x = tf.tile(
        tf.range(16, dtype=tf.float32)[tf.newaxis, :, tf.newaxis, tf.newaxis], [500, 1, 16, 1]
    )
    result = WeakAugmentation(shift=0.25, flip=False)(x, tf.constant([0, 1])).numpy()
    moves = result[:, 8, 0, 0] - 8
    assert set(np.unique(moves)) == set(range(-4, 5))


def test_cutout_takes_a_square_of_its_share():
    x = tf.cast(tf.random.stateless_uniform([200, 16, 16, 1], [5, 6]), tf.float32)
    result = StrongAugmentation(weak=None, operations=0, cutout=0.5)(x, tf.constant([0, 1])).numpy()
    changed = (result != x.numpy()).sum(axis=(1, 2, 3))
    assert (
        changed.max() == 64 and changed.min() >= 16
    )  # 8x8 pixels inside, a quarter of it in a corner


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WeakAugmentation(shift=2.0), "shift must be between 0 and 1. Received: shift=2.0"),
        (lambda: StrongAugmentation(magnitude=-1.0), "magnitude must be between 0 and 1"),
        (lambda: StrongAugmentation(cutout=1.1), "cutout must be between 0 and 1"),
        (lambda: StrongAugmentation(operations=-1), "operations must not be negative"),
        (
            lambda: two_views(batches().map(lambda x, y: x)),
            r"labeled must hold batches \(images, labels\)",
        ),
        (
            lambda: two_views(batches().unbatch()),
            r"labeled must hold batches of images \[N, H, W, C\]",
        ),
        (
            lambda: two_views(batches(), batches().unbatch()),
            r"unlabeled must hold batches of images",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
