"""Stops a training at its first step that is not finite, with the weights of before.

A gradient that overflows, or a NaN in a batch, spoils every weight in one update, and from then on
all losses are NaN. `DivergenceGuard` sits between the gradients and the update. It looks at one
number, the squared norm of gradients, images, outputs and moving statistics, and lets the update
through if it is finite. If not, neither this step nor one that follows updates anything, the moving
statistics are put back, and the guard notes where the numbers stopped being finite. All this
happens inside the compiled step, so it holds under XLA, `tf.distribute` and
`steps_per_execution` too. Python then reads one flag and raises `DivergenceError`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import distributed, graph
from tf_fpq.keras_compat import keras
from tf_fpq.native import lists, tracing
from tf_fpq.student_layers.quantized_layers import moved_by_forward_pass

# What a step reads and makes, in the order of computation, and what it means if it is not finite.
CAUSES = {
    "images": "the images of this batch contain NaN or infinity; clean the data",
    "labels": "the labels of this batch contain NaN or infinity; clean the data",
    "sample_weight": "the sample weights of this batch contain NaN or infinity; clean the data",
    "teacher": (
        "the teacher's outputs are NaN or infinite for this batch; look at its weights, and give"
        " teacher_dtype='float32' if it computes in half precision"
    ),
    "learning_rate": "the optimizer's learning rate is NaN or infinite",
    "predictions": "its outputs overflow; train with a lower learning rate",
}
# Those that no layer is at fault for.
BATCH_CAUSES = ("images", "labels", "sample_weight", "teacher", "learning_rate")

_LOSS_CAUSE = (
    "the outputs are finite, and the loss or its gradient is not; look at the labels' range and at"
    " the weights of the methods' losses"
)
_WEIGHTS_CAUSE = (
    "its weights are NaN or infinite, so an update before was too large; go back to an earlier"
    " checkpoint and train with a lower learning rate"
)


class DivergenceError(ArithmeticError):
    """A training step was not finite. The weights are those of before that step.

        except tf_fpq.DivergenceError as error:
            print(error.step, error.layer, error.cause)

    Attributes:
      step: Number of the step, from 1, as the optimizer counts.
      layer: Name of the first layer whose output or gradient is not finite; None if the batch is at
        fault.
      cause: What it is about, likely.
    """

    def __init__(self, step: int, layer: str | None, cause: str):
        super().__init__(
            f"Training diverged in step {step}"
            + (f" at layer {layer!r}" if layer else "")
            + f": {cause}. This step changed nothing: the weights are those of before it."
        )
        self.step, self.layer, self.cause = step, layer, cause


class DivergenceGuard:
    """Between gradients and update; see the module.

    Attributes:
      student: The model that trains.
    """

    def __init__(self, student: keras.Model, optimizer: Any):
        """Creates the guard, in the scope of the strategy of `student`.

        Args:
          student: The model that trains, with those layers trainable that will train.
          optimizer: Its optimizer. A loss scaling one skips updates that overflow by itself, so
            that then only images and outputs are looked at.
        """
        self.student, self._optimizer = student, optimizer
        self._scaled = hasattr(optimizer, "inner_optimizer")
        self._trained = list(student.trainable_weights)
        self._statistics = moved_by_forward_pass(student)
        self._moving = [
            variable
            for layer in student.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        self._stopped = tf.Variable(
            False, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        # Squared norms of the causes, of the gradients, and of what the forward pass moves.
        count = len(CAUSES) + len(self._trained) + len(self._statistics)
        self._image_size = tf.Variable(
            0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self._noted = tf.Variable(
            tf.zeros(count), trainable=False, aggregation=tf.VariableAggregation.SUM
        )

    def remember(self) -> list[tf.Tensor]:
        """What the forward pass may move, as it is before; for `update`."""
        return [tf.identity(variable) for variable in self._statistics]

    def update(
        self,
        act: Callable[[Sequence[Any]], None],
        gradients: Sequence[tf.Tensor | None],
        step: dict[str, Any],
        before: Sequence[tf.Tensor],
    ) -> None:
        """Calls `act(gradients)` if this step and all before it are finite.

        Args:
          act: Updates the weights and whatever follows them.
          gradients: A gradient by each trainable variable.
          step: Tensors of the step, or structures of them, by the keys of `CAUSES`.
          before: What `remember` returned before the forward pass.
        """
        step = {**step, "learning_rate": tf.convert_to_tensor(self._optimizer.learning_rate)}
        norms = _half_squares(gradients)
        # Learning rate too: a NaN there would spoil weights whose gradients are finite.
        # Images too: NaN among them would pass, as a quantizer clips it to an end of its range.
        # Moving statistics too: behind a batch norm, a quantizer hides NaN in the same way.
        others = [step[name] for name in ("images", "predictions", "learning_rate")]
        watched = _half_squares([*others, *self._moving])
        self._image_size.assign(tf.sqrt(2.0 * watched[0] / _count(step["images"])))
        total = tf.reduce_sum(watched)
        total += 0.0 if self._scaled else tf.reduce_sum(norms)
        (total,) = distributed.sum_over_replicas([total])

        def stop(norms: tf.Tensor, step: Any, before: Sequence[tf.Tensor]) -> None:
            causes = _half_squares([step.get(name) for name in CAUSES])
            moved = _half_squares(self._statistics)
            seen = tf.concat([causes, norms, moved], 0)
            stopped = tf.convert_to_tensor(self._stopped)
            self._noted.assign_add(tf.where(stopped, tf.zeros_like(seen), seen))
            distributed.assign(self._statistics, before)
            self._stopped.assign(True)

        distributed.either(
            tf.math.is_finite(total) & ~tf.convert_to_tensor(self._stopped),
            (act, list(gradients)),
            (stop, norms, step, list(before)),
        )

    def image_size(self) -> float:
        """Root mean square of the last batch's images."""
        return float(self._image_size.numpy())

    def check(self) -> None:
        """Raises DivergenceError if a step was not finite; the next one is looked at afresh."""
        if not self._stopped.numpy():
            return
        error = self._error(self._noted.numpy(), int(self._optimizer.iterations.numpy()) + 1)
        self._stopped.assign(False)
        self._noted.assign(tf.zeros_like(self._noted))
        raise error

    def _error(self, noted: np.ndarray, step: int) -> DivergenceError:
        causes, norms, moved = np.split(noted, np.cumsum([len(CAUSES), len(self._trained)]))
        bad = [name for name, norm in zip(CAUSES, causes) if not np.isfinite(norm)]
        if bad and bad[0] in BATCH_CAUSES:
            return DivergenceError(step, None, CAUSES[bad[0]])
        broken = [w for w in self.student.weights if not np.isfinite(w.numpy()).all()]
        if broken:
            return DivergenceError(step, self._layer_of(broken[0]), _WEIGHTS_CAUSE)
        passed = [v for v, norm in zip(self._statistics, moved) if not np.isfinite(norm)]
        if passed:
            return DivergenceError(step, self._layer_of(passed[0]), CAUSES["predictions"])
        if bad:
            last = graph.producer(self.student.outputs[0]).name
            return DivergenceError(step, last, CAUSES[bad[0]])
        return self._overflow(norms, step)

    def _overflow(self, norms: np.ndarray, step: int) -> DivergenceError:
        """The gradients overflow while all outputs are finite: from the last such layer on."""
        sizes: dict[str, float] = {}
        for variable, norm in zip(self._trained, norms):
            layer = self._layer_of(variable)
            # np.maximum keeps a NaN; l2_loss halves.
            sizes[layer] = float(np.maximum(sizes.get(layer, 0.0), np.sqrt(2.0 * norm)))
        *_, layer = (name for name, size in sizes.items() if not np.isfinite(size))
        if layer == list(sizes)[-1]:
            return DivergenceError(step, None, _LOSS_CAUSE)
        return DivergenceError(step, layer, _overflow_cause(sizes))

    def _layer_of(self, variable: tf.Variable) -> str:
        return next(
            layer.name
            for layer in self.student.layers
            if any(variable is weight for weight in layer.weights)
        )


