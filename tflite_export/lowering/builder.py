"""From a trained student to its deployed model.

The student is walked once, in order. A layer that starts an operator gives a `Pending`; affine
layers and clamps join it; the `QuantizeActivation` after it brings the output's grid and the
operator is written down. Biases are rounded to multiples of `input scale * weight scale`. That
rounding, and the runtime's integer arithmetic, are all that separates student and file.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.deployed_rounding import DeployedRounding
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.deployed import DeployedModel, Tensor, WeightType
from tflite_export.lowering import operators
from tflite_export.lowering.kernel import INT8_MAX, INT8_MIN
from tflite_export.lowering.network import Network
from tflite_export.lowering.records import BiasMove, Codes, FloatSum, Pending

# Codes of clamps stay below int32's limit with room for a zero point.
_CODE_LIMIT = 2**30


def deploy(student: keras.Model, weights: WeightType = "int8") -> DeployedModel:
    """Builds the deployed model of `student`.

    Args:
      student: A model from `tf_fpq.quantize_model`.
      weights: "int4" for packed tensors where LiteRT has them and the codes fit, else "int8".

    Raises:
      ValueError: If the student was not made by `tf_fpq.quantize_model`, a layer of it is not
        quantized, or a weight is no number.
    """
    return lower(student, weights).deployed


@dataclasses.dataclass(frozen=True, eq=False)
class Lowered:
    """What one walk over a student finds.

    Attributes:
      deployed: The deployed model.
      bias_moves: What to add to the student's variables so that its biases lie on their int32
        grids. A variable that shifts several kernels, of a shared layer, cannot be on all their
        grids and is left out; a channel that is a constant does not move.
      float_sums: How exactly the student can have the sums of each kernel, by the bias' name.
    """

    deployed: DeployedModel
    bias_moves: tuple[BiasMove, ...]
    float_sums: Mapping[str, FloatSum]

    def round_biases(self) -> float:
        """Moves the student's biases onto the int32 grid of the deployed model, in place.

        The file rounds every folded bias to a multiple of `input scale * weight scale`, a small
        part of an output step, and a value that this tips over makes other values tip behind it.
        Training cannot avoid it, as the grid moves with every step. After training, this adds the
        difference to the variable that the bias comes from (a layer's bias, or the beta of its
        batch norm), by at most half a bias step. The deployed model is the same before and after;
        the student then computes what it does.

        Returns:
          The largest move.
        """
        for found in self.bias_moves:
            found.variable.assign(found.variable.numpy().astype(np.float64) + found.move)
        return max((float(np.abs(found.move).max()) for found in self.bias_moves), default=0.0)


def lower(student: keras.Model, weights: WeightType = "int8") -> Lowered:
    """Walks over `student` once; arguments and errors are those of `deploy`."""
    graph.check_finite(student, "student")
    return _Walk(student, weights).lowered()


def round_biases(student: keras.Model, weights: WeightType = "int8") -> float:
    """Moves the student's biases onto their grids, as `Lowered.round_biases`."""
    return lower(student, weights).round_biases()


