"""CR, consistency regularization: the student agrees with its own moving average.

The two see different views of the same image.

J. Pang, T. Cai, B. Zhang, J. Wu, *Push Quantization-Aware Training Toward Full Precision
Performances via Consistency Regularization*, arXiv 2402.13497 (2024). Only abstract and summaries
could be read; the equations are a reconstruction after Mean Teacher (A. Tarvainen, H. Valpola,
arXiv 1703.01780), on which it builds.
"""

import contextlib
from typing import Any

import tensorflow as tf

from tf_fpq import distributed, graph, roles
from tf_fpq.keras_compat import keras, register, untracked
from tf_fpq.methods import divergence
from tf_fpq.methods.base import Batch, Method, Step
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.student_layers.quantized_layers import observing


def ema_decay(updates: tf.Tensor, decay: float) -> tf.Tensor:
    """Decay of the moving average in the update that follows `updates` updates.

    It is `min(1 - 1 / (updates + 1), decay)`, as in the code of Mean Teacher. So the average is a
    plain mean at first. A worked number: the first update has the decay 0 and copies the student,
    the tenth has 0.9, and from the thousandth on `decay=0.999` holds.
    """
    return tf.minimum(1.0 - 1.0 / (updates + 1.0), decay)


def ramp(step: tf.Tensor, ramp_steps: tf.Tensor) -> tf.Tensor:
    """Rises from nearly 0 to 1 over `ramp_steps` steps (S. Laine, T. Aila, arXiv 1610.02242).

    It is `exp(-5 (1 - step / ramp_steps)^2)` for `step < ramp_steps`, then 1. A worked number: that
    is 0.007 at the start, 0.29 half way and 0.95 at nine tenths. Without a ramp it is always 1.
    """
    share = tf.minimum(step / tf.maximum(ramp_steps, 1.0), 1.0)
    return tf.where(ramp_steps < 1.0, 1.0, tf.exp(-5.0 * tf.square(1.0 - share)))


