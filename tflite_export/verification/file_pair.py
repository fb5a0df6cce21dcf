"""Two `.tflite` files against each other, whoever made them. Needs no TensorFlow."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np
import tqdm

from tflite_export import deployed as deployed_lib
from tflite_export import model_inputs as inputs_lib
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert
from tflite_export.verification import code_differences, parameter_checks
from tflite_export.verification import report as report_lib

# Images made up when none are given.
RANDOM_IMAGES = 100
# Notes on constants that differ; the rest is counted.
MAX_NOTES = 10
TENSOR_BATCH = 16


def compare_files(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    images: Any = None,
    *,
    kernels: Sequence[str] = ("xnnpack",),
    tensor_images: int = 64,
    batch_size: int = 128,
    max_lsb: int | None = 0,
    min_top1_agreement: float = 0.995,
    verbose: int = 1,
) -> report_lib.Report:
    """Compares the outputs of two files, and their intermediate tensors of the same name and grid.

    Codes of different grids are compared by value, in LSB of the left output's grid (of the right
    one's where the left is float). Constants that differ are notes: two files of one network may
    well have different weights.

    Args:
      left: A `.tflite` file.
      right: Another one, with inputs and outputs of the same shapes; the path of the report is its.
      images: As for `verify`, several inputs by the names of the left file; None for random codes
        of the left inputs' grids.
      kernels: Kernel sets to run.
      tensor_images: Number of images for the intermediate tensors.
      batch_size: Images at once.
      max_lsb: Largest difference allowed in any output code, or None for no limit.
      min_top1_agreement: Smallest share of images with the same best class.
      verbose: 1 shows progress, 0 nothing.

    Returns:
      The report; `passed` says whether the budgets are met.

    Raises:
      ValueError: If a file is no whole `.tflite` file or their shapes do not fit.
      InterpreterError: If a file cannot be read or run.
    """
    contents = {"left": litert.read_bytes(left), "right": litert.read_bytes(right)}
    paths = {"left": os.fspath(left), "right": os.fspath(right)}
    models = {side: reader.from_bytes(data, paths[side]) for side, data in contents.items()}
    _check_pair(models)
    for data in contents.values():
        litert.probe(data, kernels)
    pair = _Pair(models, contents, tuple(kernels), verbose)
    notes = _parameter_notes(models["left"], models["right"])
    if images is None:
        images = pair.random_images()
        notes += (f"Random codes as images; {RANDOM_IMAGES} of them.",)
    table, count = pair.outputs(images, batch_size)
    report = report_lib.Report(
        model=f"{paths['left']} against {paths['right']}",
        path=paths["right"],
        bytes=len(contents["right"]),
        images=count,
        tensor_images=min(tensor_images, count),
        parameters=len(parameter_checks.constants(models["left"])),
        operators=tuple(
            (operator.kind, operator.outputs[0]) for operator in models["right"].operators
        ),
        outputs=table.comparisons(),
        tensors=pair.tensors(images, tensor_images) if tensor_images else (),
        accuracy=table.accuracy(),
        notes=notes,
    )
    return dataclasses.replace(
        report, failures=tuple(_failures(report, pair, max_lsb, min_top1_agreement))
    )


class _Pair:
    """Runs both files on every kernel set."""

    def __init__(
        self,
        models: Mapping[str, deployed_lib.DeployedModel],
        contents: Mapping[str, bytes],
        kernels: tuple[str, ...],
        verbose: int,
    ):
        self._models, self._contents, self._kernels, self._verbose = (
            models,
            contents,
            kernels,
            verbose,
        )
        left, right = models["left"], models["right"]
        self._shapes = {name: tuple(left.tensors[name].shape[1:]) for name in left.inputs}
        self._grids = [
            _grid(left.tensors[a], right.tensors[b])
            for a, b in zip(left.outputs, right.outputs, strict=True)
        ]

    def names(self) -> dict[str, tuple[str, str]]:
        """`(side, kernel set)` by the name a report gives it."""
        one = len(self._kernels) == 1
        return {s if one else f"{s} {k}": (s, k) for k in self._kernels for s in ("left", "right")}

    def random_images(self) -> Any:
        """For each input values of random codes of an integer input's grid, or uniform in [0, 1)
        where both are float.
        """
        rng = np.random.default_rng(0)
        pairs = zip(
            *([model.tensors[name] for name in model.inputs] for model in self._models.values()),
            strict=True,
        )
        return inputs_lib.packed([_random(rng, pair) for pair in pairs])

    def outputs(self, images: Any, batch_size: int) -> tuple[code_differences.OutputTable, int]:
        """Output codes over all images, and the number of images."""
        table, count = (
            code_differences.OutputTable(self._grids, code_differences.kinds(self._models["left"])),
            0,
        )
        runners = {
            name: litert.Interpreter(self._contents[s], k) for name, (s, k) in self.names().items()
        }
        for batch in self._batches(images, batch_size):
            found = {
                n: runner.run(inputs_lib.packed(batch.inputs)) for n, runner in runners.items()
            }
            table.add(
                {name: self._codes(name, outputs) for name, outputs in found.items()}, batch.labels
            )
            count += len(batch)
        return table, count

    def tensors(self, images: Any, limit: int) -> tuple[report_lib.Comparison, ...]:
        """Intermediate tensors that both files have under one name with one grid, on the first
        kernel set.
        """
        names = [name for name, (_, kernels) in self.names().items() if kernels == self._kernels[0]]
        runners = [
            litert.Interpreter(self._contents[side], self._kernels[0], keep_all_tensors=True)
            for side in ("left", "right")
        ]
        shared = _shared(self._models["left"], self._models["right"])
        table = code_differences.TensorTable(self._models["left"], *names)
        for batch in self._batches(images, TENSOR_BATCH):
            part = batch.first(limit)
            limit -= len(part)
            tensors = [runner.tensors(inputs_lib.packed(part.inputs)) for runner in runners]
            found = [
                {name: tensor for name, tensor in side.items() if name in shared}
                for side in tensors
            ]
            table.add(*found)
            if not limit:
                break
        return table.comparisons()

    def _codes(self, name: str, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs on the common grids."""
        side, _ = self.names()[name]
        model = self._models[side]
        return [
            _on_grid(outputs[n], model.tensors[n], grid)
            for n, grid in zip(model.outputs, self._grids, strict=True)
        ]

    def _batches(self, images: Any, batch_size: int) -> Iterator[code_differences.Batch]:
        total = code_differences.number_of(images, tuple(self._shapes))
        with tqdm.tqdm(
            total=total, unit="image", disable=not self._verbose, leave=False, mininterval=1
        ) as bar:
            for batch in code_differences.batches(images, self._shapes, batch_size):
                yield batch
                bar.update(len(batch))


