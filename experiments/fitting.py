"""How a network of the experiments trains: batches, optimizer, loss, and what an epoch leaves."""

from collections.abc import Mapping, Sequence
import math
import sys
from typing import Any

import tensorflow as tf

from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.streamed import Images
import tf_fpq
from tf_fpq.keras_compat import keras

# The strong view of CR on images of fewer pixels a side than `SMALL_SIDE`, where the library's
# default leaves too little: of 8x8 pixels, cutout takes 16. At 14x14 the default cost a distilled
# student 3 points in a trial. Chosen here.
SMALL_SIDE = 16
SMALL_STRONG_VIEW = {"operations": 1, "magnitude": 0.3, "cutout": 0.25}

# Batches that batch norms are re-estimated from; `callbacks.reestimate_batch_norm` says that a
# dozen suffices.
REESTIMATION_BATCHES = 20


def fit(
    model: keras.Model,
    config: Config,
    dataset: Images,
    learning_rate: float,
    epochs: int,
    *,
    watch: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
) -> dict[str, list[float]]:
    """SGD with momentum and a cosine to 0.

    Args:
      model: A float model or a `QatModel`.
      config: Recipe.
      dataset: The images.
      learning_rate: The first rate.
      epochs: How long.
      watch: Whether the test accuracy is shown after every epoch; nothing is chosen by it.
      callbacks: More callbacks.
      checkpoints: What the training goes on from, and writes to.

    Returns:
      The history by epoch.

    Raises:
      ArithmeticError: If the loss is not finite.
    """
    batches = _train_batches(model, config, dataset)
    if not epochs:
        return {}
    _compile(model, config, learning_rate, epochs * len(batches))
    averaging = _averaging(config, dataset)
    states = {f"averaging{i}": callback.state(model) for i, callback in enumerate(averaging)}
    done = checkpoints.restore(model, states) if checkpoints else 0
    for _ in range(done):
        iter(batches)  # each iteration has an order and an augmentation of its own
    # In this order: an epoch that diverged is not kept.
    own = [*averaging, _StopIfNotFinite(learning_rate), *([checkpoints] if checkpoints else [])]
    fitted = model.fit(
        batches,
        validation_data=_watched(config, dataset) if watch else None,
        initial_epoch=done,
        epochs=epochs,
        verbose=(1 if on_terminal() else 2) if watch else 0,
        callbacks=[*callbacks, *own],
    )
    if checkpoints:
        return checkpoints.history
    return {name: [float(value) for value in values] for name, values in fitted.history.items()}


def _train_batches(model: keras.Model, config: Config, dataset: Images) -> tf.data.Dataset:
    """What the model sees: one view or two, mixtures or images."""
    if "cr" in config.methods and isinstance(model, tf_fpq.QatModel):
        batches = _two_views(config, dataset)
    else:
        batches = dataset.train_batches(config.batch_size, config.seed, config.augment)
    if config.mixup:
        batches = tf_fpq.mixup(batches, dataset.num_classes, alpha=config.mixup, seed=config.seed)
    return batches


def _two_views(config: Config, dataset: Images) -> tf.data.Dataset:
    """Batches with two views for CR: the EMA teacher sees the weak one (usual augmentation),
    student and teacher the strong one.
    """
    batches = dataset.train_batches(config.batch_size, config.seed, augment=False)
    if not config.augment:
        return batches
    info = dataset.info
    weak = tf_fpq.WeakAugmentation(shift=info.shift / dataset.image_shape[0], flip=info.flip)
    small = SMALL_STRONG_VIEW if dataset.image_shape[0] < SMALL_SIDE else {}
    strong = tf_fpq.StrongAugmentation(weak=weak, **small)
    return tf_fpq.two_views(batches, weak=weak, strong=strong, seed=config.seed)


def _compile(model: keras.Model, config: Config, learning_rate: float, steps: int) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    losses = keras.losses
    loss = losses.CategoricalCrossentropy if config.mixup else losses.SparseCategoricalCrossentropy
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=config.weight_decay),
        loss=loss(from_logits=True),
        loss_weights=None if config.task_weight == 1.0 else [config.task_weight],
        metrics=["accuracy"],
        jit_compile=config.jit_compile or None,
    )


def _watched(config: Config, dataset: Images) -> tf.data.Dataset:
    """Test batches, with labels of the kind that the loss takes."""
    batches = dataset.test_batches()
    if not config.mixup:
        return batches
    return batches.map(lambda images, labels: (images, tf.one_hot(labels, dataset.num_classes)))


def _averaging(config: Config, dataset: Images) -> list[tf_fpq.callbacks.WeightAveraging]:
    """The callback that averages weights, if the configuration wants one."""
    if config.average_from is None:
        return []
    batches = reestimation_batches(config, dataset)
    return [tf_fpq.callbacks.WeightAveraging(batches, start=config.average_from)]


def reestimation_batches(config: Config, dataset: Images) -> tf.data.Dataset:
    """Training batches from which batch norms are re-estimated."""
    batches = dataset.train_batches(config.batch_size, config.seed, config.augment)
    return batches.take(REESTIMATION_BATCHES)


class _StopIfNotFinite(keras.callbacks.Callback):
    """Stops a training whose loss is not finite: a float network has no guard of its own."""

    def __init__(self, learning_rate: float):
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Looks at the epoch's mean loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ArithmeticError(
                f"Training of {self.model.name!r} diverged in epoch {epoch + 1}: its loss is"
                f" {loss}. Train with a lower learning rate. Received:"
                f" learning_rate={self._learning_rate}."
            )


def on_terminal() -> bool:
    """Whether somebody watches, so that progress bars are welcome; a log gets one line per
    epoch.
    """
    return sys.stdout.isatty()