@register
class ConsistencyRegularization(Method):
    """Adds a loss between the student on the strong view and its EMA teacher on the weak view.

        ema_teacher <- a * ema_teacher + (1 - a) * student            after every update
        a       = min(1 - 1 / (t + 1), decay)
        L_CR    = weight * ramp(t)
                  * D( softmax(ema_teacher(weak) / T) || softmax(student(strong) / T) )
        ramp(t) = exp(-5 (1 - t / t_r)^2) for t < t_r, then 1

    `t` counts updates, and `t_r` is the length of the ramp. `D` is the Kullback-Leibler divergence
    or the squared difference. With `latent_weight`, `latent_weight * ramp(t) *` the mean squared
    difference of the latent features is added. No float teacher is needed.

    The batches come from `tf_fpq.two_views`, with unlabeled images or without; labels of unlabeled
    images are never seen, and the task loss never sees unlabeled images. With plain batches both
    networks see the same images.

    Note: averaged are all trainable weights, latent ones as well as step sizes. Moving statistics
    are the student's own. The EMA teacher runs with `training=False`, without noise and outside the
    gradient.

    Note: the equations are a reconstruction, see the module. The defaults `decay=0.999` and
    `ramp_up=0.15` are chosen here: the former is Mean Teacher's in its later phase, and Laine and
    Aila ramp over 80 of 300 epochs.

        model = tf_fpq.QatModel(student, methods=[tf_fpq.ConsistencyRegularization()])
        model.compile(optimizer, loss)
        model.fit(tf_fpq.two_views(labeled, unlabeled), epochs=20)

    Attributes:
      ema_teacher: The averaged model, once the method is part of a `QatModel`.
    """

    has_loss = True
    coefficients = ("weight",)

    def __init__(
        self,
        weight: float = 1.0,
        decay: float = 0.999,
        temperature: float = 1.0,
        divergence: str = "kl",
        ramp_up: float | int = 0.15,
        quantized_teacher: bool = True,
        latent_weight: float = 0.0,
        latent_layer: str | None = None,
        from_logits: bool = True,
        name: str = "cr",
        **kwargs: Any,
    ):
        """Creates the method.

        Args:
          weight: The largest factor of the loss, lambda_max.
          decay: The largest decay of the moving average.
          temperature: Softens both distributions.
          divergence: "kl" or "mse".
          ramp_up: How long the weight rises. Below 1 it is a share of the steps of `fit`, from 1 on
            a number of steps. 0 is no ramp.
          quantized_teacher: Whether the EMA teacher computes on its (averaged) grids, or in float.
          latent_weight: Factor of the consistency of latent features.
          latent_layer: Name of the student's layer whose output is latent; None for the input of
            the last layer with a kernel.
          from_logits: Whether the student ends in logits (else in a softmax).
          name: Name of the method; the loss is logged as `<name>_loss`.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If an argument is out of range.
        """
        super().__init__(name=name, **kwargs)
        for key, value in {
            "weight": weight,
            "ramp_up": ramp_up,
            "latent_weight": latent_weight,
        }.items():
            check_not_negative(key, value)
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1. Received: decay={decay}.")
        _check_divergence(divergence, temperature)
        self.weight = weight
        self.decay = decay
        self.temperature = temperature
        self.divergence = divergence
        self.ramp_up = ramp_up
        self.quantized_teacher = quantized_teacher
        self.latent_weight = latent_weight
        self.latent_layer = latent_layer
        self.from_logits = from_logits

    def build(self, input_shape: Any = None) -> None:
        """Makes the counters."""
        super().build(input_shape)
        self._updates = self._counter("updates", 0.0)
        self._ramp_steps = self._counter("ramp_steps", self.ramp_up if self.ramp_up >= 1 else 0.0)

    def _counter(self, name: str, value: float) -> tf.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            dtype="float32",
            trainable=False,
            experimental_autocast=False,
            initializer=keras.initializers.Constant(value),
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Copies the student into the EMA teacher."""
        super().attach(student, teacher)
        ema_teacher = graph.clone(student)
        weights = list(
            ema_teacher.weights
        )  # in the student's order, which `trainable = False` changes
        ema_teacher.trainable = False
        self.student_features = (self._latent_name(student),) if self.latent_weight else ()
        # No regularization loss and no part of the student; its weights are tracked, for
        # checkpoints.
        untracked(self, ema_teacher=ema_teacher, _ema_graph=None)
        self.trainable = False
        self._ema_weights = weights
        pairs = list(zip(weights, student.weights, strict=True))
        untracked(self, _student=student, _pairs=pairs)

    def _latent_name(self, student: keras.Model) -> str:
        calls = list(graph.calls(student))
        names = [call.name for call in calls]
        if self.latent_layer is not None:
            if self.latent_layer not in names:
                raise ValueError(
                    "latent_layer must be a layer of the student. Received:"
                    f" latent_layer={self.latent_layer!r}."
                )
            return self.latent_layer
        last = [call for call in calls if roles.role(roles.inner(call.layer)) is roles.Role.KERNEL][
            -1
        ]
        return next(call.name for call in calls if call.outputs[0] is last.inputs[0])

    def set_total_steps(self, steps: int | None) -> None:
        """Sets the ramp's length for a training of `steps` steps; called by `QatModel.fit`."""
        if self.ramp_up >= 1 or self.ramp_up == 0:
            return
        if steps is None:
            raise ValueError(
                f"ramp_up={self.ramp_up} is a share of the training steps, whose number is unknown"
                " for this dataset. Give ramp_up as a number of steps, or steps_per_epoch to fit."
            )
        self._ramp_steps.assign(self.ramp_up * steps)

    def targets(self, batch: Batch) -> Any:
        """The EMA teacher's predictions and latent features of the weak view."""
        if self._ema_graph is None:
            # Made here and not before: it depends on zero points, which a file brings later.
            with tf.init_scope():
                ema_graph = training_graph(
                    self.ema_teacher,
                    shown=self.student_features,
                    merge_relus=self.quantized_teacher,
                )
            untracked(self, _ema_graph=ema_graph)
        with contextlib.nullcontext() if self.quantized_teacher else observing(self.ema_teacher):
            return self._ema_graph(batch.weak_images, training=False)

    def call(self, inputs: list[Any]) -> Any:
        """Adds the loss and returns the student's predictions.

        Args:
          inputs: `[student_predictions, ema_predictions]`, with latent features followed by
            `student_latent, ema_latent`.
        """
        student, teacher, *latents = inputs
        distance = divergence.DIVERGENCES[self.divergence]
        loss = distance(
            tf.stop_gradient(teacher), student, self.temperature, self.from_logits
        ) * self.coefficient("weight")
        if latents:
            ours, theirs = (tf.cast(latent, tf.float32) for latent in latents)
            difference = tf.math.squared_difference(ours, tf.stop_gradient(theirs))
            loss += self.latent_weight * tf.reduce_mean(difference)
        self.add_loss(
            loss * ramp(tf.convert_to_tensor(self._updates), tf.convert_to_tensor(self._ramp_steps))
        )
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares the student with the EMA teacher."""
        targets = step.targets[self.name]
        latents = [
            part
            for name in self.student_features
            for part in (step.features[name], targets["features"][name])
        ]
        self([step.predictions, targets["predictions"], *latents])

    def after_update(self) -> None:
        """Moves the EMA teacher: averages what is trainable now, copies the rest."""
        decay = ema_decay(tf.convert_to_tensor(self._updates), self.decay)
        trained = {id(variable) for variable in self._student.trainable_weights}
        values = [
            decay * ema + (1.0 - decay) * own if id(own) in trained else tf.convert_to_tensor(own)
            for ema, own in self._pairs
        ]
        distributed.assign([ema for ema, _ in self._pairs], values)
        self._updates.assign_add(1.0)

    def __dir__(self) -> list[str]:
        """Names of all attributes but the models whose weights are elsewhere.

        Keras' saver looks for state under the names that this returns.
        """
        hidden = ("ema_teacher", "_ema_graph", "_student")
        return [name for name in super().__dir__() if name not in hidden]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        names = (
            *("weight", "decay", "temperature", "divergence", "ramp_up", "quantized_teacher"),
            *("latent_weight", "latent_layer", "from_logits"),
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _check_divergence(name: str, temperature: float) -> None:
    if name not in divergence.DIVERGENCES:
        raise ValueError(
            f"divergence must be one of {', '.join(divergence.DIVERGENCES)}. Received:"
            f" divergence={name!r}."
        )
    divergence.check_temperature(temperature)
