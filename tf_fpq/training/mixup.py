"""Mixup: H. Zhang et al., *mixup: Beyond Empirical Risk Minimization*, arXiv 1710.09412.

Teacher and student of a `QatModel` read the same batch, so they see the same mixtures: what L.
Beyer et al. call a consistent teacher (arXiv 2106.05237).
"""

from typing import Any

import tensorflow as tf

from tf_fpq.training import two_views


def mixup(
    batches: tf.data.Dataset, num_classes: int, *, alpha: float = 1.0, seed: int | None = None
) -> tf.data.Dataset:
    """Batches whose images and labels are mixtures of two.

        x = c x_i + (1 - c) x_j        y = c y_i + (1 - c) y_j        c ~ Beta(alpha, alpha)

        model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(tf_fpq.mixup(train, num_classes=10, seed=0))

    Labels become shares of classes, so the loss must be one for those, as above.

    A worked number: with `c = 0.75` an image of class 0 and one of class 2 out of three become one
    of the label 0.75, 0, 0.25.

    Of `two_views` both views of an image are mixed with those of the same other image, by the same
    share, and so are unlabeled images among themselves.

    Note: each image draws a share of its own and is mixed with the image before it in the batch.
    The paper draws one share for a batch. The order of a batch is a random one, so who is mixed
    with whom is as random as there.

    Args:
      batches: Shuffled batches `(images, labels)`, or of `two_views`. Labels are class numbers, or
        shares of classes.
      num_classes: Number of classes.
      alpha: 1 draws all shares alike, as Beyer et al. do; the paper takes 1 for CIFAR and 0.1 to
        0.4 for ImageNet, where most mixtures are nearly one image.
      seed: Of the shares; epochs differ. None draws one.

    Raises:
      ValueError: If `alpha` is not positive, or a batch is no pair.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive. Received: {alpha=}.")
    spec = batches.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2):
        raise ValueError(
            "batches must be pairs (images, labels): a mixture has no sample weight. Received:"
            f" elements {spec}."
        )
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    seeds = seeds.batch(2, drop_remainder=True)

    def mix(batch: tuple[Any, tf.Tensor], numbers: tf.Tensor) -> tuple[Any, tf.Tensor]:
        images, labels = batch
        if labels.shape.rank == 1:
            labels = tf.one_hot(labels, num_classes)
        share = _shares(tf.shape(labels)[0], alpha, numbers)
        if not two_views.has_two_views(images):
            return _mixed(images, share), _mixed(labels, share)
        views = {key: _mixed(images[key], share) for key in (two_views.WEAK, two_views.STRONG)}
        unlabeled = [key for key in images if key not in views]
        if unlabeled:
            more = _shares(tf.shape(images[unlabeled[0]])[0], alpha, numbers + 2)
            views |= {key: _mixed(images[key], more) for key in unlabeled}
        return views, _mixed(labels, share)

    return tf.data.Dataset.zip((batches, seeds)).map(mix, tf.data.AUTOTUNE).prefetch(2)


def _shares(count: tf.Tensor, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """`count` numbers of the distribution Beta(alpha, alpha): `x / (x + y)` of two Gamma(alpha).

    Their logarithms are drawn, as Gamma(alpha) of a small alpha is 0 in float32: it is
    `Gamma(alpha + 1) * U^(1 / alpha)` (G. Marsaglia, W. W. Tsang, 2000, section 6).
    """
    gammas = tf.random.stateless_gamma([count, 2], seed, alpha + 1.0)
    uniform = tf.random.stateless_uniform([count, 2], seed + 1, minval=1e-30)
    logarithms = tf.math.log(gammas) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logarithms[:, 0] - logarithms[:, 1])


def _mixed(values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    values = tf.cast(values, tf.float32)
    share = tf.reshape(share, [-1, *[1] * (values.shape.rank - 1)])
    return share * values + (1.0 - share) * tf.roll(values, 1, axis=0)
