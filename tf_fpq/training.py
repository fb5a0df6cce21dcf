"""`QatModel`: teacher and student in one training step."""

from collections.abc import Sequence
from typing import Any
import warnings

import tensorflow as tf

from tf_fpq import calibration
from tf_fpq.distillation import check_pairs, convolution_outputs
from tf_fpq.feature_perturbation import FeaturePerturbation, training_graph
from tf_fpq.keras_compat import keras
from tf_fpq.layers import quantizer_variables
from tf_fpq.method import Method, Step


class QatModel(keras.Model):
    """A student that trains with the methods it was given; everything else are Keras' verbs.

    One step minimises `task loss + regularisation + the losses of the methods`. With no method it is the plain base quantizer:
    the same weights as `student.fit`, bit for bit (with `step_size_learning_rate_factor=1`). The teacher never changes: it runs
    with `training=False`, outside the gradient tape, and belongs to no saved state.

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
        name: str = "qat_model",
    ):
        """Creates the trainer.

        Args:
          student: A calibrated model from `tf_fpq.quantize_model`.
          teacher: A float model; needed by methods that distill. Its convolutions pair with the student's by name.
          methods: Training methods, at most one of a class, e.g. `[FeaturePerturbation(), ChannelStandardizedDistillation()]`,
            which is FPQ.
          step_size_learning_rate_factor: The quantizers' parameters learn at this fraction of the optimizer's rate, whatever
            the optimizer. At 1, low-bit students fall apart under distillation.
          name: Name of the model.

        Raises:
          TypeError: If a method is no `tf_fpq` method.
          ValueError: If a method needs a teacher and there is none, if its convolutions do not pair with the student's, if
            a method is given twice, or if the factor is not positive.
        """
        super().__init__(name=name)
        methods = list(methods)
        _check_methods(methods)
        if step_size_learning_rate_factor <= 0:
            raise ValueError(
                "step_size_learning_rate_factor must be positive. "
                f"Received: step_size_learning_rate_factor={step_size_learning_rate_factor}."
            )
        needs_teacher = [method.name for method in methods if method.needs_teacher]
        if needs_teacher and teacher is None:
            raise ValueError(
                f"teacher must be given: {', '.join(needs_teacher)} compares the student with it. Received: teacher=None."
            )
        if names := calibration.uncalibrated(student):
            warnings.warn(
                f"Not calibrated: {', '.join(names)}. Call tf_fpq.calibrate(student, images) first.", stacklevel=2
            )
        self.student = student
        self.methods = methods
        self.step_size_learning_rate_factor = step_size_learning_rate_factor
        # Past Keras' tracking: the teacher is not part of what trains, is saved or is regularised.
        vars(self)["teacher"] = teacher
        vars(self)["_graph"] = self._student_graph()
        vars(self)["_teacher_graph"] = self._make_teacher_graph() if needs_teacher else None
        self._quantizer_variables = quantizer_variables(student)
        self._loss_metrics = {m.name: keras.metrics.Mean(name=f"{m.name}_loss") for m in methods if m.has_loss}
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self.build(student.input_shape)

    def build(self, input_shape: Any) -> None:
        """Nothing to build: the student is."""
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The student's outputs."""
        return self.student(inputs, training=training)

    def compile(self, optimizer: Any = "sgd", **kwargs: Any) -> None:
        """Configures training as `keras.Model.compile`; quantizer parameters are exempt from weight decay."""
        super().compile(optimizer=optimizer, **kwargs)
        if getattr(self.optimizer, "weight_decay", None) and self._quantizer_variables:
            self.optimizer.exclude_from_weight_decay(var_list=self._quantizer_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: teacher forward, student forward and backward, update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._teacher_graph(x, training=False) if self._teacher_graph is not None else {}
        with tf.GradientTape() as tape:
            student = self._forward(x)
            step = Step(
                student["predictions"],
                student.get("features", {}),
                teacher.get("predictions"),
                teacher.get("features", {}),
            )
            for method in self.methods:
                method.add_step_losses(step)
            loss = self.compute_loss(x, y, step.predictions, sample_weight)
        self._update(loss, tape)
        self._log_losses(loss)
        return self.compute_metrics(x, y, step.predictions, sample_weight)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Keras' own, without the losses that only exist in training."""
        logs = super().test_step(data)
        training_only = {self._task_loss.name, *(metric.name for metric in self._loss_metrics.values())}
        return {name: value for name, value in logs.items() if name not in training_only}

    def _forward(self, x: Any) -> dict[str, Any]:
        if self._graph is None:
            return {"predictions": self(x, training=True)}
        return self._graph(x, training=True)

    def _update(self, loss: tf.Tensor, tape: tf.GradientTape) -> None:
        """Minimises; the quantizers' variables then go only `step_size_learning_rate_factor` of their way."""
        factor = self.step_size_learning_rate_factor
        slow = [] if factor == 1.0 else self._quantizer_variables
        before = [tf.identity(variable) for variable in slow]
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        for variable, old in zip(slow, before, strict=True):
            variable.assign(old + factor * (variable - old))

    def _log_losses(self, loss: tf.Tensor) -> None:
        added = {method.name: tf.add_n(method.losses) for method in self.methods if method.has_loss}
        for name, value in added.items():
            self._loss_metrics[name].update_state(value)
        self._task_loss.update_state(loss - sum(self.losses) if self.losses else loss)

    def _student_graph(self) -> keras.Model | None:
        """The student with what its methods put in, or None when it trains as it is."""
        noise = next((method for method in self.methods if isinstance(method, FeaturePerturbation)), None)
        if noise is None and not any(method.needs_features for method in self.methods):
            return None
        return training_graph(self.student, noise)

    def _make_teacher_graph(self) -> keras.Model:
        outputs = {"predictions": self.teacher.output}
        if any(method.needs_features for method in self.methods):
            check_pairs(self.student, self.teacher)
            outputs["features"] = convolution_outputs(self.teacher)
        return keras.Model(self.teacher.inputs, outputs)


def _check_methods(methods: Sequence[Any]) -> None:
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(
                f"methods must be tf_fpq methods, such as FeaturePerturbation(). Received: methods=[..., {method!r}]."
            )
    classes = [type(method).__name__ for method in methods]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ValueError(f"methods must have at most one of each class. Received twice: {', '.join(twice)}.")
