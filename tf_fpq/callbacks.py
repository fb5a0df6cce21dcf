"""Callbacks: batch norm re-estimation, oscillation, step sizes in TensorBoard, schedules.

They work with `QatModel` and with a student.
"""

from collections.abc import Callable, Iterable, Sequence
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.calibration import batch_norms
from tf_fpq.keras_compat import keras
from tf_fpq.methods.base import Method
from tf_fpq.methods.oscillation import OscillationState, check_momentum, weights_of_student
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tf_fpq.training import two_views


def student_of(model: keras.Model) -> keras.Model:
    """The student of a `QatModel`; a student itself.

    A callback that takes either asks here:

        student = tf_fpq.callbacks.student_of(qat_model)
    """
    return getattr(model, "student", model)


def reestimate_batch_norm(student: keras.Model, batches: Iterable[Any]) -> None:
    """Replaces the moving statistics of all batch norms by means over batches.

    This is section 4.1 of arXiv 2203.11086.

    Oscillating weights leave moving statistics behind that fit no recent weights. Only the batch
    norms run as in training; everything else, such as dropout or a range that follows the data,
    runs as at inference, for which the statistics are.

        tf_fpq.callbacks.reestimate_batch_norm(student, train.take(20))

    Args:
      student: A quantized model, or a float one such as a teacher; nothing but its moving
        statistics changes.
      batches: Batches of images, or tuples that begin with images, or batches of
        `tf_fpq.two_views`, whose weak view is taken. A dozen of training batches suffices.

    Raises:
      ValueError: If there is no batch.
    """
    images = (batch[0] if isinstance(batch, tuple) else batch for batch in batches)
    batch_norms.reestimate(student, map(two_views.evaluated, images))


class BatchNormReestimation(keras.callbacks.Callback):
    """Calls `reestimate_batch_norm` when the training ends.

    A few dozen batches are enough:

        reestimation = tf_fpq.callbacks.BatchNormReestimation(train.take(20))
        model.fit(train, epochs=20, callbacks=[reestimation])
    """

    def __init__(self, batches: Iterable[Any]):
        """Creates the callback.

        Args:
          batches: Batches of training images, for example `train.take(20)`.
        """
        super().__init__()
        self._batches = batches

    def on_train_end(self, logs: Any = None) -> None:
        """Re-estimates."""
        reestimate_batch_norm(student_of(self.model), self._batches)


