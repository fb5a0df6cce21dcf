"""A callback that follows the Hessian through a training."""

from typing import Any

from tf_fpq.callbacks import student_of
from tf_fpq.keras_compat import keras
from tf_fpq.sharpness.loss_hessian import Loss, LossHessian, cross_entropy
from tf_fpq.sharpness.spectrum import hessian_trace, top_eigenvalues


class SharpnessTracker(keras.callbacks.Callback):
    """Logs `hessian_trace` and `top_eigenvalue` of the loss at the end of epochs.

    They are those of the student of a `QatModel`, or of the model itself, on the same images and
    with the same probes in every epoch; methods add nothing to the loss.

        tracker = tf_fpq.sharpness.SharpnessTracker(images[:256], labels[:256])
        model.fit(images, labels, epochs=20, callbacks=[tracker])

    Attributes:
      history: `(epoch, trace, top eigenvalue)` of the epochs that were measured.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        loss: Loss = cross_entropy,
        *,
        every: int = 1,
        probes: int = 20,
        seed: int = 0,
    ):
        """Creates the callback.

        Args:
          images: Array of images, preprocessed as for training.
          labels: Their labels.
          loss: `loss(labels, predictions)`, a mean over images.
          every: Epochs between two measurements; the last epoch is always measured.
          probes: Probes of a trace, all of which are taken, and steps of the power iteration at
            most; chosen here for a price of some dozen training steps.
          seed: Of the probes.

        Raises:
          ValueError: If `every` is below 1.
        """
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1. Received: every={every}.")
        self._images, self._labels, self._loss = images, labels, loss
        self._every, self._probes, self._seed = every, probes, seed
        self.history: list[tuple[int, float, float]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Prepares the Hessian; its functions are traced once."""
        self._hessian = LossHessian(student_of(self.model), self._images, self._labels, self._loss)
        self.history = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures if it is time."""
        if (epoch + 1) % self._every and epoch + 1 != self.params.get("epochs"):
            return
        trace = hessian_trace(self._hessian, probes=self._probes, tolerance=0, seed=self._seed)
        (top,) = top_eigenvalues(self._hessian, steps=self._probes, seed=self._seed)
        self.history.append((epoch, trace.mean, top))
        if logs is not None:
            logs |= {"hessian_trace": trace.mean, "top_eigenvalue": top}
