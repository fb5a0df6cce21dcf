"""From a trained student to its deployed model.

The student is walked once, in order. A layer that starts an operator gives a `Pending`; affine
layers and clamps join it; the `QuantizeActivation` after it brings the output's grid and the
operator is written down. Biases are rounded to multiples of `input scale * weight scale`. That
rounding, and the runtime's integer arithmetic, are all that separates student and file.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.placement.deployed_rounding import DeployedRounding
from tf_fpq.placement.quantized_layers import QuantizeActivation
from tflite_export.deployed import (
    INT4_KINDS,
    INT4_LIMIT,
    DeployedModel,
    Operator,
    Tensor,
    WeightType,
)
from tflite_export.kernels import xnnpack_limits
from tflite_export.kernels.rounding import ROUNDINGS, activation_bounds
from tflite_export.lowering import operators
from tflite_export.lowering.kernel import INT8_MAX, INT8_MIN, Grids
from tflite_export.lowering.operators import Codes, Pending

# Codes of clamps stay below int32's limit with room for a zero point.
_CODE_LIMIT = 2**30
# One QUANTIZE changes a scale by up to 2^7 either way.
_STEP_BITS = 7


def deploy(student: keras.Model, weights: WeightType = "int8") -> DeployedModel:
    """Builds the deployed model of `student`.

    Args:
      student: A model from `tf_fpq.quantize_model`.
      weights: "int4" for packed tensors where LiteRT has them and the codes fit, else "int8".

    Raises:
      ValueError: If the student was not made by `tf_fpq.quantize_model`, a layer of it is not
        quantized, or a weight is no number.
    """
    return Builder(student, weights).build()


def round_biases(student: keras.Model, weights: WeightType = "int8") -> float:
    """Moves the student's biases onto the int32 grid of the deployed model, in place.

    The file rounds every folded bias to a multiple of `input scale * weight scale`, a small part of
    an output step, and a value that this tips over makes other values tip behind it. Training
    cannot avoid it, as the grid moves with every step. After training, this adds the difference to
    the variable that the bias comes from (a layer's bias, or the beta of its batch norm), by at
    most half a bias step. The deployed model is the same before and after; the student then
    computes what it does.

    Args:
      student: A trained model from `tf_fpq.quantize_model`.
      weights: See `deploy`; packed weights have coarser grids.

    Returns:
      The largest move.
    """
    moves = bias_moves(student, weights)
    for variable, move in moves:
        variable.assign(variable.numpy().astype(np.float64) + move)
    return max((float(np.abs(move).max()) for _, move in moves), default=0.0)


def bias_moves(
    student: keras.Model, weights: WeightType = "int8"
) -> list[tuple[tf.Variable, np.ndarray]]:
    """What to add to the student's variables so that its biases lie on their int32 grids; see
    `round_biases`.

    A variable that shifts several kernels, of a shared layer, cannot be on all their grids and is
    left out.
    """
    builder = Builder(student, weights)
    builder.build()
    variables = [variable for variable, _ in builder.bias_moves]
    return [
        (v, move) for v, move in builder.bias_moves if sum(v is other for other in variables) == 1
    ]


class Builder:
    """Collects tensors and operators along a student."""

    def __init__(self, student: keras.Model, weights: WeightType = "int8"):
        self._student = student
        self._weights = weights
        self.tensors: dict[str, Tensor] = {}
        self._operators: list[Operator] = []
        self._values: dict[int, Codes | Pending | None] = {
            id(tensor): None for tensor in student.inputs
        }
        # Position among the student's inputs, and name.
        self._inputs: list[tuple[int, str]] = []
        self._names = {call.name for call in graph.calls(student)}
        self.bias_moves: list[tuple[tf.Variable, np.ndarray]] = []

    def build(self) -> DeployedModel:
        """Walks the student."""
        graph.check_finite(self._student, "student")
        for call in graph.calls(self._student):
            sources = [self._values[id(tensor)] for tensor in call.inputs]
            self._values[id(call.outputs[0])] = self._visit(call, sources)
        inputs = tuple(name for _, name in sorted(self._inputs))
        outputs = tuple(self._output(tensor) for tensor in self._student.outputs)
        return DeployedModel(
            self.tensors, tuple(self._operators), inputs, outputs, self._student.name
        )

    def _output(self, tensor: Any) -> str:
        value = self._values[id(tensor)]
        if not isinstance(value, Codes):
            raise ValueError(
                f"student {self._student.name!r} has an output that is on no integer grid; make it"
                " with tf_fpq.quantize_model."
            )
        return value.name

    def _visit(self, call: graph.Call, sources: list[Any]) -> Codes | Pending:
        name, output = call.name, call.outputs[0]
        if isinstance(call.layer, QuantizeActivation):
            return self._quantize(call, sources[0])
        if any(source is None for source in sources):
            raise ValueError(
                f"Layer {name!r} reads a float input; make the student with tf_fpq.quantize_model."
            )
        if isinstance(call.layer, DeployedRounding):
            return sources[0]
        if isinstance(sources[0], Pending):
            return operators.join(call.layer, sources[0])
        return operators.start(self, call.layer, name, tuple(sources), output)

    def _quantize(self, call: graph.Call, value: Any) -> Codes:
        """Gives the grid of a `QuantizeActivation` to a pending operator, a model input, or codes
        on another grid.
        """
        layer, name, output = call.layer, call.name, call.outputs[0]
        spec = layer.quantizer.spec
        step_size, zero_point = (
            np.float32(part) for part in layer.quantizer.grid(layer.variables_of_quantizer)
        )
        grid_zero = INT8_MAX - spec.qmax + int(zero_point)
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
        high = (
            INT8_MAX
            if "RELU6" in (pending.fused, pending.kind)
            else _code(pending.clamp[1], tensor)
        )
        written = self._before_clips(tensor, low, high)
        self._emit(pending, written, (low, high))
        reached = grid_zero if pending.nonnegative else lowest
        return self._clip(tensor, low, high, Codes(written.name, pending.nonnegative, reached))

    def _model_input(self, position: int, tensor: Tensor, lowest: int) -> Codes:
        written = self._before_clips(tensor, lowest, INT8_MAX)
        self._inputs.append((position, written.name))
        return self._clip(tensor, lowest, INT8_MAX, Codes(written.name, low=lowest))

    def _before_clips(self, tensor: Tensor, low: int, high: int) -> Tensor:
        """Adds the tensor that an operator writes: `tensor` itself where the container clips it."""
        clipped = low > INT8_MIN or high < INT8_MAX
        written = (
            dataclasses.replace(tensor, name=self._new_name(f"{tensor.name}_unbounded"))
            if clipped
            else tensor
        )
        self.tensors[written.name] = written
        return written

    def _clip(self, tensor: Tensor, low: int, high: int, codes: Codes) -> Codes:
        """Adds the clips that an int8 container and fused activations do not give; the last one
        writes `tensor`.
        """
        bounds = [("MAXIMUM", low)] * (low > INT8_MIN) + [("MINIMUM", high)] * (high < INT8_MAX)
        for index, (kind, bound) in enumerate(bounds):
            last = index == len(bounds) - 1
            target = tensor.name if last else self._new_name(f"{tensor.name}_{kind.lower()}")
            data = np.array([bound], np.int8)
            (constant,) = self.add_constants(
                target, (dataclasses.replace(tensor, shape=(1,), data=data),)
            )
            self.tensors[target] = dataclasses.replace(tensor, name=target)
            self._operators.append(Operator(kind, (codes.name, constant), (target,)))
            codes = dataclasses.replace(codes, name=target)
        return codes

    def _new_name(self, name: str) -> str:
        """A name for a tensor that is no call's output."""
        return graph.unique_name(name, self._names)

    def add(self, pending: Pending, output: Tensor) -> Codes:
        """Adds an operator within a layer, on a grid that the exporter chooses."""
        output = dataclasses.replace(output, name=self._new_name(output.name))
        self.tensors[output.name] = output
        self._emit(pending, output)
        return Codes(output.name, pending.nonnegative)

    def _emit(
        self, pending: Pending, output: Tensor, kept: tuple[int, int] = (INT8_MIN, INT8_MAX)
    ) -> None:
        """Writes an operator down; `kept` are the codes that clips behind it leave."""
        before = self.add_constants(f"{output.name}_leading", pending.leading)
        inputs = tuple(source.name for source in pending.sources)
        kernel: tuple[str, ...] = ()
        if pending.kernel is not None:
            kernel = self._add_kernel(pending, output, kept)
        if pending.kind == "TRANSPOSE_CONV":
            inputs = (*before, kernel[0], *inputs, kernel[1])
        else:
            inputs = (
                *before,
                *inputs,
                *kernel,
                *self.add_constants(output.name, pending.constants),
            )
        options = {**pending.options, **({"activation": pending.fused} if pending.fuses else {})}
        inputs = self._within_limits(pending.kind, inputs, output)
        operator = Operator(pending.kind, inputs, (output.name,), options)
        xnnpack_limits.check(operator, self.tensors)
        self._operators.append(operator)

    def _within_limits(self, kind: str, inputs: tuple[str, ...], output: Tensor) -> tuple[str, ...]:
        """The inputs, requantized where a runtime does not take their scales, which loses nothing
        visible.

        An operand of a sum or a product whose steps are next to nothing beside the output's gets
        larger ones, as does the input of a softmax. Codes that move to a grid far away go there in
        several steps.
        """
        if kind == "QUANTIZE":
            return (self._towards(inputs[0], output),)
        source = self.tensors[inputs[0]]
        if kind == "SOFTMAX" and source.scale < xnnpack_limits.LOWEST_OF_SOFTMAX:
            scale = np.float32(xnnpack_limits.LOWEST_OF_SOFTMAX)
            return (self._requantized(inputs[0], output.name, scale, source.zero_point),)
        if kind not in ("ADD", "SUB", "MUL"):
            return inputs
        found = list(inputs)
        lowest = xnnpack_limits.LIMITS[kind].lowest
        values = xnnpack_limits.of(Operator(kind, inputs, (output.name,)), self.tensors)
        if kind == "MUL":  # one ratio, of both: the finer operand gives way
            smaller = min(range(2), key=lambda index: self.tensors[inputs[index]].scale)
            values = np.where(np.arange(2) == smaller, values, np.float32(1))
        for index, ratio in enumerate(values):
            source = self.tensors[inputs[index]]
            if 0 < ratio < lowest and source.data is None:
                scale = source.scale * np.float32(
                    2.0 ** math.ceil(math.log2(lowest / float(ratio)))
                )
                found[index] = self._requantized(
                    inputs[index], output.name, scale, source.zero_point
                )
        return tuple(found)

    def _requantized(self, source: str, reader: str, scale: np.float32, zero_point: int) -> str:
        """`source` on another grid, as an input of the operator that writes `reader`."""
        grid = dataclasses.replace(
            self.tensors[source],
            name=self._new_name(f"{reader}_step"),
            scale=np.asarray(scale),
            zero_point=zero_point,
        )
        source = self._towards(source, grid)
        self.tensors[grid.name] = grid
        self._operators.append(Operator("QUANTIZE", (source,), (grid.name,)))
        return grid.name

    def _towards(self, source: str, output: Tensor) -> str:
        """`source`, or codes of it that one QUANTIZE can bring to the grid of `output`.

        The grids between are coarser than both or lie between them and clip nothing that `output`
        would not clip.
        """
        limits, tensor = xnnpack_limits.LIMITS["QUANTIZE"], self.tensors[source]
        ratio = tensor.scale / output.scale
        if limits.lowest <= ratio < limits.end or not 0 < ratio < math.inf:
            return source
        up = ratio < 1
        scale = tensor.scale * np.float32(2.0**_STEP_BITS if up else 2.0**-_STEP_BITS)
        between = self._requantized(
            source, output.name, scale, tensor.zero_point if up else output.zero_point
        )
        return self._towards(between, output)

    def _add_kernel(
        self, pending: Pending, output: Tensor, kept: tuple[int, int]
    ) -> tuple[str, str]:
        """Adds the constant tensors of weights and bias and returns their names."""
        kernel, source = pending.kernel, self.tensors[pending.sources[0].name]
        packed = (
            self._weights == "int4"
            and pending.kind in INT4_KINDS
            and np.abs(kernel.codes).max(initial=0) <= INT4_LIMIT
        )
        grids = Grids(
            float(source.scale),
            (min(pending.sources[0].low - source.zero_point, 0), INT8_MAX - source.zero_point),
            float(output.scale),
            output.zero_point,
            _common(kept, _activation_range(pending.fused, output)),
        )
        stored = kernel.stored(grids, INT4_LIMIT if packed else INT8_MAX)
        if kernel.offset is not None:
            self.bias_moves.append((kernel.offset, stored.bias_move))
        bias_scale = (source.scale * stored.scale).astype(np.float32)
        name, bias_name = self._new_name(kernel.name), self._new_name(f"{kernel.name}_bias")
        axes = (kernel.axis, 0) if stored.scale.ndim else (None, None)
        self.tensors[name] = Tensor(
            name,
            stored.codes.shape,
            "int4" if packed else "int8",
            stored.scale,
            0,
            axes[0],
            stored.codes,
        )
        self.tensors[bias_name] = Tensor(
            bias_name, stored.bias.shape, "int32", bias_scale, 0, axes[1], stored.bias
        )
        return name, bias_name

    def add_constants(
        self, name: str, constants: tuple[np.ndarray | Tensor, ...]
    ) -> tuple[str, ...]:
        """Adds constant tensors (arrays become int32) and returns their names."""
        names = tuple(self._new_name(f"{name}_constant_{index}") for index in range(len(constants)))
        for constant_name, data in zip(names, constants, strict=True):
            if isinstance(data, Tensor):
                self.tensors[constant_name] = dataclasses.replace(data, name=constant_name)
            else:
                self.tensors[constant_name] = Tensor(
                    constant_name, data.shape, "int32", data=data.astype(np.int32)
                )
        return names

    def add_moved(
        self,
        kind: str,
        name: str,
        sources: tuple[Codes, ...],
        shape: tuple[int, ...],
        options: dict[str, Any] | None = None,
        constants: tuple[np.ndarray, ...] = (),
    ) -> Codes:
        """Adds an operator that only moves or selects codes: output on the inputs' grid."""
        grid = self.tensors[sources[0].name]
        self.tensors[name] = Tensor(name, shape, grid.dtype, grid.scale, grid.zero_point)
        inputs = (*(source.name for source in sources), *self.add_constants(name, constants))
        self._operators.append(Operator(kind, inputs, (name,), options or {}))
        return Codes(
            name,
            all(source.nonnegative for source in sources),
            min(source.low for source in sources),
        )


def _code(bound: float, grid: Tensor) -> int:
    """The code of a clamp's upper bound, within the container."""
    if math.isinf(bound):
        return INT8_MAX
    return int(
        np.clip(np.rint(np.float32(bound) / grid.scale) + grid.zero_point, INT8_MIN, INT8_MAX)
    )


def _activation_range(activation: str, grid: Tensor) -> tuple[int, int]:
    """Lowest and highest code under a fused activation; where the kernel sets disagree on a tie,
    the wider range.
    """
    ends = [
        activation_bounds(activation, float(grid.scale), grid.zero_point, "int8", rounding)
        for rounding in ROUNDINGS
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), min(a[1], b[1])


def _within_int32(pending: Pending, grid: Tensor) -> Pending:
    """`pending` without a clamp at 6 that the grid is far below: TFLite refuses one whose code `6 /
    scale` overflows int32.
    """
    if pending.clamp != (0.0, 6.0) or 6.0 / float(grid.scale) < _CODE_LIMIT:
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
    """A function of images that returns the student's own codes of its deployed activation tensors,
    int8 values by tensor name.
    """
    quantized = {
        call.name: (call.layer, call.outputs[0])
        for call in graph.calls(student)
        if isinstance(call.layer, QuantizeActivation)
    }
    probe = keras.Model(student.inputs, {name: output for name, (_, output) in quantized.items()})

    def codes(images: Any) -> dict[str, tf.Tensor]:
        values = probe(images, training=False)
        return {
            name: layer.codes(values[name]) + float(INT8_MAX - layer.quantizer.spec.qmax)
            for name, (layer, _) in quantized.items()
        }

    return codes
