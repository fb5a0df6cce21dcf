"""`QatModel`: teacher and student in one training step."""

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any

import tensorflow as tf

from tf_fpq import autograph, distributed, graph
from tf_fpq.conversion import keras3
from tf_fpq.conversion.prepare import prepare
from tf_fpq.keras_compat import AnyModel, keras, register, untracked
from tf_fpq.methods.base import Batch, Gradients, Method, Step
from tf_fpq.native import tracing
from tf_fpq.placement import feature_taps
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.student_layers.quantized_layers import quantizer_variables
from tf_fpq.training import (
    argument_checks,
    data_checks,
    first_trace,
    optimizers,
    total_steps,
    two_views,
)
from tf_fpq.training import teacher as teachers
from tf_fpq.training.divergence_guard import DivergenceGuard

# The teacher of a model that is read from a file: given afterwards.
_GIVEN_LATER = object()


@register
class QatModel(keras.Model):
    """A student that trains with the methods it was given; everything else are Keras' verbs.

        model = tf_fpq.QatModel(student, teacher, tf_fpq.fpq())
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
        model.fit(images, labels, epochs=20)

    One step minimises `task loss + regularisation + the losses of the methods`. With no method it
    is the plain base quantizer: the weights are those of `student.fit` (with
    `step_size_learning_rate_factor=1`), bit for bit where TensorFlow computes both by the same
    kernels. The teacher never changes: it runs with `training=False`, outside the gradient tape,
    and belongs to no saved state.

    Note: a ReLU that the quantizer behind it makes superfluous is left out here. oneDNN, which is
    on by default on x86, may compute such a ReLU in one kernel with its neighbours in
    `student.fit`. The last bit then rounds otherwise: weights differ by some 1e-7 after eight
    steps. With `TF_ENABLE_ONEDNN_OPTS=0` they are equal.

    A training stops at its first step that is not finite, with a `DivergenceError` that says where
    and why; that step changes nothing.

    A `QatModel` is saved to a `.keras` file, with its student, its methods and their state, and the
    optimizer's, also by `keras.callbacks.ModelCheckpoint`. A training that goes on from the file is
    bit-equal to one that was never interrupted. `QatModel.load(path, teacher)` reads it, as does
    `keras.models.load_model` followed by `set_teacher`.

    Batches are what `student.fit` takes, or views from `tf_fpq.two_views`. The losses that compare
    (CSD, KD, CR) see all images of a batch, the task loss and the metrics those with labels.

    Under `tf.distribute` make model, teacher and `QatModel` in the strategy's scope. Gradients,
    step sizes and the EMA teacher are those of the global batch; batch norms and CSD standardize
    over the batch of their replica, and SFP draws in each replica.

    A student computes in float32 whatever Keras' mixed precision policy is: its integers are those
    of float32 weights. The teacher may compute in half precision, by the policy it was made under
    or by `teacher_dtype`.

    Attributes:
      student: The quantized model; save and export this.
      teacher: The float model, or None.
      methods: The methods.
    """

    train_function: Any

    def __init__(
        self,
        student: keras.Model,
        teacher: AnyModel | None = None,
        methods: Sequence[Method] = (),
        *,
        step_size_learning_rate_factor: float = 0.1,
        teacher_dtype: str | None = None,
        cache_teacher: bool = False,
        name: str = "qat_model",
    ):
        """Creates the trainer.

        Args:
          student: A calibrated model from `tf_fpq.quantize_model`.
          teacher: A float model of Keras 2 or Keras 3; needed by methods that distill. For CSD its
            convolutions pair with the student's by name.
          methods: Training methods, at most one of a class, e.g. `[FeaturePerturbation(),
            ChannelStandardizedDistillation()]`, which is FPQ.
          step_size_learning_rate_factor: The quantizers' parameters learn at this fraction of the
            optimizer's rate, whatever the optimizer. 0.1 is chosen here, no paper has it: at 1,
            low-bit students fell apart under distillation in trials before commit 2df3cbe.
          teacher_dtype: "float16" or "bfloat16" lets the teacher compute in half precision; None as
            it was made.
          cache_teacher: Compute the teacher's outputs once per image, in `fit`, and keep them in
            memory for all epochs. Only for data without augmentation: an image must be the same in
            every epoch.
          name: Name of the model.

        Raises:
          TypeError: If a method is no `tf_fpq` method, or student or teacher no model.
          ValueError: If a method needs a teacher and there is none, if its convolutions do not pair
            with the student's, if a method is given twice, or if the factor is not positive.
        """
        super().__init__(name=name, dtype="float32")
        methods = list(methods)
        argument_checks.check_methods(methods)
        if not 0 < step_size_learning_rate_factor < float("inf"):
            raise ValueError(
                "step_size_learning_rate_factor must be positive and finite. "
                f"Received: step_size_learning_rate_factor={step_size_learning_rate_factor}."
            )
        self.student = student
        self.methods = methods
        self.step_size_learning_rate_factor = step_size_learning_rate_factor
        self.teacher_dtype = teacher_dtype
        self.cache_teacher = cache_teacher
        # Not tracked: the teacher is not part of what trains, is saved or is regularised.
        untracked(self, teacher=None, _graph=None, _teacher_graph=None, _guard=None)
        if teacher is _GIVEN_LATER:
            for method in methods:
                if method.needs_teacher:
                    method.build()
                else:
                    method.attach(student, None)
        else:
            argument_checks.check_student(student)
            self._attach(methods, teacher)
        self._loss_metrics = {
            m.name: keras.metrics.Mean(name=f"{m.name}_loss") for m in methods if m.has_loss
        }
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self.build(student.input_shape)

    def build(self, input_shape: Any) -> None:
        """Nothing to build: the student is."""
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The student's outputs."""
        return self.student(inputs, training=training)

    def set_teacher(self, teacher: AnyModel) -> None:
        """Gives the methods their teacher: a model that was loaded from a file has none.

        Args:
          teacher: The float model that the training began with.

        Raises:
          ValueError: If its convolutions or outputs do not fit the student's.
        """
        self._attach([method for method in self.methods if method.needs_teacher], teacher)

    def _attach(self, methods: Sequence[Method], teacher: AnyModel | None) -> None:
        argument_checks.check_teacher(self.methods, teacher, self.cache_teacher)
        if graph.is_functional(teacher) or keras3.is_keras3_model(teacher):
            # The layers that the student was made of, under the same names.
            teacher = prepare(teacher)
            graph.check_finite(teacher, "teacher")
        for method in methods:
            method.attach(self.student, teacher)
        teacher_graph = teachers.graph_for(self.methods, teacher, self.teacher_dtype)
        untracked(self, teacher=teacher, _teacher_graph=teacher_graph)
        self.train_function = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], teacher: AnyModel | None = None) -> "QatModel":
        """Reads a model from the `.keras` file that `save` wrote, ready for `fit`.

        Args:
          path: The file.
          teacher: The float model; needed if a method compares with it.

        Raises:
          ValueError: If the file holds another model.
        """
        model = keras.models.load_model(path)
        if not isinstance(model, cls):
            raise ValueError(
                f"path must be a file of a QatModel. Received: path={str(path)!r}, which holds a"
                f" {type(model).__name__}; keras.models.load_model reads that."
            )
        if teacher is not None:
            model.set_teacher(teacher)
        return model

    def save(
        self,
        filepath: Any,
        overwrite: bool = True,
        save_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves all but the teacher, as `keras.Model.save`.

        Raises:
          ValueError: If `filepath` does not end in `.keras`.
        """
        if not str(filepath).endswith(".keras") or save_format not in (None, "keras"):
            raise ValueError(
                "filepath must end in .keras, the one format that holds a QatModel whole; its"
                " student goes into any, by model.student.save(...). Received:"
                f" filepath={str(filepath)!r}."
            )
        super().save(filepath, overwrite, save_format, **kwargs)

    def __dir__(self) -> list[str]:
        """Without the teacher: Keras' saver looks for state under these names."""
        return [name for name in super().__dir__() if name not in ("teacher", "_teacher_graph")]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal model, but for the teacher."""
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "methods": [keras.saving.serialize_keras_object(method) for method in self.methods],
            "step_size_learning_rate_factor": self.step_size_learning_rate_factor,
            "teacher_dtype": self.teacher_dtype,
            "cache_teacher": self.cache_teacher,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QatModel":
        """Makes a model from `get_config()`, whose teacher `set_teacher` gives."""
        deserialize = keras.saving.deserialize_keras_object
        student = deserialize(config["student"], custom_objects)
        methods = [deserialize(method, custom_objects) for method in config["methods"]]
        return cls(**{**config, "student": student, "methods": methods, "teacher": _GIVEN_LATER})

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Configures training as `keras.Model.compile`; weight decay spares quantizer parameters.

        Raises:
          TypeError: If the optimizer is of another Keras.
          ValueError: If a method compares class scores and the student has several outputs, or
            ends in a softmax and the method was not told.
        """
        optimizers.check(optimizer)
        argument_checks.check_outputs(self.student, self.methods, loss)
        super().compile(optimizer, loss, metrics, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and makes the optimizer's variables to be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' own for what is trainable now; it stops where a step is not finite."""
        if self.train_function is not None and not force:
            return self.train_function
        argument_checks.check_teacher(self.methods, self.teacher, self.cache_teacher)
        optimizers.exempt_from_weight_decay(self.optimizer, quantizer_variables(self.student))
        shown = {name for method in self.methods for name in method.student_features}
        rewrites = [method.rewrite for method in self.methods]
        # Made here and not before: it depends on zero points, which a file brings later.
        untracked(
            self,
            _graph=training_graph(self.student, rewrites, shown),
            _guard=DivergenceGuard(self.student, self.optimizer),
        )
        function = super().make_train_function(force=True)
        looked_at_images = False

        def checked(iterator: Any) -> Any:
            nonlocal looked_at_images
            if not looked_at_images:
                predictions = self._graph.output["predictions"]
                first_trace.make_variables(self, predictions, iterator.element_spec)
            logs = function(iterator)
            self._guard.check()
            if not looked_at_images:
                data_checks.warn_of_range(self.student, self._guard.image_size())
                looked_at_images = True
            return logs

        self.train_function = checked
        return checked

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit`, with the arguments of `keras.Model.fit`.

        Raises:
          DivergenceError: At the first step that is not finite.
          ValueError: If images or labels do not fit the student or the loss.
        """
        data_checks.check(self.student, self.loss, x, y)
        if self.cache_teacher:
            argument_checks.check_teacher(self.methods, self.teacher, True)
            x, y = teachers.with_outputs(x, y, self._teacher_graph, batch_size)
        callbacks = total_steps.with_total_steps(callbacks, self.methods)
        with data_checks.explained(self.student):
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: teachers forward, student forward and backward (as often as asked), update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch, teacher = self._unpack(x)
        before = self._guard.remember()
        with tracing.training_step():
            targets = {m.name: autograph.translated(m.targets)(batch) for m in self.methods}
            step = Step(None, {}, teacher.get("predictions"), teacher.get("features", {}), targets)
            compute = functools.partial(self._gradients, batch, y, sample_weight, step)
            for method in self.methods:
                passes = autograph.translated(method.gradients)
                compute = functools.partial(passes, self.trainable_variables, compute)
            predictions, gradients = compute()
            seen = {"images": batch.images, "labels": y, "sample_weight": sample_weight}
            seen |= {"teacher": step.teacher_predictions, "predictions": predictions}
            self._guard.update(self._update, gradients, seen, before)
        return self.compute_metrics(x, y, predictions, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras' own on the images with labels, without the losses that only exist in training.

        Of two views the weak one is evaluated.
        """
        x, *rest = keras.utils.unpack_x_y_sample_weight(data)
        x = two_views.evaluated(teachers.images_of(x))
        logs = super().test_step((x, *rest))
        training_only = {
            self._task_loss.name,
            *(metric.name for metric in self._loss_metrics.values()),
        }
        return {name: value for name, value in logs.items() if name not in training_only}

    def predict_step(self, data: Any) -> Any:
        """Keras' own; of two views it is the weak one that is predicted."""
        x, *_ = keras.utils.unpack_x_y_sample_weight(data)
        return super().predict_step((two_views.evaluated(x),))

    def _unpack(self, x: Any) -> tuple[Batch, dict[str, Any]]:
        """The images of a batch, and the teacher's outputs for them."""
        if self.cache_teacher:
            return two_views.split(x["images"]), x["teacher"]
        batch = two_views.split(x)
        teacher = self._teacher_graph
        return batch, {} if teacher is None else teacher(batch.images, training=False)

    def _forward(self, images: Any) -> dict[str, Any]:
        """Predictions and features of the student as it trains, for a batch of images."""
        return self._graph(images, training=True)

    def _gradients(self, batch: Batch, y: Any, sample_weight: Any, step: Step) -> Gradients:
        """Predictions for the labeled images, and gradients of the trainable variables."""
        with tf.GradientTape() as tape:
            student = self._forward(batch.images)
            taps = feature_taps.latest_taps(self._graph, student["features"])
            step = dataclasses.replace(step, **student, taps=taps)
            for method in self.methods:
                autograph.translated(method.add_step_losses)(step)
            predictions = tf.nest.map_structure(
                lambda output: output[: batch.labeled], step.predictions
            )
            loss = self.compute_loss(batch.images, y, predictions, sample_weight)
        self._log_losses(loss)
        pairs = self.optimizer.compute_gradients(loss, self.trainable_variables, tape)
        return Gradients(predictions, [gradient for gradient, _ in pairs])

    def _update(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Lets the optimizer update, then the methods.

        The quantizers' variables go only `step_size_learning_rate_factor` of their way.
        """
        # Behind the optimizer, and not in the gradient: Adam divides a factor out of a gradient.
        factor = self.step_size_learning_rate_factor
        slow = [] if factor == 1.0 else quantizer_variables(self.student)
        before = [tf.identity(variable) for variable in slow]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        distributed.assign(slow, optimizers.part_of_the_way(before, slow, factor))
        for method in self.methods:
            autograph.translated(method.after_update)()

    def _log_losses(self, loss: tf.Tensor) -> None:
        added = {method.name: tf.add_n(method.losses) for method in self.methods if method.has_loss}
        for name, value in added.items():
            self._loss_metrics[name].update_state(value)
        # Keras divides a replica's loss, so that gradients add up.
        loss *= distributed.num_replicas()
        self._task_loss.update_state(loss - sum(self.losses) if self.losses else loss)
