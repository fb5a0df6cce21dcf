"""Training what is deployed: the last epoch of a student."""

from collections.abc import Callable, Sequence
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

import tf_fpq
from tf_fpq.keras_compat import keras, switched, untracked
from tf_fpq.methods.base import Method
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.lowering import builder


class TrainableTwin(tf_fpq.QatModel):
    """Trains a student as the function that its `.tflite` file computes.

        twin = tflite_export.TrainableTwin(student, teacher, [tf_fpq.KnowledgeDistillation()])
        twin.compile("sgd", loss)
        twin.fit(images, labels)  # one epoch, at the training's last learning rate
        tflite_export.export(student, "x.tflite")  # rounds nothing any more

    A `QatModel`, with its methods and verbs, whose forward pass in `fit` is the file's, up to ties
    that float32 and the integer kernels break differently (convolutions, Dense layers and pooling:
    none seen in 600,000 codes; sums, which XNNPACK adds with 20-bit multipliers: some in 10^5):

    -   Batch norms use their moving statistics, which no longer change, as the folded kernels do;
        gamma and beta train. Dropout, augmentation inside the model and perturbed features are off.
    -   Biases lie on their int32 grids, `b = s * rint(latent / s)` with `s = input scale * weight
        scale`. Gradients pass the rounding straight through: the step that the optimizer takes from
        `b` is added to the latent bias. The grids move with the step sizes; the student's variables
        hold `b` after every step, so `evaluate`, `predict` and a checkpoint are the deployed
        function too.

    Two exceptions: the bias of a layer that is called several times cannot be on several grids and
    stays as it is; and `fit` sees a softmax's probabilities before they are rounded, as a
    `QatModel` does, for the logarithm of a rounded 0 teaches nothing. Making one rounds the
    student's biases, as `lowering.builder.round_biases` does.

    Note: A step costs a walk over the student besides, in NumPy, to find the grids: the same code
    that exports.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        methods: Sequence[Method] = (),
        **kwargs: Any,
    ):
        """Prepares the last epoch; all arguments are those of `tf_fpq.QatModel`.

        Raises:
          TypeError: See `tf_fpq.QatModel`.
          ValueError: See `tf_fpq.QatModel`; also if the student cannot be deployed.
        """
        super().__init__(student, teacher, methods, **{"name": "trainable_twin", **kwargs})
        moves = builder.lower(student).bias_moves
        latent = [(found.variable, _values(found.variable)) for found in moves]
        untracked(self, _latent_biases=latent)  # these belong to no saved state
        self._round()

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The student's outputs as deployed, whatever `training` is."""
        return self.student(inputs, training=False)

    def _forward(self, images: Any) -> dict[str, Any]:
        """What `QatModel` trains on, computed as deployed."""
        with _unrounded_probabilities(self.student):
            return self._graph(images, training=False)

    def compile(
        self, optimizer: Any = "sgd", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Configures training as `QatModel.compile`.

        Raises:
          ValueError: If several steps are to be taken at once, between which biases would leave
            their grids.
        """
        if kwargs.get("steps_per_execution") not in (None, 1):
            raise ValueError(
                "steps_per_execution must be 1: biases are rounded between steps. "
                f"Received: steps_per_execution={kwargs['steps_per_execution']!r}."
            )
        super().compile(optimizer, loss, metrics, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Keras' training step, with the biases brought back to their grids after it."""
        if self.train_function is None or force:
            step = super().make_train_function(force)

            def rounded_step(iterator: Any) -> Any:
                before = [_values(variable) for variable, _ in self._latent_biases]
                logs = step(iterator)
                for (variable, latent), rounded in zip(self._latent_biases, before, strict=True):
                    latent += _values(variable) - rounded
                self._round()
                return logs

            self.train_function = rounded_step
        return self.train_function

    def _round(self) -> None:
        """Sets the student's biases to their latent values on the grids of this moment."""
        for variable, latent in self._latent_biases:
            variable.assign(latent)
        moves = builder.lower(self.student).bias_moves
        for (variable, latent), found in zip(self._latent_biases, moves, strict=True):
            variable.assign(latent + found.move)


def _unrounded_probabilities(student: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Within the context quantizers that are not for training pass values through."""
    layers = [
        layer
        for layer in student.layers
        if isinstance(layer, QuantizeActivation)
        and not getattr(layer.quantizer, "in_training", True)
    ]
    return switched(layers, observing=True)


def _values(variable: tf.Variable) -> np.ndarray:
    # `numpy()` may be a view, which follows the variable.
    return np.array(variable.numpy(), np.float64)