def _half_squares(values: Sequence[Any]) -> tf.Tensor:
    """Half the sum of squares of the numbers in each structure, in float32, as a vector.

    It is finite only if all of them are, and if their norm is below 1.8e19, the root of the largest
    float32.
    """
    parts: list[tf.Tensor] = []
    owners: list[int] = []
    for owner, value in enumerate(values):
        for tensor in map(tf.convert_to_tensor, _numbers(value)):
            parts.append(tf.cast(tensor, tf.float32))
            owners.append(owner)
    if not parts:
        return tf.zeros([len(values)])
    if tracing.may_use_native():
        sums = lists.half_squares(parts)
    else:
        sums = tf.stack([tf.nn.l2_loss(part) for part in parts])
    if owners == list(range(len(values))):
        return sums
    return tf.math.unsorted_segment_sum(sums, owners, len(values))


def _numbers(value: Any) -> list[Any]:
    """The tensors and variables of a structure, without strings."""
    found = [part for part in tf.nest.flatten(value) if part is not None]
    return [part for part in found if getattr(part, "dtype", None) != tf.string]


def _count(values: Any) -> tf.Tensor:
    """How many numbers a structure has, in float32."""
    sizes = [tf.size(part, tf.int64) for part in tf.nest.flatten(values)]
    return tf.cast(tf.add_n(sizes), tf.float32)


def _overflow_cause(sizes: dict[str, float]) -> str:
    finite = [(n, size) for n, size in sizes.items() if np.isfinite(size) and size > 0.0]
    path = ""
    if finite:
        (first, early), (last, late) = finite[0], finite[-1]
        path = f": their norm is {late:.2g} at {last!r}, {early:.2g} at {first!r}, then not finite"
    return (
        f"the gradients overflow on their way back{path}. A batch norm over channels that hardly"
        " vary multiplies them by up to 1 / sqrt(epsilon), block after block, which is so if the"
        " moving statistics that the student was calibrated with are not those of its batches."
        " Train the float model longer or call tf_fpq.callbacks.reestimate_batch_norm on it before"
        " it is quantized and calibrated, or train with a lower learning rate"
    )
