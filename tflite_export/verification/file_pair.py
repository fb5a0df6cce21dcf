"""Two `.tflite` files against each other, whoever made them. Needs no TensorFlow."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export import image_batches
from tflite_export import model_inputs as inputs_lib
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert
from tflite_export.verification import code_differences, parameter_checks
from tflite_export.verification import report as report_lib

# Images made up when none are given. The number is chosen here.
RANDOM_IMAGES = 100
# Notes on constants that differ; the rest is counted.
MAX_NOTES = 10
TENSOR_BATCH = 16


def compare_files(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    images: Any = None,
    *,
    kernels: Sequence[litert.KernelSet] = ("xnnpack",),
    tensor_images: int = 64,
    batch_size: int = 128,
    max_lsb: int | None = 0,
    max_abs: float | None = 0.0,
    min_top1_agreement: float = 0.995,
    allow_other_constants: bool = False,
    verbose: int = 1,
) -> report_lib.Report:
    """Compares two files.

        tflite_export.compare_files("ours.tflite", "theirs.tflite", images)

    Compared are their constants, their outputs, and their intermediate tensors of the same name and
    grid.

    Outputs on different 8-bit grids are compared in LSB of the left output's grid (of the right
    one's where the left has none). Where neither has one, as between float files, values are
    compared.

    Images need not reach every constant. So where both files have the same tensors and operators,
    every constant, grid and option that differs is a failure, unless `allow_other_constants` says
    that the files are two trainings. Files of different graphs are judged on their outputs, and
    what differs is noted, constants of the same name first.

    Args:
      left: A `.tflite` file.
      right: Another one, with inputs and outputs of the same shapes; the path of the report is its.
      images: As for `verify`, several inputs by the names of the left file; None for random codes
        of the left inputs' grids.
      kernels: Kernel sets to run.
      tensor_images: Number of images for the intermediate tensors.
      batch_size: Images at once.
      max_lsb: Largest difference allowed in any output code, or None for no limit.
      max_abs: Largest difference allowed in any output value where neither file has an 8-bit grid,
        or None for no limit.
      min_top1_agreement: Smallest share of images with the same best class.
      allow_other_constants: Whether two files of one graph may have different constants, grids and
        options.
      verbose: 1 shows progress, 0 nothing.

    Returns:
      The report; `passed` says whether the budgets are met.

    Raises:
      ValueError: If a file is no whole `.tflite` file, their shapes do not fit, or an argument is
        unknown or no number.
      InterpreterError: If a file cannot be read or run.
    """
    litert.check_kernels(kernels)
    _check_budgets(min_top1_agreement, max_lsb=max_lsb, max_abs=max_abs)
    contents = {"left": litert.read_bytes(left), "right": litert.read_bytes(right)}
    paths = {"left": os.fspath(left), "right": os.fspath(right)}
    models = {side: reader.from_bytes(data, paths[side]) for side, data in contents.items()}
    _check_pair(models)
    for side, data in contents.items():
        litert.probe(data, kernels, paths[side])
    pair = _Pair(models, contents, tuple(kernels), verbose)
    failures, notes = _parameters(models["left"], models["right"], allow_other_constants)
    if images is None:
        images = pair.random_images()
        notes += (f"Random codes as images; {RANDOM_IMAGES} of them.",)
    table, count = pair.outputs(images, batch_size)
    tensors = pair.tensors(images, tensor_images) if tensor_images else ()
    report = report_lib.Report(
        model=f"{paths['left']} against {paths['right']}",
        path=paths["right"],
        bytes=len(contents["right"]),
        images=count,
        tensor_images=min(tensor_images, count) if tensors else 0,
        parameters=len(parameter_checks.shared_constants(models["left"], models["right"])),
        operators=tuple(
            (operator.kind, next(iter(operator.outputs), ""))
            for operator in models["right"].operators
        ),
        outputs=table.comparisons(),
        tensors=tensors,
        accuracy=table.accuracy(),
        notes=notes,
    )
    failures += tuple(_failures(report, pair.names(), max_lsb, max_abs, min_top1_agreement))
    return dataclasses.replace(report, failures=failures)


def _check_budgets(min_top1_agreement: float, **limits: float | None) -> None:
    if not 0 <= min_top1_agreement <= 1:
        raise ValueError(
            "min_top1_agreement must be between 0 and 1. Received:"
            f" min_top1_agreement={min_top1_agreement}."
        )
    for name, limit in limits.items():
        if limit is not None and not limit >= 0:
            raise ValueError(f"{name} must not be negative. Received: {name}={limit}.")


class _Pair:
    """Runs both files on every kernel set."""

    def __init__(
        self,
        models: Mapping[str, deployed_lib.DeployedModel],
        contents: Mapping[str, bytes],
        kernels: tuple[litert.KernelSet, ...],
        verbose: int,
    ):
        self._models, self._contents = models, contents
        self._kernels, self._verbose = kernels, verbose
        left, right = models["left"], models["right"]
        self._shapes = {name: tuple(left.tensors[name].shape[1:]) for name in left.inputs}
        self._grids = [
            _grid(left.tensors[a], right.tensors[b])
            for a, b in zip(left.outputs, right.outputs, strict=True)
        ]

    def names(self) -> dict[str, tuple[str, litert.KernelSet]]:
        """`(side, kernel set)` by the name a report gives it."""
        one = len(self._kernels) == 1
        return {s if one else f"{s} {k}": (s, k) for k in self._kernels for s in ("left", "right")}

    def random_images(self) -> Any:
        """Random values for each input.

        They are those of random codes of an integer input's grid, or uniform in [0, 1) where both
        are float.
        """
        rng = np.random.default_rng(0)
        left, right = (
            [model.tensors[name] for name in model.inputs] for model in self._models.values()
        )
        return inputs_lib.packed([_random(rng, pair) for pair in zip(left, right, strict=True)])

    def outputs(self, images: Any, batch_size: int) -> tuple[code_differences.OutputTable, int]:
        """Output codes over all images, and the number of images."""
        kinds = code_differences.kinds(self._models["left"])
        table, count = code_differences.OutputTable(self._grids, kinds), 0
        runners = {
            name: litert.Interpreter(self._contents[s], k) for name, (s, k) in self.names().items()
        }
        for batch in image_batches.shown(images, self._shapes, batch_size, self._verbose):
            found = {
                n: runner.run(inputs_lib.packed(batch.inputs)) for n, runner in runners.items()
            }
            table.add(
                {name: self._codes(name, outputs) for name, outputs in found.items()}, batch.labels
            )
            count += len(batch)
        return table, count

    def tensors(self, images: Any, limit: int) -> tuple[report_lib.Comparison, ...]:
        """Intermediate tensors that both files have under one name with one grid.

        They are compared on the first kernel set.
        """
        first, *_ = self._kernels
        left, right = (name for name, (_, kernels) in self.names().items() if kernels == first)
        runners = [
            litert.Interpreter(self._contents[side], first, keep_all_tensors=True)
            for side in ("left", "right")
        ]
        shared = _shared(self._models["left"], self._models["right"])
        table = code_differences.TensorTable(self._models["left"], left, right)
        for batch in image_batches.shown(
            images, self._shapes, TENSOR_BATCH, self._verbose, most=limit
        ):
            tensors = [runner.tensors(inputs_lib.packed(batch.inputs)) for runner in runners]
            table.add(*({name: side[name] for name in shared & side.keys()} for side in tensors))
        return table.comparisons()

    def _codes(self, name: str, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs on the common grids."""
        side, _ = self.names()[name]
        model = self._models[side]
        return [
            _on_grid(outputs[n], model.tensors[n], grid)
            for n, grid in zip(model.outputs, self._grids, strict=True)
        ]


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
            return _values(codes, tensor)
    if pair[0].dtype.startswith("float"):
        return rng.uniform(0, 1, shape).astype(np.float32)
    return rng.integers(0, 2, shape)  # 0 and 1 are indices and numbers that any network takes