class _Walk:
    """Takes the student's layers in order and adds what they become to a network."""

    def __init__(self, student: keras.Model, weights: WeightType):
        self._student = student
        self._network = Network({call.name for call in graph.calls(student)}, weights)
        self._values: dict[int, Codes | Pending | None] = {
            id(tensor): None for tensor in student.inputs
        }
        # Position among the student's inputs, and name.
        self._inputs: list[tuple[int, str]] = []

    def lowered(self) -> Lowered:
        for call in graph.calls(self._student):
            sources = [self._values[id(tensor)] for tensor in call.inputs]
            self._values[id(call.outputs[0])] = self._visit(call, sources)
        inputs = tuple(name for _, name in sorted(self._inputs))
        outputs = tuple(self._output(tensor) for tensor in self._student.outputs)
        network, moves = self._network, self._network.bias_moves
        deployed = DeployedModel(
            network.tensors, tuple(network.operators), inputs, outputs, self._student.name
        )
        # A variable of a shared layer lies on several grids, and cannot be moved onto all of them.
        several = collections.Counter(id(found.variable) for found in moves)
        alone = tuple(m for m in moves if several[id(m.variable)] == 1)
        return Lowered(deployed, alone, network.float_sums)

    def _output(self, tensor: Any) -> str:
        value = self._values[id(tensor)]
        if not isinstance(value, Codes):
            raise ValueError(
                f"student {self._student.name!r} has an output that is on no integer grid; make it"
                " with tf_fpq.quantize_model."
            )
        return value.name

    def _visit(self, call: graph.Call, sources: list[Codes | Pending | None]) -> Codes | Pending:
        name, output = call.name, call.outputs[0]
        if isinstance(call.layer, QuantizeActivation):
            return self._quantize(call, sources[0])
        first, rounds = sources[0], isinstance(call.layer, DeployedRounding)
        if isinstance(first, Pending) and all(source is not None for source in sources):
            return first if rounds else operators.join(call.layer, first)
        codes = tuple(source for source in sources if isinstance(source, Codes))
        if len(codes) < len(sources):
            raise ValueError(
                f"Layer {name!r} reads a float input; make the student with tf_fpq.quantize_model."
            )
        if rounds:
            return codes[0]
        return operators.start(self._network, call.layer, name, codes, output)

    def _quantize(self, call: graph.Call, value: Codes | Pending | None) -> Codes:
        """Gives the grid of a `QuantizeActivation` to what it quantizes.

        That is a pending operator, an input of the model, or codes on another grid.

        The codes of a narrow grid lie at the upper end of the int8 container, where its clip to 127
        comes for free. A worked number: 4 bits have the codes 0 to 15. In the container they are
        127 - 15 = 112 to 127, and the zero point 6 becomes 112 + 6 = 118. A code 9 becomes 121, and
        its value `step * (9 - 6)` is still `step * (121 - 118)`.
        """
        layer, name, output = call.layer, call.name, call.outputs[0]
        spec = layer.quantizer.spec
        step_size, zero_point = (
            np.float32(part) for part in layer.quantizer.grid(layer.variables_of_quantizer)
        )
        grid_zero = INT8_MAX - spec.qmax + int(zero_point)  # 127 - 15 + 6 = 118 for 4 bits
        tensor = Tensor(
            name, static_shape(output), "int8", np.asarray(step_size, np.float32), grid_zero
        )
        lowest = INT8_MAX - (spec.qmax - spec.qmin)
        if value is None:
            position = [id(source) for source in self._student.inputs].index(id(call.inputs[0]))
            return self._model_input(position, tensor, lowest)
        pending = (
            Pending("QUANTIZE", (value,), monotone=True) if isinstance(value, Codes) else value
        )
        pending = _within_int32(pending, tensor)
        low = INT8_MIN if pending.nonnegative else lowest
        # A fused RELU6 clips at 6 itself, without a MINIMUM behind it.
        high = (
            INT8_MAX
            if "RELU6" in (pending.fused, pending.kind)
            else _code(pending.clamp[1], tensor)
        )
        written = self._network.before_clips(tensor, low, high)
        self._network.emit(pending, written, (low, high))
        reached = grid_zero if pending.nonnegative else lowest
        return self._network.clip(
            tensor, low, high, Codes(written.name, pending.nonnegative, reached)
        )

    def _model_input(self, position: int, tensor: Tensor, lowest: int) -> Codes:
        written = self._network.before_clips(tensor, lowest, INT8_MAX)
        self._inputs.append((position, written.name))
        return self._network.clip(tensor, lowest, INT8_MAX, Codes(written.name, low=lowest))


def _code(bound: float, grid: Tensor) -> int:
    """The code of a clamp's upper bound, within the container."""
    if math.isinf(bound):
        return INT8_MAX
    return int(
        np.clip(np.rint(np.float32(bound) / grid.one_scale) + grid.zero_point, INT8_MIN, INT8_MAX)
    )


def _within_int32(pending: Pending, grid: Tensor) -> Pending:
    """`pending` without a clamp at 6 that lies far above the grid.

    TFLite refuses a clamp whose code `6 / scale` overflows int32.
    """
    if pending.clamp != (0.0, 6.0) or 6.0 / float(grid.one_scale) < _CODE_LIMIT:
        return pending
    kind = "RELU" if pending.kind == "RELU6" else pending.kind
    return dataclasses.replace(pending, kind=kind, clamp=(0.0, math.inf))


def static_shape(tensor: Any) -> tuple[int, ...]:
    """Static shape with batch 1."""
    shape = (1, *tensor.shape[1:])
    if None in shape:
        raise ValueError(
            f"{tensor.name!r} has no static shape: {tuple(tensor.shape)}. Give the model's input a"
            " fixed size."
        )
    return shape


def student_codes(student: keras.Model) -> Callable[[Any], dict[str, tf.Tensor]]:
    """A function of images that returns the student's own codes.

    They are those of the deployed activation tensors, int8 values by tensor name.
    """
    quantized = {
        call.name: (call.layer, call.outputs[0])
        for call in graph.calls(student)
        if isinstance(call.layer, QuantizeActivation)
    }
    probe = graph.functional(
        student.inputs, {name: output for name, (_, output) in quantized.items()}
    )

    def codes(images: Any) -> dict[str, tf.Tensor]:
        values = probe(images, training=False)
        return {
            name: layer.codes(values[name]) + float(INT8_MAX - layer.quantizer.spec.qmax)
            for name, (layer, _) in quantized.items()
        }

    return codes
