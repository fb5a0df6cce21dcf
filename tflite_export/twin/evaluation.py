"""A callback that tells in training what the phone would score."""

from typing import Any

import tensorflow as tf

from tf_fpq import callbacks, graph
from tf_fpq.keras_compat import keras
from tflite_export import kernels
from tflite_export.lowering import builder
from tflite_export.twin import integer_twin


class TwinEvaluation(keras.callbacks.Callback):
    """Evaluates the integer twin after each epoch.

    `val_twin_accuracy` is what the phone will score.

        model.compile(optimizer, loss, metrics=["accuracy"])
        stop = keras.callbacks.EarlyStopping("val_twin_accuracy", patience=3)
        model.fit(train, epochs=9, callbacks=[tflite_export.TwinEvaluation(test), stop])

    Each time, the student is deployed as `export` would deploy it at that moment, and the twin of
    that is evaluated with the loss and the metrics that the model was compiled with; each of them
    is logged as `val_twin_<name>`. Biases are on their int32 grids in the twin. The student itself
    does not change. Works with a `QatModel` and with a student that trains by itself. Callbacks
    behind it in the list see what it logs.
    """

    def __init__(
        self,
        validation_data: Any,
        *,
        batch_size: int = 32,
        steps: int | None = None,
        every: int = 1,
        rounding: kernels.Rounding = "single",
    ):
        """Creates the callback.

        Args:
          validation_data: What `fit` takes under this name: `(x, y)`, `(x, y, sample_weights)`, or
            a batched `tf.data.Dataset`.
          batch_size: Images at once, for arrays.
          steps: Batches of a dataset to evaluate; None for all.
          every: Evaluate after each epoch of this number; the last one of a training always.
          rounding: "single" for XNNPACK, "double" for the reference kernels and TensorFlow Lite for
            Microcontrollers.

        Raises:
          ValueError: If `every` or `batch_size` is not positive, or the rounding is unknown.
        """
        super().__init__()
        for name, value in (("every", every), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be positive. Received: {name}={value}.")
        if rounding not in kernels.ROUNDINGS:
            raise ValueError(
                f"rounding must be one of {kernels.ROUNDINGS}. Received: rounding={rounding!r}."
            )
        self._data, self._batch_size, self._steps = validation_data, batch_size, steps
        self._every, self._rounding = every, rounding

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `val_twin_<metric>` to the epoch's logs."""
        last = epoch + 1 == (self.params or {}).get("epochs")
        if logs is None or ((epoch + 1) % self._every and not last):
            return
        logs.update((f"val_twin_{name}", value) for name, value in self._scores(self.model).items())

    def _scores(self, model: keras.Model) -> dict[str, float]:
        """Loss and metrics of `model` as deployed."""
        twin = _as_functional(callbacks.student_of(model), self._rounding)
        twin.compile(
            loss=model.loss,
            loss_weights=getattr(model.compiled_loss, "_user_loss_weights", None),
            metrics=_anew(getattr(model.compiled_metrics, "_user_metrics", None)),
            weighted_metrics=_anew(getattr(model.compiled_metrics, "_user_weighted_metrics", None)),
        )
        arrays = isinstance(self._data, tuple | list)
        data = dict(zip(("x", "y", "sample_weight"), self._data if arrays else (self._data,)))
        size = {"batch_size": self._batch_size} if arrays else {"steps": self._steps}
        return twin.evaluate(**data, **size, verbose=0, return_dict=True)


def _as_functional(student: keras.Model, rounding: kernels.Rounding) -> keras.Model:
    """The twin of a student with inputs and outputs in its structure, under its names."""
    twin = integer_twin.IntegerTwin(builder.deploy(student), rounding)
    inputs = graph.new_inputs(student)
    found = tf.nest.flatten(twin(tf.nest.flatten(inputs)))
    named = [
        keras.layers.Activation("linear", name=name)(output)
        for name, output in zip(student.output_names, found, strict=True)
    ]
    return graph.functional(inputs, tf.nest.pack_sequence_as(student._nested_outputs, named))


def _anew(metrics: Any) -> Any:
    """`metrics` of `compile` with new metric objects, so that the model's own keep their state."""
    return tf.nest.map_structure(
        lambda metric: (
            type(metric).from_config(metric.get_config())
            if isinstance(metric, keras.metrics.Metric)
            else metric
        ),
        metrics,
    )
