"""Student, twins and interpreters on the same images: the measurements `verify` judges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any, Protocol

import numpy as np
import tqdm

from tflite_export import comparing
from tflite_export import deployed as deployed_lib
from tflite_export import exporting
from tflite_export import interpreter
from tflite_export import report as report_lib

# Images at once where intermediate tensors are kept.
TENSOR_BATCH = 16
# Which interpreter each rounding of the twin stands for.
TWINS = {"xnnpack": "twin", "reference": "twin_double"}
ROUNDINGS = {"twin": "single", "twin_double": "double"}

Outputs = Callable[[np.ndarray], Sequence[np.ndarray]]


class Runtime(Protocol):
    """Something else that runs the file, e.g. `tflite_export.micro.MicroInterpreter`."""

    name: str

    def run(self, batch: np.ndarray) -> Mapping[str, np.ndarray]:
        """The outputs by tensor name for float images `[images, ...]`, in the file's output types."""
        ...


class Run:
    """Runs student, twins and interpreters on the same images."""

    def __init__(
        self, student: Any, exported: exporting.ExportedModel, contents: bytes, kernels: Sequence[str], verbose: int
    ):
        self._student, self._exported, self._contents, self._verbose = student, exported, contents, verbose
        self._model = exported.file_model
        self._inner = [exported.deployed.tensors[name] for name in exported.deployed.outputs]
        self._kernels = tuple(kernels)
        self._shape = tuple(student.input_shape[1:])
        self.seconds: dict[str, float] = {}
        # The first images on which a twin and its interpreter differ: their intermediate tensors tell where it starts.
        self._suspects: list[np.ndarray] = []

    @functools.cached_property
    def _twins(self) -> dict[str, Any]:
        from tflite_export import twin

        names = [TWINS[kernels] for kernels in self._kernels if kernels in TWINS]
        return {name: twin.IntegerTwin(self._model, ROUNDINGS[name]) for name in names}

    def outputs(
        self,
        report: report_lib.Report,
        images: Any,
        batch_size: int,
        runtimes: Sequence[Runtime],
        runtime_images: int,
    ) -> report_lib.Report:
        """Compares the output codes of all runtimes over all images."""
        table = comparing.OutputTable(self._inner, comparing.kinds(self._exported.deployed))
        everywhere, limited = self._sources(), {runtime.name: self._of_runtime(runtime) for runtime in runtimes}
        count = 0
        for batch in self._batches(images, batch_size, "outputs"):
            codes = {name: self._timed(name, run, batch.images) for name, run in everywhere.items()}
            few = batch.images[: max(0, runtime_images - count)]
            codes |= {name: self._timed(name, run, few) for name, run in limited.items() if len(few)}
            table.add(codes, batch.labels)
            self._suspect(codes, batch.images)
            count += len(batch.images)
        return dataclasses.replace(
            report, images=count, outputs=table.comparisons(), accuracy=table.accuracy(), seconds=dict(self.seconds)
        )

    def tensors(self, report: report_lib.Report, images: Any, limit: int, teacher: Any) -> report_lib.Report:
        """Compares intermediate tensors over the first images."""
        from tflite_export import deploy

        runners = {
            name: interpreter.Interpreter(self._contents, name, keep_all_tensors=True)
            for name in self._kernels
            if name in TWINS or name == self._kernels[0]
        }
        tables = {
            (TWINS[name], name): comparing.TensorTable(self._model, TWINS[name], name)
            for name in runners
            if name in TWINS
        }
        first = self._kernels[0]
        tables["student", first] = comparing.TensorTable(self._model, "student", first)
        activations = [name for name, tensor in self._model.tensors.items() if tensor.data is None]
        student = _traced(deploy.student_codes(self._student), self._shape)
        functions = {**self._twin_functions(activations), "student": student}
        floats = FloatTable(teacher, self._model) if teacher is not None else None
        count = 0
        for part in self._first(images, limit):
            found = {name: runner.tensors(part) for name, runner in runners.items()}
            found |= {name: _numpy(function(part)) for name, function in functions.items()}
            for (left, right), table in tables.items():
                table.add(found[left], found[right])
            if floats is not None:
                floats.add(part, found[first])
            count += len(part)
        return dataclasses.replace(
            report,
            tensor_images=count,
            tensors=tuple(comparison for table in tables.values() for comparison in table.comparisons()),
            float_errors=floats.result() if floats is not None else (),
        )

    def _suspect(self, codes: Mapping[str, Sequence[np.ndarray]], images: np.ndarray) -> None:
        for name in self._kernels:
            if name in TWINS and len(self._suspects) < TENSOR_BATCH:
                pairs = zip(codes[TWINS[name]], codes[name], strict=True)
                bad = np.any([(a != b).reshape(len(a), -1).any(1) for a, b in pairs], axis=0)
                self._suspects += list(images[bad][: TENSOR_BATCH - len(self._suspects)])

    def _sources(self) -> dict[str, Outputs]:
        """What computes output codes on all images, by name."""
        names = self._exported.deployed.outputs
        student = _traced(lambda x: self._student(x, training=False), self._shape)
        sources: dict[str, Outputs] = {"student": lambda batch: self._student_codes(student(batch))}
        for name, run in self._twin_functions(names).items():
            sources[name] = lambda batch, run=run: list(run(batch).values())
        for name in self._kernels:
            sources[name] = self._of_runtime(interpreter.Interpreter(self._contents, name))
        return sources

    def _twin_functions(self, names: Sequence[str]) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """The twins as functions of float images to the codes of tensors `names`.

        They get the interpreters' own input codes, quantized once, so that only arithmetic is compared.
        """
        runner = interpreter.Interpreter(self._contents, self._kernels[0])
        dtype = runner.inputs[0]["dtype"]
        functions = {}
        for name, twin in self._twins.items():
            run = _traced(functools.partial(_selected, twin, names), self._shape, dtype)
            functions[name] = lambda batch, run=run: _numpy(run(runner.to_input(batch)))
        return functions

    def _of_runtime(self, runtime: Runtime) -> Outputs:
        """A runtime's outputs as codes of the tensors inside the borders."""

        def run(batch: np.ndarray) -> list[np.ndarray]:
            outputs = runtime.run(batch)
            pairs = zip(self._model.outputs, self._inner, strict=True)
            return [_inner_codes(outputs[name], inner) for name, inner in pairs]

        return run

    def _student_codes(self, outputs: Any) -> list[np.ndarray]:
        """The student's outputs are on their grid already; dividing by the scale gives the codes exactly."""
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [_inner_codes(output.numpy(), inner) for output, inner in zip(outputs, self._inner, strict=True)]

    def _batches(self, images: Any, batch_size: int, label: str) -> Iterator[comparing.Batch]:
        """Batches with a progress bar in images."""
        total = comparing.number_of(images)
        with tqdm.tqdm(
            total=total, desc=f"verify {label}", unit="image", disable=not self._verbose, leave=False, mininterval=1
        ) as bar:
            for batch in comparing.batches(images, self._shape, batch_size):
                yield batch
                bar.update(len(batch.images))

    def _first(self, images: Any, limit: int) -> Iterator[np.ndarray]:
        for batch in self._batches(images, TENSOR_BATCH, "tensors"):
            part = batch.images[:limit]
            limit -= len(part)
            yield part
            if not limit:
                break
        if self._suspects:
            yield np.stack(self._suspects)

    def _timed(self, name: str, run: Outputs, images: np.ndarray) -> Sequence[np.ndarray]:
        start = time.perf_counter()
        result = run(images)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


