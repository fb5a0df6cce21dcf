"""What a training method is, and the protocol by which several of them share one training step.

A step of `QatModel` asks its methods, in this order:

    attach(student, teacher)      once: checks, and what the method keeps
    rewrite(student, make)        once: what the method changes in the graph that trains
    targets(batch)                outside the gradient tape: what the student is to be compared with
    gradients(variables, compute) around the forward and backward pass: where gradients are taken
    add_step_losses(step)         in every pass, under the tape: `add_loss`
    after_update()                when the optimizer has changed the weights

A method is one class that defines those of the calls that it uses. `FeaturePerturbation` uses
`rewrite`, `SharpnessAwareMinimization` uses `gradients`.

`rewrite` and `gradients` nest, so that methods compose: each method of a `QatModel` wraps what the
methods before it in the list have made. The last method in the list is the outermost.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tf_fpq.graph import MakeCall
from tf_fpq.keras_compat import keras
from tf_fpq.placement.feature_taps import Tap


@dataclasses.dataclass(frozen=True)
class Batch:
    """The images of one training step.

    A model of one input has a tensor for each attribute, a model of several inputs a structure of
    them.

    Attributes:
      images: What the student reads: the labeled images, then the unlabeled ones; strongly
        augmented if there are two views.
      weak_images: The weakly augmented view of the same images in the same order; `images` itself
        if there is one view.
      labeled: How many of the images have a label; None if all have.
    """

    images: Any
    weak_images: Any
    labeled: tf.Tensor | int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What methods can see of one training step. Outputs are of all images, labeled and unlabeled.

    Attributes:
      predictions: The student's outputs.
      features: The student's features, by layer name: those that the methods' `student_features`
        name.
      teacher_predictions: The teacher's outputs; None unless a method needs the teacher.
      teacher_features: The teacher's features, by layer name.
      targets: What each method's `targets` returned, by the method's name.
      taps: Where a method may add to the gradient of a student's feature, by layer name; None for a
        feature that has no such place.
    """

    predictions: Any
    features: Mapping[str, tf.Tensor]
    teacher_predictions: Any
    teacher_features: Mapping[str, tf.Tensor]
    targets: Mapping[str, Any]
    taps: Mapping[str, Tap | None] = dataclasses.field(default_factory=dict)


class Gradients(NamedTuple):
    """What one forward and backward pass returns.

        predictions, values = compute()
        return tf_fpq.Gradients(predictions, [v if v is None else tf.sign(v) for v in values])

    Attributes:
      predictions: The student's outputs for the labeled images, for the metrics.
      values: The gradient of the whole loss by each trainable variable; None where there is none.
    """

    predictions: Any
    values: Sequence[tf.Tensor | None]


class Method(keras.layers.Layer):
    """Base class of training methods.

    A method contributes to the loss by `add_loss` in its `call`, and is logged under its own name.

        class Clipping(tf_fpq.Method):
            def gradients(self, variables, compute):
                predictions, values = compute()
                return tf_fpq.Gradients(predictions, tf.clip_by_global_norm(values, 1.0)[0])

    Attributes:
      needs_teacher: The method compares with the float teacher.
      has_loss: The method adds a loss, which is logged as `<name>_loss`.
      coefficients: Names of the attributes that `callbacks.Schedule` may change during training.
      student_features: Names of the student's layers whose outputs `Step.features` must hold.
      teacher_features: Names of the teacher's layers whose outputs `Step.teacher_features` must
        hold.
      affine_features_from: None, or a variance. Where a channel varies at least so much, the method
        takes an affine map of it with a positive slope for the same feature. The teacher's batch
        norms are then folded into its kernels, which is faster.
    """

    needs_teacher = False
    has_loss = False
    coefficients: tuple[str, ...] = ()
    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()
    affine_features_from: float | None = None

    def __init__(self, **kwargs: Any):
        """Creates the method.

        It computes in float32 under any mixed precision policy, unless `dtype` says otherwise.
        """
        super().__init__(**{"dtype": "float32", **kwargs})

    def build(self, input_shape: Any = None) -> None:
        """Makes a variable of each coefficient.

        Changing a variable does not trace the training step again.
        """
        self._variables = {
            name: self.add_weight(
                name=name,
                shape=(),
                dtype="float32",
                trainable=False,
                experimental_autocast=False,
                initializer=keras.initializers.Constant(getattr(self, name)),
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for name in self.coefficients
        }
        super().build(input_shape)

    def coefficient(self, name: str) -> tf.Tensor:
        """The present value of a coefficient."""
        if not self.built:
            self.build()
        return tf.convert_to_tensor(self._variables[name])

    def set_coefficient(self, name: str, value: float) -> None:
        """Changes a coefficient from the next step on.

        Raises:
          ValueError: If the method has no coefficient of that name.
        """
        if name not in self.coefficients:
            known = ", ".join(self.coefficients) or "(none)"
            raise ValueError(
                f"{type(self).__name__} has the coefficients {known}. Received: name={name!r}."
            )
        if not self.built:
            self.build()
        self._variables[name].assign(value)

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Prepares the method for a student and its teacher.

        Called once, when a `QatModel` is made.
        """
        if not self.built:
            self.build()

    def rewrite(self, student: keras.Model, make: MakeCall) -> MakeCall:
        """What the method changes in the graph that the student trains as.

        Called once, before the first training step. Inference and export read the student itself,
        which stays as it is.

        The graph is made call by call. `make(call, args, kwargs)` makes one: it returns the outputs
        of `call.layer`, a layer of the student, on symbolic tensors. A method returns a function
        with the same arguments that may change what goes in and what comes out:

            def rewrite(self, student, make):
                def perturbed(call, args, kwargs):
                    if tf_fpq.roles.is_convolution(call.layer):
                        args = (keras.layers.GaussianNoise(0.1)(args[0]), *args[1:])
                    return make(call, args, kwargs)

                return perturbed

        Args:
          student: The student.
          make: Makes a call, with the changes of the methods before this one.
        """
        return make

    def gradients(
        self, variables: Sequence[tf.Variable], compute: Callable[[], Gradients]
    ) -> Gradients:
        """Where gradients are taken, and how often.

        Called in every step. The optimizer gets what it returns.

        Args:
          variables: The variables that train, in the order of `Gradients.values`.
          compute: One forward and backward pass at the variables' present values. Losses that are
            logged are means over all passes of a step.
        """
        return compute()

    def targets(self, batch: Batch) -> Any:
        """What the method compares the student with, besides the teacher's outputs.

        Called outside the gradient tape.
        """
        return None

    def add_step_losses(self, step: Step) -> None:
        """Calls the layer on what it compares.

        Called once in every forward pass, under the gradient tape.
        """
        return

    def after_update(self) -> None:
        """Called in every step, after the optimizer's update of the student."""
        return

    def set_total_steps(self, steps: int | None) -> None:
        """Takes the number of steps that the training has, from its first epoch.

        `QatModel.fit` calls it. `steps` is None if the number is unknown.
        """
        return
