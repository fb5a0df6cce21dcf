"""`QatModel`: teacher and student in one training step."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
import warnings

import tensorflow as tf

from tf_fpq import distributed, graph
from tf_fpq.conversion import keras3
from tf_fpq.conversion.prepare import prepare
from tf_fpq.keras_compat import keras, untracked
from tf_fpq.methods.base import Batch, Gradients, Method, Step
from tf_fpq.placement import calibration
from tf_fpq.placement.quantized_layers import quantizer_variables
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.training import optimizers, two_views
from tf_fpq.training import teacher as teachers


class QatModel(keras.Model):
    """A student that trains with the methods it was given; everything else are Keras' verbs.

    One step minimises `task loss + regularisation + the losses of the methods`. With no method it
    is the plain base quantizer: the same weights as `student.fit`, bit for bit (with
    `step_size_learning_rate_factor=1`). The teacher never changes: it runs with `training=False`,
    outside the gradient tape, and belongs to no saved state.

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

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
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
          teacher: A float model; needed by methods that distill. For CSD its convolutions pair with
            the student's by name.
          methods: Training methods, at most one of a class, e.g. `[FeaturePerturbation(),
            ChannelStandardizedDistillation()]`, which is FPQ.
          step_size_learning_rate_factor: The quantizers' parameters learn at this fraction of the
            optimizer's rate, whatever the optimizer. At 1, low-bit students fall apart under
            distillation.
          teacher_dtype: "float16" or "bfloat16" lets the teacher compute in half precision; None as
            it was made.
          cache_teacher: Compute the teacher's outputs once per image, in `fit`, and keep them in
            memory for all epochs. Only for data without augmentation: an image must be the same in
            every epoch.
          name: Name of the model.

        Raises:
          TypeError: If a method is no `tf_fpq` method.
          ValueError: If a method needs a teacher and there is none, if its convolutions do not pair
            with the student's, if a method is given twice, or if the factor is not positive.
        """
        super().__init__(name=name, dtype="float32")
        methods = list(methods)
        _check_methods(methods)
        _check_teacher(methods, teacher, cache_teacher)
        if step_size_learning_rate_factor <= 0:
            raise ValueError(
                "step_size_learning_rate_factor must be positive. "
                f"Received: step_size_learning_rate_factor={step_size_learning_rate_factor}."
            )
        if names := calibration.uncalibrated(student):
            warnings.warn(
                f"Not calibrated: {', '.join(names)}. Call tf_fpq.calibrate(student, images)"
                " first.",
                stacklevel=2,
            )
        self.student = student
        self.methods = methods
        self.step_size_learning_rate_factor = step_size_learning_rate_factor
        self.cache_teacher = cache_teacher
        if graph.is_functional(teacher) or keras3.is_keras3_model(teacher):
            teacher = prepare(
                teacher
            )  # the layers that the student was made of, under the same names
        for method in methods:
            method.attach(student, teacher)
        shown = {name for method in methods for name in method.student_features}
        # Not tracked: the teacher is not part of what trains, is saved or is regularised.
        untracked(
            self,
            teacher=teacher,
            _graph=training_graph(student, [method.rewrite for method in methods], shown),
            _teacher_graph=_teacher_graph(teacher, methods, teacher_dtype),
        )
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

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Configures training as `keras.Model.compile`; quantizer parameters are exempt from weight
        decay.
        """
        super().compile(optimizer, loss, metrics, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' own, for the layers that are trainable now."""
        optimizers.exempt_from_weight_decay(self.optimizer, quantizer_variables(self.student))
        return super().make_train_function(force)

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit`, with the arguments of `keras.Model.fit`."""
        if self.cache_teacher:
            x, y = teachers.with_outputs(x, y, self._teacher_graph, batch_size)
        kwargs["callbacks"] = _with_total_steps(kwargs.get("callbacks"), self.methods)
        return super().fit(x, y, batch_size, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: teachers forward, student forward and backward (as often as the methods want
        it), update.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch, teacher = self._unpack(x)
        targets = {method.name: method.targets(batch) for method in self.methods}
        step = Step(None, {}, teacher.get("predictions"), teacher.get("features", {}), targets)
        compute = functools.partial(self._gradients, batch, y, sample_weight, step)
        for method in self.methods:
            compute = functools.partial(method.gradients, self.trainable_variables, compute)
        predictions, gradients = compute()
        self._update(gradients)
        for method in self.methods:
            method.after_update()
        return self.compute_metrics(x, y, predictions, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras' own on the images with labels, without the losses that only exist in training. Of
        two views it is the weak one that is evaluated.
        """
        x, *rest = keras.utils.unpack_x_y_sample_weight(data)
        logs = super().test_step((two_views.evaluated(x), *rest))
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
        return batch, (
            {} if self._teacher_graph is None else self._teacher_graph(batch.images, training=False)
        )

    def _gradients(self, batch: Batch, y: Any, sample_weight: Any, step: Step) -> Gradients:
        """Predictions for the labeled images, and gradients of the trainable variables; logs the
        losses.
        """
        with tf.GradientTape() as tape:
            student = self._graph(batch.images, training=True)
            step = dataclasses.replace(
                step, predictions=student["predictions"], features=student["features"]
            )
            for method in self.methods:
                method.add_step_losses(step)
            predictions = tf.nest.map_structure(
                lambda output: output[: batch.labeled], step.predictions
            )
            loss = self.compute_loss(batch.images, y, predictions, sample_weight)
        self._log_losses(loss)
        pairs = self.optimizer.compute_gradients(loss, self.trainable_variables, tape)
        return Gradients(predictions, [gradient for gradient, _ in pairs])

    def _update(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Minimises; the quantizers' variables then go only `step_size_learning_rate_factor` of
        their way.
        """
        factor = self.step_size_learning_rate_factor
        slow = [] if factor == 1.0 else quantizer_variables(self.student)
        before = [tf.identity(variable) for variable in slow]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        distributed.assign(
            slow,
            [old + factor * (variable - old) for variable, old in zip(slow, before, strict=True)],
        )

    def _log_losses(self, loss: tf.Tensor) -> None:
        added = {method.name: tf.add_n(method.losses) for method in self.methods if method.has_loss}
        for name, value in added.items():
            self._loss_metrics[name].update_state(value)
        loss *= (
            distributed.num_replicas()
        )  # Keras divides a replica's loss, so that gradients add up
        self._task_loss.update_state(loss - sum(self.losses) if self.losses else loss)


class _TotalSteps(keras.callbacks.Callback):
    """Tells methods that ramp over a share of the training how long it is."""

    def __init__(self, methods: Sequence[Method]):
        super().__init__()
        self._methods = methods

    def on_train_begin(self, logs: Any = None) -> None:
        steps, epochs = self.params.get("steps"), self.params["epochs"]
        for method in self._methods:
            method.set_total_steps(None if steps is None else steps * epochs)


def _with_total_steps(callbacks: Any, methods: Sequence[Method]) -> Any:
    """`callbacks` of `fit` with one more."""
    own = _TotalSteps(methods)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(own)
        return callbacks
    return [own, *tf.nest.flatten(callbacks or [])]


def _teacher_graph(
    teacher: keras.Model | None, methods: Sequence[Method], dtype: str | None
) -> keras.Model | None:
    if not any(method.needs_teacher for method in methods):
        return None
    shown = {name: None for method in methods for name in method.teacher_features}
    return teachers.teacher_graph(teacher, shown, dtype)


def _check_methods(methods: Sequence[Any]) -> None:
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(
                "methods must be tf_fpq methods, such as FeaturePerturbation(). Received:"
                f" methods=[..., {method!r}]."
            )
    for attribute in (lambda method: type(method).__name__, lambda method: method.name):
        names = [attribute(method) for method in methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                "methods must have at most one of each class and of each name. Received twice:"
                f" {', '.join(twice)}."
            )


def _check_teacher(
    methods: Sequence[Method], teacher: keras.Model | None, cache_teacher: bool
) -> None:
    needing = [method.name for method in methods if method.needs_teacher]
    if needing and teacher is None:
        raise ValueError(
            f"teacher must be given: {', '.join(needing)} compares the student with it. Received:"
            " teacher=None."
        )
    if cache_teacher and not needing:
        raise ValueError(
            "cache_teacher=True needs a method that compares with the teacher. Received: methods"
            " without one."
        )
