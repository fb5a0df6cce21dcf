"""Trainings that go on where they were killed, by TensorFlow's own checkpoints.

After an epoch the model is written with its optimizer, its methods and the history so far. A
training that goes on from there is bit-equal to one that was never interrupted.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import pathlib
import re
import time
from typing import Any
import warnings

from absl import logging
import tensorflow as tf

from experiments import records
from tf_fpq.keras_compat import keras

# Checkpoints that are kept: the second is there for the case that the newest cannot be read.
KEPT = 2
# Under this name the logs of an epoch hold how long it took.
_SECONDS = "seconds"


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint after an epoch, and restores the newest one that is whole.

    Example:
      >>> checkpoints = Checkpoints("runs/a/checkpoints")
      >>> epochs_done = checkpoints.restore(model)
      >>> model.fit(data, initial_epoch=epochs_done, epochs=20, callbacks=[checkpoints])
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int = KEPT,
        seconds: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Reads and writes nothing yet.

        Args:
          folder: Where checkpoints are written.
          keep: How many of them stay.
          seconds: The least time between two of them. 0 writes one after every epoch, which is a
            quarter of the work where an epoch takes less than a second.
          clock: Tells the seconds that an epoch took; `time.process_time` counts the CPU's.
        """
        super().__init__()
        self._folder, self._keep, self._seconds = folder, keep, seconds
        self._written, self._clock = time.monotonic(), clock
        self._history = _History()
        # Seconds that restored epochs took in the processes that trained them.
        self.seconds_before = 0.0
        self._epoch_began = 0.0
        self._manager: Any = None

    @property
    def history(self) -> dict[str, list[float]]:
        """The logs of all epochs, by name, those of before an interruption among them."""
        epochs = self._history.epochs
        names = [name for name in (epochs[0] if epochs else ()) if name != _SECONDS]
        return {name: [logs[name] for logs in epochs] for name in names}

    def restore(self, model: keras.Model, states: Mapping[str, tf.Module] | None = None) -> int:
        """Restores the newest checkpoint that is whole; one that is not is named in a warning.

        Args:
          model: A compiled model, as it is before its first step.
          states: What else is restored and written, by names: the state of callbacks.

        Returns:
          How many epochs it has trained already.
        """
        model.optimizer.build(model.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=model, history=self._history, **(states or {}))
        self._manager = tf.train.CheckpointManager(
            checkpoint, str(self._folder), max_to_keep=self._keep, checkpoint_name="epoch"
        )
        # One that cannot be read must not be restored by half.
        if whole := next(filter(_is_whole, self._newest_first()), None):
            checkpoint.restore(whole).assert_existing_objects_matched()
        self.seconds_before = sum(logs.get(_SECONDS, 0.0) for logs in self._history.epochs)
        return len(self._history.epochs)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks at the clock."""
        self._epoch_began = self._clock()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, if the last one is old enough."""
        now = self._clock()
        figures = {name: float(value) for name, value in (logs or {}).items()}
        self._history.epochs.append({**figures, _SECONDS: now - self._epoch_began})
        self._epoch_began = now
        if time.monotonic() < self._written + self._seconds:
            return
        self._written = time.monotonic()
        with _quiet():
            self._manager.save(checkpoint_number=epoch + 1)

    def _newest_first(self) -> Iterator[str]:
        """Checkpoints by the files that are there: the manager's list of them may be damaged."""
        numbers = (
            re.fullmatch(r"epoch-(\d+)\.index", path.name) for path in self._folder.glob("*.index")
        )
        for number in sorted((int(found[1]) for found in numbers if found), reverse=True):
            yield str(self._folder / f"epoch-{number}")


class CheckpointsByName:
    """The checkpoints of several trainings of one run, each made when it is asked for."""

    def __init__(self, folder: Callable[[str], pathlib.Path], **arguments: Any):
        """Makes none yet.

        Args:
          folder: From the name of a training to its folder.
          **arguments: Those of all `Checkpoints`.
        """
        self._folder, self._arguments = folder, arguments
        self._made: list[Checkpoints] = []

    def __call__(self, name: str) -> Checkpoints:
        """The checkpoints of a training."""
        self._made.append(Checkpoints(self._folder(name), **self._arguments))
        return self._made[-1]

    @property
    def seconds_before(self) -> float:
        """Seconds that restored epochs of all of them took."""
        return sum(checkpoints.seconds_before for checkpoints in self._made)


class _History(tf.train.experimental.PythonState):
    """The logs of each epoch, as text inside a checkpoint."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def serialize(self) -> str:
        return json.dumps(self.epochs)

    def deserialize(self, string_value: Any) -> None:
        self.epochs = json.loads(string_value)


def _is_whole(path: str) -> bool:
    """Whether all tensors of a checkpoint can be read; TensorFlow checks their sums."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        warnings.warn(
            f"The checkpoint {path} cannot be read and is passed over: {records.first_line(error)}",
            stacklevel=3,
        )
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line of TensorFlow's for every checkpoint, between the lines of the epochs."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