class WeightAveraging(keras.callbacks.Callback):
    """Ends the training with the mean of its last weights, and batch norms that fit them.

        fit(train, epochs=100, callbacks=[tf_fpq.callbacks.WeightAveraging(train.take(20))])

    This is stochastic weight averaging (P. Izmailov et al., arXiv 1803.05407). The mean is over the
    weights at the end of each epoch behind the share `start` of the training. It is taken of all
    that trains: latent weights, and the quantizers' step sizes as well. When the training ends the
    student gets the means, and its batch norms the statistics of `batches` under them.

    A worked number: with 80 epochs and `start=0.75` the mean is over the weights after epoch 61 to
    80.

    Note: the paper's rate is constant in that part, or cyclic. With a cosine to 0 the last weights
    are close together, and the mean is little else than the last of them.

    `use_ema=True` of Keras' optimizers averages as well, by an exponential mean of every step. It
    averages step sizes as they would be at the full rate, before `step_size_learning_rate_factor`.

    Attributes:
      count: Number of epochs in the mean so far.
    """

    def __init__(self, batches: Iterable[Any] | None, start: float = 0.75):
        """Creates the callback.

        Args:
          batches: Batches of training images for `reestimate_batch_norm`; None leaves the moving
            statistics of the last epoch, which fit only a network without batch norms.
          start: Share of the training from which on weights count; the default is the paper's.

        Raises:
          ValueError: If `start` is not from 0 to below 1.
        """
        super().__init__()
        if not 0.0 <= start < 1.0:
            raise ValueError(f"start must be at least 0 and below 1. Received: {start=}.")
        self._batches, self._start = batches, start
        self._state: tf.Module | None = None

    def state(self, model: keras.Model) -> tf.Module:
        """The means so far, as an object for `tf.train.Checkpoint`: without it a training that goes
        on from a checkpoint forgets them.

        Args:
          model: The model that trains.
        """
        if self._state is None:
            state = tf.Module(name="weight_averaging")
            state.count = tf.Variable(0.0, trainable=False)
            state.means = [
                tf.Variable(weight, trainable=False)
                for weight in student_of(model).trainable_weights
            ]
            self._state = state
        return self._state

    @property
    def count(self) -> int:
        """See the class."""
        return int(self._state.count.numpy()) if self._state else 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the means, unless `state` has."""
        self.state(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the weights into the means."""
        if epoch + 1 <= self._start * self.params["epochs"]:
            return
        state = self.state(self.model)
        state.count.assign_add(1.0)
        for mean, weight in zip(state.means, student_of(self.model).trainable_weights, strict=True):
            mean.assign(mean * (1.0 - 1.0 / state.count) + weight / state.count)

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the student the means."""
        if not self.count:
            return
        student = student_of(self.model)
        for mean, weight in zip(self.state(self.model).means, student.trainable_weights):
            weight.assign(mean)
        if self._batches is not None:
            reestimate_batch_norm(student, self._batches)


class OscillationTracker(keras.callbacks.Callback):
    """Measures which share of a layer's weights oscillates.

    A weight oscillates if its frequency (arXiv 2203.11086, eq. 5-6) is above a threshold.

    The share of all weights is logged as `oscillating`, at the end of every epoch. Looks at the
    weights after every batch, in one compiled function, so it needs `steps_per_execution=1`.

        tracker = tf_fpq.callbacks.OscillationTracker()
        model.fit(train, epochs=20, callbacks=[tracker])

    Attributes:
      shares: Share by `layer/weight`, after the last epoch.
    """

    def __init__(self, threshold: float = 0.005, momentum: float = 0.01):
        """Creates the callback.

        Args:
          threshold: Frequency from which a weight counts as oscillating; the paper's is 0.005.
          momentum: Momentum of the frequency.
        """
        super().__init__()
        check_momentum(momentum)
        self._threshold = threshold
        self._momentum = momentum
        self.shares: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Remembers the integers at the start."""
        if int(getattr(self.model, "_steps_per_execution", None) or 1) != 1:
            raise ValueError(
                "OscillationTracker must see every step: compile with steps_per_execution=1."
            )
        weights = weights_of_student(student_of(self.model))
        self._states = {weight.name: OscillationState(weight, self._momentum) for weight in weights}
        states = list(self._states.values())
        self._update = tf.function(lambda: [state.update() for state in states] and None)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks at the integers."""
        self._update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `oscillating` to the epoch's logs."""
        above = {
            name: state.frequency.numpy() > self._threshold for name, state in self._states.items()
        }
        self.shares = {name: float(mask.mean()) for name, mask in above.items()}
        if logs is not None and above:
            logs["oscillating"] = float(
                np.concatenate([mask.ravel() for mask in above.values()]).mean()
            )


class GridLogger(keras.callbacks.Callback):
    """Writes every grid to TensorBoard at the end of every epoch.

    The names are `step_size/<name>`, `range_low/<name>` and `range_high/<name>`.

    Of a weight with a step size per channel they are the mean step size and the widest range.

        model.fit(train, epochs=20, callbacks=[tf_fpq.callbacks.GridLogger("logs/run0")])
    """

    def __init__(self, log_dir: str):
        """Creates the callback.

        Args:
          log_dir: Folder of the event files, as of `keras.callbacks.TensorBoard`.
        """
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the grids."""
        with self._writer.as_default(step=epoch):
            for name, (step_size, low, high) in grids(student_of(self.model)).items():
                _write_scalar(f"step_size/{name}", step_size)
                _write_scalar(f"range_low/{name}", low)
                _write_scalar(f"range_high/{name}", high)
        self._writer.flush()


class TrainingLogger(GridLogger):
    """Writes all that a quantized training tells to TensorBoard, at the end of every epoch.

        model.fit(train, callbacks=[tf_fpq.callbacks.TrainingLogger("logs/run0")])

    Give it as the last callback: it writes what those before it have logged, such as `oscillating`
    of `OscillationTracker` and `val_twin_accuracy` of `tflite_export.TwinEvaluation`. The scalars
    are `loss/<name>` for everything whose name ends in "loss", `metric/<name>` for the other
    numbers of the logs, `learning_rate`, and those of `GridLogger`.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes logs, learning rate and grids."""
        scalars = {_tag(name): value for name, value in (logs or {}).items()}
        scalars["learning_rate"] = keras.backend.get_value(_learning_rate(self.model.optimizer))
        with self._writer.as_default(step=epoch):
            for tag, value in scalars.items():
                _write_scalar(tag, float(value))
        super().on_epoch_end(epoch, logs)


def _tag(name: str) -> str:
    return f"loss/{name}" if name.endswith("loss") else f"metric/{name}"


def _learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """The rate of the next step; an optimizer for mixed precision has another one inside."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return inner.learning_rate


