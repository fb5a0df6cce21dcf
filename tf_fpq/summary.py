"""`summary(model)`: what each layer of a student costs, and on which grid it computes."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from tf_fpq import graph, roles
from tf_fpq.graph import Call
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers.base import GridQuantizer
from tf_fpq.student_layers.quantized_layers import (
    QuantizeActivation,
    QuantizedLayer,
    quantized_weights,
)

FLOAT_BITS = 32
# A bias is an int32 in the deployed model, batch norm is folded into it.
BIAS_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One layer with a kernel, or one activation grid.

    Attributes:
      layer: Name of the layer.
      kind: Class of the layer (of the inner one, for a wrapped layer).
      weight_bits: Width of the kernel, 32 if it is float, None for an activation.
      activation_bits: Width of the tensor that the layer reads, or of the grid itself; 32 is float.
      granularity: "channel", "tensor" or "float".
      step_size: Median step size, None without one.
      weights: Number of weights in the kernel.
      float_bytes: Bytes of the layer's weights in the float model.
      bytes: Bytes of kernel codes at their own width, and int32 biases.
      container_bytes: The same in the int8 containers that are exported.
      macs: Multiply-accumulate operations for one image.
    """

    layer: str
    kind: str
    weight_bits: int | None
    activation_bits: int
    granularity: str
    step_size: float | None
    weights: int = 0
    float_bytes: int = 0
    bytes: int = 0
    container_bytes: int = 0
    macs: int = 0

    @property
    def scheme(self) -> str:
        """Precision of the layer's multiplications, as in "W4A4"."""
        return f"W{self.weight_bits}A{self.activation_bits}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of a model, in execution order; `print(summary)` shows them as a table.

        print(tf_fpq.summary(student).bytes)

    Attributes:
      model: Name of the model.
      rows: The layers.
    """

    model: str
    rows: tuple[SummaryRow, ...]

    @property
    def float_bytes(self) -> int:
        """Bytes of the float model's weights."""
        return sum(row.float_bytes for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of the quantized model's weights, each code at its own width."""
        return sum(row.bytes for row in self.rows)

    @property
    def container_bytes(self) -> int:
        """Bytes of the quantized model's weights in the containers that are exported."""
        return sum(row.container_bytes for row in self.rows)

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulate operations for one image by precision.

        For example `{"W8A8": 1000, "W4A4": 20000}`.
        """
        macs: dict[str, int] = {}
        for row in self.rows:
            if row.weight_bits is not None:
                macs[row.scheme] = macs.get(row.scheme, 0) + row.macs
        return macs

    def __str__(self) -> str:
        header = ["layer", "kind", "W", "A", "granularity", "step size", "weights", "bytes", "MACs"]
        lines = table_lines(header, [_cells(row) for row in self.rows])
        ratio = self.float_bytes / self.bytes if self.bytes else math.nan
        totals = [
            (
                f"weights: {self.float_bytes:,} bytes float, {self.bytes:,} quantized ({ratio:.1f}"
                f" times smaller), {self.container_bytes:,} in int8 containers"
            ),
            "MACs per image: "
            + (", ".join(f"{n:,} {scheme}" for scheme, n in self.macs.items()) or "0"),
        ]
        return "\n".join([f"model {self.model}", *lines, lines[1], *totals])


def _cells(row: SummaryRow) -> list[str]:
    weighted = row.weight_bits is not None
    return [
        row.layer,
        row.kind,
        str(row.weight_bits) if weighted else "",
        str(row.activation_bits),
        row.granularity,
        "" if row.step_size is None else f"{row.step_size:.4g}",
        *(f"{value:,}" if weighted else "" for value in (row.weights, row.bytes, row.macs)),
    ]


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Header, a rule and rows as text; the first two columns are names, the others numbers."""
    table = [header, *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    lines = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths)))
        for line in table
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def summary(model: keras.Model) -> Summary:
    """Returns what every layer with a kernel and every activation grid of `model` costs.

        print(tf_fpq.summary(student))

    Args:
      model: A functional model: a student from `quantize_model`, or a float model.

    Raises:
      ValueError: If `model` is not a functional Keras 2 model.
    """
    if not graph.is_functional(model):
        raise ValueError(f"model must be a functional tf_keras model. Received: model={model!r}.")
    calls: dict[str, list[Call]] = {}
    bits: dict[int, int] = {}  # id of a symbolic tensor -> width of the grid that it lies on
    for call in graph.calls(model):
        calls.setdefault(call.layer.name, []).append(call)
        bits.update({id(tensor): _output_bits(call, bits) for tensor in call.outputs})
    return Summary(model.name, tuple(row for group in calls.values() for row in _rows(group, bits)))


def _output_bits(call: Call, bits: dict[int, int]) -> int:
    layer = call.layer
    if isinstance(layer, QuantizeActivation):
        return layer.quantizer.spec.num_bits
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper) and not isinstance(
        layer, QuantizedLayer
    ):
        # tfmot's own wrapper holds the quantizer of its output.
        found = [q.spec.num_bits for q in layer._output_quantizers if isinstance(q, GridQuantizer)]
        return found[0] if found else FLOAT_BITS
    if roles.role(layer) is roles.Role.SAME_GRID and call.inputs:
        return bits.get(id(call.inputs[0]), FLOAT_BITS)
    if roles.role(layer) is roles.Role.JOINT_GRID:
        return max(bits.get(id(tensor), FLOAT_BITS) for tensor in call.inputs)
    return FLOAT_BITS