def _check_pair(models: Mapping[str, deployed_lib.DeployedModel]) -> None:
    def shapes(model: deployed_lib.DeployedModel, names: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(model.tensors[name].shape[1:]) for name in names]

    left, right = models["left"], models["right"]
    for what in ("inputs", "outputs"):
        found = [shapes(model, getattr(model, what)) for model in (left, right)]
        if found[0] != found[1]:
            raise ValueError(
                f"The {what} of the files have different shapes. Received: {found[0]} and"
                f" {found[1]}."
            )


def _random(rng: np.random.Generator, pair: Sequence[deployed_lib.Tensor]) -> np.ndarray:
    """Random images for an input, given its tensor in both files."""
    shape = (RANDOM_IMAGES, *pair[0].shape[1:])
    for tensor in pair:
        if tensor.scale is not None:
            limits = np.iinfo(tensor.dtype)
            codes = rng.integers(limits.min, limits.max + 1, shape)
            return litert.dequantize(codes, float(np.reshape(tensor.scale, ())), tensor.zero_point)
    return rng.uniform(0, 1, shape).astype(np.float32)


def _grid(left: deployed_lib.Tensor, right: deployed_lib.Tensor) -> deployed_lib.Tensor:
    """The grid two outputs are compared on, under the left one's name."""
    for tensor in (left, right):
        if tensor.dtype in ("int8", "uint8") and tensor.scale is not None:
            return dataclasses.replace(tensor, name=left.name)
    raise ValueError(
        f"Output {left.name!r} is quantized in neither file, so differences have no LSB. "
        f"Received: {left.dtype} and {right.dtype}."
    )


def _on_grid(
    values: np.ndarray, tensor: deployed_lib.Tensor, grid: deployed_lib.Tensor
) -> np.ndarray:
    """Codes of `grid` for an output on its own grid."""
    scale = float(np.reshape(grid.scale, ()))
    if tensor.scale is None:
        return litert.quantize(values, scale, grid.zero_point, grid.dtype)
    own = float(np.reshape(tensor.scale, ()))
    if (own, tensor.zero_point, tensor.dtype) == (scale, grid.zero_point, grid.dtype):
        return values
    return litert.quantize(
        litert.dequantize(values, own, tensor.zero_point), scale, grid.zero_point, grid.dtype
    )


def _shared(left: deployed_lib.DeployedModel, right: deployed_lib.DeployedModel) -> set[str]:
    """Names of activations that are the same tensor in both: shape, type and grid."""
    found = set()
    for name in (*left.inputs, *code_differences.kinds(left)):
        a, b = left.tensors[name], right.tensors.get(name)
        if (
            b is not None
            and a.data is b.data is None
            and (a.shape, a.dtype) == (b.shape, b.dtype)
            and a.scale is not None
        ):
            if (
                b.scale is not None
                and np.array_equal(a.scale, b.scale)
                and a.zero_point == b.zero_point
            ):
                found.add(name)
    return found


def _parameter_notes(
    left: deployed_lib.DeployedModel, right: deployed_lib.DeployedModel
) -> tuple[str, ...]:
    differences = parameter_checks.compare(left, right)
    notes = [f"{found.tensor}: {found.message}" for found in differences[:MAX_NOTES]]
    if len(differences) > MAX_NOTES:
        notes.append(f"{len(differences) - MAX_NOTES} more differences of constants and operators.")
    return tuple(notes or ["The files hold the same network, bit for bit."])


def _failures(
    report: report_lib.Report, pair: _Pair, max_lsb: int | None, min_top1_agreement: float
) -> Iterator[report_lib.Failure]:
    sides = pair.names()
    for found in report.outputs:
        if sides[found.left][1] != sides[found.right][1]:
            continue
        where = report.first_diverging(found.left, found.right) or found.tensor
        if max_lsb is not None and found.max_lsb > max_lsb:
            message = (
                f"{found.differing} of {found.codes} output codes differ, by up to {found.max_lsb}"
                f" LSB; budget {max_lsb}"
            )
            yield report_lib.Failure("runtime", where, message)
        if found.top1 is not None and found.top1 < min_top1_agreement:
            message = (
                f"{found.left} and {found.right} choose the same class on {found.top1:.4%} of the"
                " images"
            )
            yield report_lib.Failure(
                "runtime", where, f"{message}; at least {min_top1_agreement:.4%} is asked for"
            )