def _write_scalar(tag: str, value: float) -> None:
    """`tf.summary.scalar`, which is part of TensorBoard.

    It needs TensorBoard installed where the training runs.
    """
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    metadata.data_class = 1  # DATA_CLASS_SCALAR
    tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)


def grids(student: keras.Model) -> dict[str, tuple[float, float, float]]:
    """Mean step size, lowest and highest value of every grid of a student.

    They are listed by layer name or `layer/weight`.

        for name, (step, low, high) in tf_fpq.callbacks.grids(student).items():
            print(f"{name}: {low:.3g} to {high:.3g} in steps of {step:.3g}")
    """
    layers = [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]
    found = {layer.name: (layer.quantizer, layer.variables_of_quantizer) for layer in layers}
    found.update(
        {
            weight.name: (weight.quantizer, weight.variables)
            for weight in weights_of_student(student)
        }
    )
    result = {}
    for name, (quantizer, variables) in found.items():
        step_size, zero_point = (
            tf.convert_to_tensor(part).numpy() for part in quantizer.grid(variables)
        )
        low, high = (
            (quantizer.spec.qmin - zero_point) * step_size,
            (quantizer.spec.qmax - zero_point) * step_size,
        )
        result[name] = float(step_size.mean()), float(low.min()), float(high.max())
    return result


class Schedule(keras.callbacks.Callback):
    """Sets a method's coefficient before every step.

    It calls `method.set_coefficient(coefficient, function(step / steps of fit))`.

        tf_fpq.callbacks.Schedule(noise, "probability", lambda done: 0.1 * (1 - done))

    anneals the noise of `noise = FeaturePerturbation(0.1)` to zero. Does not trace the step again.
    With `steps_per_execution` above 1 the value is that of the first step of an execution.
    """

    def __init__(self, method: Method, coefficient: str, function: Callable[[float], float]):
        """Creates the callback.

        Args:
          method: A method of the model that trains.
          coefficient: One of `method.coefficients`.
          function: From the share of the training that is done, 0 to 1, to the coefficient.

        Raises:
          ValueError: If the method has no such coefficient.
        """
        super().__init__()
        if coefficient not in method.coefficients:
            known = ", ".join(method.coefficients) or "(none)"
            raise ValueError(
                f"coefficient must be one of {known} for {type(method).__name__}. Received:"
                f" coefficient={coefficient!r}."
            )
        self._method = method
        self._coefficient = coefficient
        self._function = function
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the coefficient."""
        steps = self.params.get("steps")
        within = (
            batch / steps if steps else 0.0
        )  # of unknown length: the value changes from epoch to epoch
        self._method.set_coefficient(
            self._coefficient, self._function((self._epoch + within) / self.params["epochs"])
        )


def piecewise(points: Sequence[Sequence[float]]) -> Callable[[float], float]:
    """A function for `Schedule`: straight lines between points `(share done, value)`.

    This is 0.5 when 0.3 of the training is done, and 0 from 0.6 on:

        falling = tf_fpq.callbacks.piecewise([(0, 1), (0.6, 0)])
    """
    shares, values = zip(*points, strict=True)
    return lambda done: float(np.interp(done, shares, values))


def cosine(start: float, end: float) -> Callable[[float], float]:
    """A function for `Schedule`: from `start` to `end` along half a cosine.

    Half way through the training this is 5e-4:

        weight = tf_fpq.callbacks.cosine(0.0, 1e-3)
        tf_fpq.callbacks.Schedule(dampening, "weight", weight)
    """
    return lambda done: end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