def _grid(left: deployed_lib.Tensor, right: deployed_lib.Tensor) -> deployed_lib.Tensor:
    """The grid two outputs are compared on, under the left one's name.

    It has no scale where they are compared by value.
    """
    for tensor in (left, right):
        if code_differences.has_8_bit_grid(tensor):
            return dataclasses.replace(tensor, name=left.name)
    return deployed_lib.Tensor(left.name, left.shape, "float32")


def _on_grid(
    values: np.ndarray, tensor: deployed_lib.Tensor, grid: deployed_lib.Tensor
) -> np.ndarray:
    """Codes of `grid`, or values where it has no scale, of an output on its own grid."""
    if grid.scale is None:
        return values if tensor.scale is None else _values(values, tensor)
    if _equal(tensor, grid, "dtype", "scale", "zero_point"):
        return values
    if tensor.scale is not None:
        values = _values(values, tensor)
    return litert.quantize(values, float(grid.one_scale), grid.one_zero_point, grid.dtype)


def _values(codes: np.ndarray, tensor: deployed_lib.Tensor) -> np.ndarray:
    return litert.dequantize(codes, float(tensor.one_scale), tensor.one_zero_point)


def _shared(left: deployed_lib.DeployedModel, right: deployed_lib.DeployedModel) -> set[str]:
    """Names of activations that are the same tensor in both: shape, type and grid."""
    return {
        name
        for name in (*left.inputs, *code_differences.kinds(left))
        if name in right.tensors and _same_activation(left.tensors[name], right.tensors[name])
    }


