"""Mixtures of images and labels, the same for both views and for teacher and student."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import images, labels, pair
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import KnowledgeDistillation
from tf_fpq.training import mixup as lib


def batches(count=32, size=8):
    return tf.data.Dataset.from_tensor_slices((images(count), labels(count))).batch(size)


def only(dataset):
    (element,) = dataset.as_numpy_iterator()
    return element


def test_images_and_labels_are_mixed_by_one_share_with_those_before_them():
    x, y = images(16), labels(16)
    mixed, shares = only(tf_fpq.mixup(batches(16, 16), 4, seed=3))
    one_hot = np.eye(4)[y]
    before = np.roll(x, 1, axis=0)
    # The share of each image, from one pixel of it.
    place = np.abs(x - before).reshape(16, -1).argmax(axis=1)
    flat = [part.reshape(16, -1)[np.arange(16), place] for part in (mixed, x, before)]
    share = (flat[0] - flat[2]) / (flat[1] - flat[2])
    assert ((share >= 0) & (share <= 1)).all() and np.ptp(share) > 0.3
    c = share[:, None, None, None]
    np.testing.assert_allclose(mixed, c * x + (1 - c) * before, atol=1e-5)
    c = share[:, None]
    np.testing.assert_allclose(shares, c * one_hot + (1 - c) * np.roll(one_hot, 1, 0), atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


def test_mixtures_follow_from_the_seed_and_differ_by_epoch():
    first = tf_fpq.mixup(batches(), 4, seed=1)
    epochs = [np.concatenate([x for x, _ in first.as_numpy_iterator()]) for _ in range(2)]
    again = tf_fpq.mixup(batches(), 4, seed=1)
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(
        epochs[0], np.concatenate([x for x, _ in again.as_numpy_iterator()])
    )


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.2, 1 / 5.6), (4.0, 1 / 36)])
def test_shares_are_of_the_beta_distribution(alpha, variance):
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1))."""
    shares = lib._shares(tf.constant(20_000), alpha, tf.constant([1, 2], tf.int64)).numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(variance, rel=0.03)


def test_a_tiny_alpha_leaves_images_as_they_are_or_takes_the_others():
    shares = lib._shares(tf.constant(1000), 1e-4, tf.constant([1, 2], tf.int64)).numpy()
    assert np.isfinite(shares).all() and (np.minimum(shares, 1 - shares) < 1e-3).mean() > 0.99


def test_two_views_are_mixed_alike_and_unlabeled_ones_among_themselves():
    x = {"weak": images(8), "strong": 10 * images(8)}
    x |= {"unlabeled_weak": images(5), "unlabeled_strong": 10 * images(5)}
    data = tf.data.Dataset.from_tensors((x, labels(8)))
    views, _ = only(tf_fpq.mixup(data, 4, seed=0))
    assert views.keys() == x.keys()
    for name in ("", "unlabeled_"):
        np.testing.assert_allclose(views[f"{name}strong"], 10 * views[f"{name}weak"], rtol=1e-5)
    assert (views["weak"][:5] != views["unlabeled_weak"]).any()


def test_the_teacher_reads_the_mixtures_that_the_student_reads():
    teacher, student = pair()
    seen = []

    class Spy(KnowledgeDistillation):
        def targets(self, batch):
            seen.append(batch.images)

        def add_step_losses(self, step):
            seen.append(step.teacher_predictions)
            super().add_step_losses(step)

    model = tf_fpq.QatModel(student, teacher, [Spy()])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
    model.fit(tf_fpq.mixup(batches(8, 8), 4, seed=0), verbose=0)
    mixed, predictions = seen
    originals = {bytes(image) for image in images(8)}
    assert not any(bytes(image) in originals for image in mixed.numpy())
    np.testing.assert_allclose(predictions, teacher(mixed, training=False), atol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="alpha must be positive. Received: alpha=0"):
        tf_fpq.mixup(batches(), 4, alpha=0)
    three = tf.data.Dataset.from_tensors((images(4), labels(4), np.ones(4)))
    with pytest.raises(ValueError, match="pairs .images, labels."):
        tf_fpq.mixup(three, 4)
