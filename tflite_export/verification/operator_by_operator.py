"""Operators one by one: what student and twin make of the very codes that a file had before each.

Where two computations part, everything behind differs too, and says nothing about where the fault
is. Here every operator starts anew from the interpreter's own codes, so a difference is that
operator's. Codes are dropped as soon as they are compared: memory is that of the interpreter's
tensors for a few images, and of one layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export import exported_model
from tflite_export import model_inputs as inputs_lib
from tflite_export.lowering.records import FloatSum
from tflite_export.runtimes import litert
from tflite_export.twin import integer_twin
from tflite_export.verification import (
    code_differences,
    report_records,
    student_bounds,
    student_layers,
)
from tflite_export.verification.last_bit_bounds import TWINS

# Codes of all tensors that are kept at once: 16 MiB.
KEPT_CODES = 2**24
# Images at once of a small network; more gain nothing.
MOST_IMAGES = 16


class OperatorByOperator:
    """Compares the operators of a file on batches of images."""

    def __init__(
        self,
        student: Any,
        exported: exported_model.ExportedModel,
        contents: bytes,
        kernels: Sequence[litert.KernelSet],
        twins: Mapping[str, integer_twin.IntegerTwin],
        float_sums: Mapping[str, FloatSum],
    ):
        """Opens the file once for each kernel set that something is compared with.

        Args:
          student: The model that was exported; compared with the first kernel set.
          exported: Its export.
          contents: The file.
          kernels: Kernel sets.
          twins: The integer twins of the file's records by name; see `last_bit_bounds.TWINS`.
          float_sums: Of the student as it is; see `lowering.builder.Lowered`.
        """
        self._model, self._first = exported.file_model, kernels[0]
        self._runners = {
            name: litert.Interpreter(contents, name, keep_all_tensors=True)
            for name in kernels
            if name in TWINS or name == self._first
        }
        self._twins = {name: twins[TWINS[name]] for name in self._runners if name in TWINS}
        self._layers = student_layers.student_layers(student)
        self._operators = {
            layer.name: student_bounds.operators_between(self._model, layer.sources, layer.name)
            for layer in self._layers
        }
        self._slack = {
            name: student_bounds.slack(self._model, operators, float_sums, self._first)
            for name, operators in self._operators.items()
        }
        self._titles = {
            name: student_bounds.title(operator.kind for operator in operators)
            for name, operators in self._operators.items()
        }
        self._differences: dict[tuple[str, str], code_differences.TensorTable] = {}

    @property
    def kernels(self) -> tuple[litert.KernelSet, ...]:
        """The kernel sets that are run."""
        return tuple(self._runners)

    def add(
        self, arrays: tuple[np.ndarray, ...], kernels: litert.KernelSet
    ) -> dict[str, np.ndarray]:
        """Compares on a batch of images; returns all tensors that the kernel set computed."""
        tensors = self._runners[kernels].tensors(inputs_lib.packed(arrays))
        if kernels in self._twins:
            self._add_twin(kernels, tensors)
        if kernels == self._first:
            self._add_student(tensors, arrays)
        return tensors

    def comparisons(self) -> tuple[report_records.Comparison, ...]:
        """One comparison for each pair and tensor that was seen, twins first."""
        return tuple(
            found
            for pair in sorted(self._differences, key=lambda pair: pair[0] == "student")
            for found in self._differences[pair].comparisons()
        )

    def layer_bounds(self) -> tuple[report_records.LayerBound, ...]:
        """How far each student layer may be from the file."""
        found = []
        for name, operators in self._operators.items():
            kinds = tuple(operator.kind for operator in operators)
            bound = student_bounds.beyond_ties(kinds, self._first)
            slack = float(self._slack[name].max())
            found.append(report_records.LayerBound(name, kinds, slack, bound.lsb, bound.share))
        return tuple(found)

    def _table(self, left: str, right: str) -> code_differences.TensorTable:
        titles = self._titles if left == "student" else None
        return self._differences.setdefault(
            (left, right), code_differences.TensorTable(self._model, left, right, titles)
        )

    def _add_twin(self, kernels: litert.KernelSet, tensors: Mapping[str, np.ndarray]) -> None:
        twin, table = self._twins[kernels], self._table(TWINS[kernels], kernels)
        # The interpreter hides tensors whose first axis is not the batch; those the twin computes.
        codes = dict(tensors)
        for index in range(len(self._model.operators)):
            for name, computed in twin.run_operator(index, codes).items():
                if name in tensors:
                    table.add({name: computed.numpy()}, {name: tensors[name]})
                else:
                    codes[name] = computed.numpy()

    def _add_student(
        self, tensors: Mapping[str, np.ndarray], arrays: tuple[np.ndarray, ...]
    ) -> None:
        table = self._table("student", self._first)
        for layer in self._layers:
            if layer.name not in tensors:  # hidden by the interpreter
                continue
            given = {name: self._values(name, tensors[name]) for name in layer.sources}
            unrounded, name = layer.unrounded(given, arrays), layer.name
            nearest = layer.codes_towards(tensors[name], unrounded, self._slack[name])
            table.add({name: layer.codes(unrounded)}, tensors, {name: nearest})

    def _values(self, name: str, codes: np.ndarray) -> np.ndarray:
        """On the file's grid: a wrong one is blamed on the layer that writes it, not on readers."""
        grid = self._model.tensors[name]
        return litert.dequantize(codes, float(grid.one_scale), grid.one_zero_point)


def images_at_once(model: deployed_lib.DeployedModel) -> int:
    """Images whose tensors, of one kernel set, fit `KEPT_CODES`."""
    return max(1, min(MOST_IMAGES, KEPT_CODES // codes_per_image(model)))


def codes_per_image(model: deployed_lib.DeployedModel) -> int:
    """Number of codes of all activations for one image."""
    return sum(int(np.prod(t.shape)) for t in model.tensors.values() if t.data is None)


class FloatTable:
    """Error of the interpreter's tensors against the float network's layers of the same names."""

    def __init__(self, teacher: Any, model: deployed_lib.DeployedModel):
        """Pairs tensor `<layer>_quantize` with layer `<layer>`."""
        from tf_fpq import graph

        layers = {layer.name: layer for layer in teacher.layers}
        pairs = {
            name: name.removesuffix("_quantize")
            for name in code_differences.kinds(model)
            if name.endswith("_quantize")
        }
        self._layers = {name: layer for name, layer in pairs.items() if layer in layers}
        self._grids = {name: model.tensors[name] for name in self._layers}
        self._probe = graph.functional(
            teacher.inputs, {name: layers[layer].output for name, layer in self._layers.items()}
        )
        self._powers = dict.fromkeys(self._layers, (0.0, 0.0))

    def add(self, arrays: tuple[np.ndarray, ...], tensors: Mapping[str, np.ndarray]) -> None:
        """Adds a batch."""
        images = list(arrays) if len(arrays) > 1 else arrays[0]
        for name, values in self._probe(images, training=False).items():
            exact = values.numpy().astype(np.float64)
            grid = self._grids[name]
            error = (
                litert.dequantize(tensors[name], float(grid.one_scale), grid.one_zero_point) - exact
            )
            signal, noise = self._powers[name]
            self._powers[name] = (
                signal + float(np.square(exact).sum()),
                noise + float(np.square(error).sum()),
            )

    def result(self) -> tuple[report_records.FloatError, ...]:
        """One entry per pair, in execution order."""
        return tuple(
            report_records.FloatError(name, layer, code_differences.decibels(*self._powers[name]))
            for name, layer in self._layers.items()
        )
