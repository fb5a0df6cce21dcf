"""SQuaT: distillation of features from a teacher that is put on the student's grid.

SQuaT: *Self-Supervised Knowledge Distillation via Student-Aware Quantized Teacher Features*,
AISTATS 2026 (arXiv 2608.10709). Only the abstract could be read; the equation is a reconstruction
from it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_fpq import graph
from tf_fpq.autograph import translated
from tf_fpq.keras_compat import keras, register, untracked
from tf_fpq.methods.base import Method, Step
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.student_layers.quantized_layers import QuantizeActivation


class _Pair(NamedTuple):
    """A quantized tensor of the student, and the teacher's tensor before any grid.

    Attributes:
      student: Name of the call of the quantizing layer.
      teacher: Name of the call whose output that layer reads.
      layer: The quantizing layer.
    """

    student: str
    teacher: str
    layer: QuantizeActivation


def grid_distance(layer: QuantizeActivation, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of the student's feature and the teacher's on the student's grid.

        mean( ((x_s - Q(x_t)) / (s (qmax - qmin)))^2 )

    `Q` is the quantizer that made `x_s`, and `s` its step size. The unit is the range of the grid,
    so that 2-bit and 8-bit layers count alike. A student can make the distance 0, which it cannot
    with features that are on no grid.

    A worked number: at 2 bits a feature that is a code off everywhere has the distance 1/9.

    Args:
      layer: The student's quantizing layer.
      student: What it put out.
      teacher: What it would have read if the student were the teacher. There is no gradient to it,
        nor to the grid.
    """
    variables = layer.variables_of_quantizer
    quantized = translated(layer.quantizer)(tf.cast(teacher, tf.float32), False, variables)
    target = tf.stop_gradient(quantized)
    step_size = tf.stop_gradient(layer.quantizer.grid(variables)[0])
    spec = layer.quantizer.spec
    return tf.reduce_mean(tf.square((student - target) / (step_size * (spec.qmax - spec.qmin))))


@register
class StudentGridDistillation(Method):
    """Adds the distance of quantized features to the teacher's on the same grids (SQuaT).

        L = weight * sum over quantized tensors of grid_distance

    The tensors are those that a `QuantizeActivation` layer of the student makes of the output of a
    layer that the teacher has too. Images and outputs are left out; `KnowledgeDistillation`
    compares the latter.

    Note: the authors train without labels, and distill the outputs besides. Here the task loss
    stays, as with the other methods; add `KnowledgeDistillation` for the outputs.

        methods = [tf_fpq.StudentGridDistillation(), tf_fpq.KnowledgeDistillation()]
        model = tf_fpq.QatModel(student, teacher, methods)
    """

    needs_teacher = True
    has_loss = True
    coefficients = ("weight",)

    def __init__(self, weight: float = 1.0, name: str = "squat", **kwargs: Any):
        """Creates the method.

        Args:
          weight: Factor of the loss; the default is chosen here.
          name: Name of the method; the loss is logged as `<name>_loss`.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `weight` is negative.
        """
        super().__init__(name=name, **kwargs)
        check_not_negative("weight", weight)
        self.weight = weight

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Pairs the student's quantized tensors with the teacher's; see `quantized_pairs`."""
        super().attach(student, teacher)
        pairs = quantized_pairs(student, teacher)
        untracked(self, _pairs=pairs)
        self.student_features = tuple(pair.student for pair in pairs)
        self.teacher_features = tuple(dict.fromkeys(pair.teacher for pair in pairs))

    def call(self, inputs: Sequence[Any]) -> Any:
        """Adds the loss of the lists `[student_features, teacher_features]`; returns the former."""
        student, teacher = inputs
        distances = [
            grid_distance(pair.layer, ours, theirs)
            for pair, ours, theirs in zip(self._pairs, student, teacher, strict=True)
        ]
        self.add_loss(self.coefficient("weight") * tf.add_n(distances))
        return student

    def add_step_losses(self, step: Step) -> None:
        """Compares all pairs."""
        self(
            [
                [step.features[pair.student] for pair in self._pairs],
                [step.teacher_features[pair.teacher] for pair in self._pairs],
            ]
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "weight": self.weight}


def quantized_pairs(student: keras.Model, teacher: keras.Model) -> list[_Pair]:
    """The student's quantized tensors with a tensor of the same place in the teacher.

    Raises:
      ValueError: If there is none, or the teacher's has another shape.
    """
    writers = {id(call.outputs[0]): call for call in graph.calls(student)}
    theirs = {call.name: tuple(call.outputs[0].shape) for call in graph.calls(teacher)}
    outputs = {id(tensor) for tensor in student.outputs}
    pairs = []
    for call in graph.calls(student):
        writer = writers.get(id(call.inputs[0]))
        if not isinstance(call.layer, QuantizeActivation) or id(call.outputs[0]) in outputs:
            continue
        if writer is None or writer.name not in theirs:
            continue
        shape = tuple(call.outputs[0].shape)
        if theirs[writer.name] != shape:
            raise ValueError(
                f"The teacher's {writer.name!r} must have the student's shape {shape}. Received:"
                f" {theirs[writer.name]}."
            )
        pairs.append(_Pair(call.name, writer.name, call.layer))
    if not pairs:
        raise ValueError(
            f"No quantized tensor of student {student.name!r} has a layer of the same name in the"
            " teacher. Quantize the teacher itself, or give its layers the student's names."
        )
    return pairs
