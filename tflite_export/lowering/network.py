"""The deployed network under construction: tensors and operators by name."""

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from tf_fpq import graph
from tflite_export.deployed import INT4_KINDS, INT4_LIMIT, Operator, Tensor, WeightType
from tflite_export.kernels import xnnpack_limits
from tflite_export.kernels.rounding import ROUNDINGS, activation_bounds
from tflite_export.lowering.kernel import INT8_MAX, INT8_MIN, Grids, Kernel
from tflite_export.lowering.records import BiasMove, Codes, Constant, FloatSum, Pending

# One QUANTIZE changes a scale by up to 2^7 either way.
_STEP_BITS = 7


class Network:
    """Collects tensors and operators in execution order.

    Attributes:
      tensors: By name.
      operators: In execution order.
      bias_moves: What rounding added to each bias that a variable of the student shifts.
      float_sums: How exactly the student can have each kernel's sums, by the bias' name.
    """

    def __init__(self, names: set[str], weights: WeightType = "int8"):
        """Starts empty.

        Args:
          names: Names that tensors of its own choosing must not take.
          weights: See `builder.deploy`.
        """
        self._names, self._weights = names, weights
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.bias_moves: list[BiasMove] = []
        self.float_sums: dict[str, FloatSum] = {}

    def add(self, pending: Pending, output: Tensor) -> Codes:
        """Adds an operator within a layer, on a grid that the exporter chooses."""
        output = dataclasses.replace(output, name=self.new_name(output.name))
        self.tensors[output.name] = output
        self.emit(pending, output)
        return Codes(output.name, pending.nonnegative)

    def emit(
        self, pending: Pending, output: Tensor, kept: tuple[int, int] = (INT8_MIN, INT8_MAX)
    ) -> None:
        """Writes an operator down; `kept` are the codes that clips behind it leave."""
        before = self.add_constants(f"{output.name}_leading", pending.leading)
        inputs = tuple(source.name for source in pending.sources)
        kernel: tuple[str, ...] = ()
        if pending.kernel is not None:
            kernel = self._add_kernel(pending.kernel, pending, output, kept)
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
        if pending.kind == "MUL" and pending.fused != "RELU6":
            operator = self._saturated_product(operator, output)
        xnnpack_limits.check(operator, self.tensors)
        self.operators.append(operator)

    def _saturated_product(self, operator: Operator, output: Tensor) -> Operator:
        """What writes `output`: the product, or where XNNPACK takes no step as large a QUANTIZE.

        There every product but 0 is beyond the output's grid. So the product goes to a grid of
        which its step is 2^7 steps, and its codes from there to the output, clipped on the way.
        """
        (ratio,) = xnnpack_limits.of(operator, self.tensors)
        if not xnnpack_limits.LIMITS["MUL"].end <= ratio < math.inf:
            return operator
        scale = output.one_scale * (ratio * np.float32(2.0**-_STEP_BITS))
        name = self.new_name(f"{output.name}_step")
        coarse = dataclasses.replace(output, name=name, scale=np.asarray(scale, np.float32))
        self.tensors[name] = coarse
        self.operators.append(dataclasses.replace(operator, outputs=(name,)))
        return Operator("QUANTIZE", (self._towards(name, output),), (output.name,))

    def _within_limits(self, kind: str, inputs: tuple[str, ...], output: Tensor) -> tuple[str, ...]:
        """The inputs, requantized where a runtime does not take their scales.

        That loses nothing visible.

        An operand of a sum or a product whose steps are next to nothing beside the output's gets
        larger ones, as does the input of a softmax. Codes that move to a grid far away go there in
        several steps.
        """
        if kind == "QUANTIZE":
            return (self._towards(inputs[0], output),)
        source = self.tensors[inputs[0]]
        if kind == "SOFTMAX" and source.one_scale < xnnpack_limits.LOWEST_OF_SOFTMAX:
            scale = np.float32(xnnpack_limits.LOWEST_OF_SOFTMAX)
            return (self._requantized(inputs[0], output.name, scale, source.one_zero_point),)
        if kind not in ("ADD", "SUB", "MUL"):
            return inputs
        found = list(inputs)
        lowest = xnnpack_limits.LIMITS[kind].lowest
        values = xnnpack_limits.of(Operator(kind, inputs, (output.name,)), self.tensors)
        if kind == "MUL":  # one ratio, of both: the finer operand gives way
            smaller = min(range(2), key=lambda index: self.tensors[inputs[index]].one_scale)
            values = np.where(np.arange(2) == smaller, values, np.float32(1))
        for index, ratio in enumerate(values):
            source = self.tensors[inputs[index]]
            if 0 < ratio < lowest and source.data is None:
                scale = source.one_scale * np.float32(
                    2.0 ** math.ceil(math.log2(lowest / float(ratio)))
                )
                found[index] = self._requantized(
                    inputs[index], output.name, scale, source.one_zero_point
                )
        return tuple(found)

    def _requantized(self, source: str, reader: str, scale: np.float32, zero_point: int) -> str:
        """`source` on another grid, as an input of the operator that writes `reader`."""
        grid = dataclasses.replace(
            self.tensors[source],
            name=self.new_name(f"{reader}_step"),
            scale=np.asarray(scale),
            zero_point=zero_point,
        )
        source = self._towards(source, grid)
        self.tensors[grid.name] = grid
        self.operators.append(Operator("QUANTIZE", (source,), (grid.name,)))
        return grid.name

    def _towards(self, source: str, output: Tensor) -> str:
        """`source`, or codes of it that one QUANTIZE can bring to the grid of `output`.

        The grids between are coarser than both or lie between them and clip nothing that `output`
        would not clip.
        """
        limits, tensor = xnnpack_limits.LIMITS["QUANTIZE"], self.tensors[source]
        ratio = tensor.one_scale / output.one_scale
        if limits.lowest <= ratio < limits.end or not 0 < ratio < math.inf:
            return source
        up = ratio < 1
        scale = tensor.one_scale * np.float32(2.0**_STEP_BITS if up else 2.0**-_STEP_BITS)
        between = self._requantized(
            source, output.name, scale, (tensor if up else output).one_zero_point
        )
        return self._towards(between, output)

    def _add_kernel(
        self, kernel: Kernel, pending: Pending, output: Tensor, kept: tuple[int, int]
    ) -> tuple[str, str]:
        """Adds the constant tensors of weights and bias and returns their names."""
        source = self.tensors[pending.sources[0].name]
        input_zero = source.one_zero_point
        packed = (
            self._weights == "int4"
            and pending.kind in INT4_KINDS
            and np.abs(kernel.codes).max(initial=0) <= INT4_LIMIT
        )
        grids = Grids(
            float(source.one_scale),
            (min(pending.sources[0].low - input_zero, 0), INT8_MAX - input_zero),
            float(output.one_scale),
            output.one_zero_point,
            _common(kept, _activation_range(pending.fused, output)),
        )
        stored = kernel.stored(grids, INT4_LIMIT if packed else INT8_MAX)
        if kernel.offset is not None:
            self.bias_moves.append(BiasMove(kernel.offset, stored.bias_move))
        bias_scale = (source.one_scale * stored.scale).astype(np.float32)
        name, bias_name = self.new_name(kernel.name), self.new_name(f"{kernel.name}_bias")
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
        move = np.abs(stored.bias_move) + stored.weights_move
        terms = kernel.codes.size // len(kernel.bias)
        self.float_sums[bias_name] = FloatSum(move, kernel.magnitude(grids), terms)
        self.tensors[bias_name] = Tensor(
            bias_name, stored.bias.shape, "int32", bias_scale, 0, axes[1], stored.bias
        )
        return name, bias_name

    def add_constants(self, name: str, constants: tuple[Constant, ...]) -> tuple[str, ...]:
        """Adds constant tensors (arrays become int32) and returns their names."""
        names = tuple(self.new_name(f"{name}_constant_{index}") for index in range(len(constants)))
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
        constants: tuple[Constant, ...] = (),
    ) -> Codes:
        """Adds an operator that only moves or selects codes: output on the inputs' grid."""
        grid = self.tensors[sources[0].name]
        self.tensors[name] = Tensor(name, shape, grid.dtype, grid.scale, grid.zero_point)
        inputs = (*(source.name for source in sources), *self.add_constants(name, constants))
        self.operators.append(Operator(kind, inputs, (name,), options or {}))
        return Codes(
            name,
            all(source.nonnegative for source in sources),
            min(source.low for source in sources),
        )

    def before_clips(self, tensor: Tensor, low: int, high: int) -> Tensor:
        """Adds the tensor that an operator writes: `tensor` itself where the container clips it."""
        clipped = low > INT8_MIN or high < INT8_MAX
        written = (
            dataclasses.replace(tensor, name=self.new_name(f"{tensor.name}_unbounded"))
            if clipped
            else tensor
        )
        self.tensors[written.name] = written
        return written

    def clip(self, tensor: Tensor, low: int, high: int, codes: Codes) -> Codes:
        """Adds the clips that an int8 container and fused activations do not give.

        The last one writes `tensor`.
        """
        bounds = [("MAXIMUM", low)] * (low > INT8_MIN) + [("MINIMUM", high)] * (high < INT8_MAX)
        for index, (kind, bound) in enumerate(bounds):
            last = index == len(bounds) - 1
            target = tensor.name if last else self.new_name(f"{tensor.name}_{kind.lower()}")
            data = np.array([bound], np.int8)
            (constant,) = self.add_constants(
                target, (dataclasses.replace(tensor, shape=(1,), data=data),)
            )
            self.tensors[target] = dataclasses.replace(tensor, name=target)
            self.operators.append(Operator(kind, (codes.name, constant), (target,)))
            codes = dataclasses.replace(codes, name=target)
        return codes

    def new_name(self, name: str) -> str:
        """A name for a tensor that is no call's output."""
        return graph.unique_name(name, self._names)


class Start(Protocol):
    """A function that makes the operator which a layer begins."""

    def __call__(
        self, builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any, /
    ) -> Codes | Pending:
        """Makes the operator.

        Args:
          builder: What the operator and its tensors are added to.
          layer: The Keras layer, wrapped or not.
          name: Name of the call.
          sources: What it reads.
          output: The student's symbolic output, for its shape.

        Returns:
          The operator, which the next grid completes, or where codes only move
          `builder.add_moved(...)`.
        """
        ...


def _activation_range(activation: str, grid: Tensor) -> tuple[int, int]:
    """Lowest and highest code under a fused activation.

    Where the kernel sets disagree on a tie it is the wider range.
    """
    ends = [
        activation_bounds(activation, grid.one_scale, grid.one_zero_point, "int8", rounding)
        for rounding in ROUNDINGS
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), min(a[1], b[1])