class FloatTable:
    """Error of the interpreter's tensors against the float network's layers of the same names."""

    def __init__(self, teacher: Any, model: deployed_lib.DeployedModel):
        """Pairs tensor `<layer>_quantize` with layer `<layer>`."""
        from tf_fpq.keras_compat import keras

        layers = {layer.name: layer for layer in teacher.layers}
        pairs = {name: name.removesuffix("_quantize") for name in comparing.kinds(model) if name.endswith("_quantize")}
        self._layers = {name: layer for name, layer in pairs.items() if layer in layers}
        self._grids = {name: model.tensors[name] for name in self._layers}
        probe = keras.Model(teacher.inputs, {name: layers[layer].output for name, layer in self._layers.items()})
        self._run = _traced(lambda x: probe(x, training=False), tuple(teacher.input_shape[1:]))
        self._powers = dict.fromkeys(self._layers, (0.0, 0.0))

    def add(self, images: np.ndarray, tensors: Mapping[str, np.ndarray]) -> None:
        """Adds a batch."""
        for name, values in self._run(images).items():
            exact = values.numpy().astype(np.float64)
            grid = self._grids[name]
            error = interpreter.dequantize(tensors[name], float(grid.scale), grid.zero_point) - exact
            signal, noise = self._powers[name]
            self._powers[name] = (signal + float(np.square(exact).sum()), noise + float(np.square(error).sum()))

    def result(self) -> tuple[report_lib.FloatError, ...]:
        """One entry per pair, in execution order."""
        return tuple(
            report_lib.FloatError(name, layer, comparing.decibels(*self._powers[name]))
            for name, layer in self._layers.items()
        )


def _inner_codes(values: np.ndarray, inner: deployed_lib.Tensor) -> np.ndarray:
    """Codes of the int8 tensor inside the border, from a border value of any type."""
    if values.dtype.kind == "f":
        return interpreter.quantize(values, float(np.reshape(inner.scale, ())), inner.zero_point)
    return values.astype(np.int16) - 128 if values.dtype == np.uint8 else values


def _traced(
    function: Callable[..., Any], shape: tuple[int, ...], dtype: Any = np.float32
) -> Callable[[np.ndarray], Any]:
    """A graph function of images with any batch size, traced once."""
    import tensorflow as tf

    return tf.function(function, input_signature=[tf.TensorSpec((None, *shape), dtype)])


def _selected(twin: Any, names: Sequence[str], codes: Any) -> dict[str, Any]:
    found = twin.run_codes(codes)
    return {name: found[name] for name in names}


def _numpy(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}