def _rows(calls: Sequence[Call], bits: dict[int, int]) -> list[SummaryRow]:
    layer = calls[0].layer
    if isinstance(layer, QuantizeActivation):
        return [_activation_row(layer)]
    inner = roles.inner(layer)
    if (kernel := roles.kernel(inner)) is not None:
        read = max(bits.get(id(call.inputs[0]), FLOAT_BITS) for call in calls)
        return [_kernel_row(layer, getattr(inner, kernel.name), calls, read)]
    if quantized_weights(layer):
        return [_own_row(layer, max(bits.get(id(call.inputs[0]), FLOAT_BITS) for call in calls))]
    if layer.weights:  # batch norms: folded away, but part of the float model's bytes
        return [_folded_row(layer, max(bits.get(id(call.inputs[0]), FLOAT_BITS) for call in calls))]
    return []


def _activation_row(layer: QuantizeActivation) -> SummaryRow:
    step_size, _ = layer.quantizer.grid(layer.variables_of_quantizer)
    spec = layer.quantizer.spec
    return SummaryRow(
        layer=layer.name,
        kind="activation",
        weight_bits=None,
        activation_bits=spec.num_bits,
        granularity="tensor" if spec.axis is None else "channel",
        step_size=float(np.median(step_size.numpy())),
    )


def _folded_row(layer: keras.layers.Layer, activation_bits: int) -> SummaryRow:
    return SummaryRow(
        layer=layer.name,
        kind=type(layer).__name__,
        weight_bits=None,
        activation_bits=activation_bits,
        granularity="folded",
        step_size=None,
        float_bytes=4 * sum(math.prod(weight.shape) for weight in layer.weights),
    )


def _own_row(layer: keras.layers.Layer, activation_bits: int) -> SummaryRow:
    """A layer whose weights a rule's config quantizes.

    What it multiplies is not known, so it has no MACs.
    """
    found = [
        (math.prod(weight.shape), quantizer.spec)
        for _, weight, quantizer, _ in quantized_weights(layer)
    ]
    weights = sum(count for count, _ in found)
    others = sum(math.prod(weight.shape) for weight in roles.inner(layer).weights) - weights
    return SummaryRow(
        layer=layer.name,
        kind=type(roles.inner(layer)).__name__,
        weight_bits=max(spec.num_bits for _, spec in found),
        activation_bits=activation_bits,
        granularity="tensor" if all(spec.axis is None for _, spec in found) else "channel",
        step_size=None,
        weights=weights,
        float_bytes=4 * (weights + others),
        bytes=sum(-(-count * spec.num_bits // 8) for count, spec in found) + BIAS_BYTES * others,
        container_bytes=weights + BIAS_BYTES * others,
    )


def _kernel_row(
    layer: keras.layers.Layer, kernel: Any, calls: Sequence[Call], activation_bits: int
) -> SummaryRow:
    inner = roles.inner(layer)
    weights = math.prod(kernel.shape)
    others = sum(math.prod(weight.shape) for weight in inner.weights) - weights
    weight_bits, granularity, step_size = _weight_grid(layer)
    quantized = weight_bits != FLOAT_BITS
    # Every output channel has a bias once a batch norm is folded into it.
    biases = BIAS_BYTES * (_output_channels(calls) if quantized else others)
    return SummaryRow(
        layer=layer.name,
        kind=type(inner).__name__,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        granularity=granularity,
        step_size=step_size,
        weights=weights,
        float_bytes=4 * (weights + others),
        bytes=-(-weights * weight_bits // 8) + biases,
        container_bytes=weights * (1 if quantized else 4) + biases,
        macs=sum(_macs(inner, call, kernel.shape) for call in calls),
    )


def _weight_grid(layer: keras.layers.Layer) -> tuple[int, str, float | None]:
    """Width, granularity and median step size of a kernel."""
    found = quantized_weights(layer)
    if not found:
        return FLOAT_BITS, "float", None
    ((_, _, quantizer, variables),) = found
    step_size = float(np.median(quantizer.grid(variables)[0].numpy()))
    return (
        quantizer.spec.num_bits,
        "tensor" if quantizer.spec.axis is None else "channel",
        step_size,
    )


def _output_channels(calls: Sequence[Call]) -> int:
    return calls[0].outputs[0].shape[-1]


def _macs(layer: keras.layers.Layer, call: Call, kernel_shape: Any) -> int:
    """Products of one image.

    Each output element takes the kernel's elements that reach it. A transposed convolution spreads
    each input element over the kernel. Unknown sizes count as 1.
    """
    if type(layer) in roles.MINOR_KERNELS:
        return math.prod(size or 1 for size in call.outputs[0].shape[1:])
    tensor = call.inputs[0] if isinstance(layer, keras.layers.Conv2DTranspose) else call.outputs[0]
    positions = math.prod(size or 1 for size in tensor.shape[1:-1])
    return positions * math.prod(kernel_shape)