def _same_activation(left: deployed_lib.Tensor, right: deployed_lib.Tensor) -> bool:
    known = left.scale is not None and right.data is None
    return known and _equal(left, right, "shape", "dtype", "scale", "zero_point")


def _equal(left: deployed_lib.Tensor, right: deployed_lib.Tensor, *fields: str) -> bool:
    return all(np.array_equal(getattr(left, field), getattr(right, field)) for field in fields)


def _parameters(
    left: deployed_lib.DeployedModel, right: deployed_lib.DeployedModel, allowed: bool
) -> tuple[tuple[report_lib.Failure, ...], tuple[str, ...]]:
    """What differs in constants, grids and operators, as failures or as notes."""
    right = dataclasses.replace(right, name=left.name, fixed_batch=left.fixed_batch)
    found = parameter_checks.compare(left, right)
    if not found:
        return (), ("The files hold the same network, bit for bit.",)
    if parameter_checks.same_graph(left, right) and not allowed:
        return found, ()
    shared = parameter_checks.shared_constants(left, right)
    ordered = sorted(found, key=lambda difference: difference.tensor not in shared)
    notes = [f"{difference.tensor}: {difference.message}" for difference in ordered[:MAX_NOTES]]
    if len(found) > MAX_NOTES:
        notes.append(f"{len(found) - MAX_NOTES} more differences of constants and operators.")
    unpaired = [len(parameter_checks.constants(model)) - len(shared) for model in (left, right)]
    if any(unpaired):
        notes.append(
            f"Not compared: constants that one file has only, {unpaired[0]} of the left one and"
            f" {unpaired[1]} of the right one."
        )
    return (), tuple(notes)


def _failures(
    report: report_lib.Report,
    sides: Mapping[str, tuple[str, str]],
    max_lsb: int | None,
    max_abs: float | None,
    min_top1_agreement: float,
) -> Iterator[report_lib.Failure]:
    """What is over a budget; `sides` are the side and the kernel set by the report's names."""
    for found in report.outputs:
        (_, kernels), (_, others) = sides[found.left], sides[found.right]
        if kernels != others:
            continue
        where = report.first_diverging(found.left, found.right) or found.tensor
        size, limit = (
            (found.max_lsb, max_lsb) if found.max_abs is None else (found.max_abs, max_abs)
        )
        if limit is not None and not size <= limit:
            what = "codes" if found.max_abs is None else "values"
            message = (
                f"{found.differing} of {found.codes} output {what} differ, by up to"
                f" {found.difference}; budget {limit}"
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
