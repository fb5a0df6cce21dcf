"""Student, twins and interpreters on the same images: the measurements `verify` judges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any, Protocol

import numpy as np
import tqdm

from tflite_export import deployed as deployed_lib
from tflite_export import exported_model
from tflite_export import model_inputs as inputs_lib
from tflite_export.runtimes import litert
from tflite_export.verification import code_differences, last_bit_bounds
from tflite_export.verification import report as report_lib

# Images at once where intermediate tensors are kept.
TENSOR_BATCH = 16
# Which interpreter each rounding of the twin stands for.
TWINS = {"xnnpack": "twin", "reference": "twin_double"}
ROUNDINGS = {"twin": "single", "twin_double": "double"}

# One array for each input of the student, in its order.
Arrays = tuple[np.ndarray, ...]
Outputs = Callable[[Arrays], Sequence[np.ndarray]]


class Runtime(Protocol):
    """Something else that runs the file, e.g. `tflite_export.runtimes.micro.MicroInterpreter`."""

    name: str

    def run(self, batch: Any) -> Mapping[str, np.ndarray]:
        """The outputs by tensor name for float images `[images, ...]` (a tuple of them for several
        inputs), in the file's types.
        """
        ...


class Run:
    """Runs student, twins and interpreters on the same images."""

    def __init__(
        self,
        student: Any,
        exported: exported_model.ExportedModel,
        contents: bytes,
        kernels: Sequence[str],
        verbose: int,
    ):
        self._student, self._exported, self._contents, self._verbose = (
            student,
            exported,
            contents,
            verbose,
        )
        self._model = exported.file_model
        self._inner = [exported.deployed.tensors[name] for name in exported.deployed.outputs]
        self._kernels = tuple(kernels)
        self._shapes = {
            n: tuple(t.shape[1:]) for n, t in zip(student.input_names, student.inputs, strict=True)
        }
        self.seconds: dict[str, float] = {}
        # Intermediate tensors before images were added that were chosen because outputs differ.
        self.unselected: tuple[report_lib.Comparison, ...] = ()
        # The first images on which a twin and its interpreter differ: their intermediate tensors
        # tell where it starts.
        self._suspects: list[Arrays] = []

    @functools.cached_property
    def _twins(self) -> dict[str, Any]:
        from tflite_export.twin import integer_twin

        names = [TWINS[kernels] for kernels in self._kernels if kernels in TWINS]
        return {name: integer_twin.IntegerTwin(self._model, ROUNDINGS[name]) for name in names}

    def outputs(
        self,
        report: report_lib.Report,
        images: Any,
        batch_size: int,
        runtimes: Sequence[Runtime],
        runtime_images: int,
    ) -> report_lib.Report:
        """Compares the output codes of all runtimes over all images."""
        table = code_differences.OutputTable(
            self._inner, code_differences.kinds(self._exported.deployed)
        )
        everywhere, limited = (
            self._sources(),
            {runtime.name: self._of_runtime(runtime) for runtime in runtimes},
        )
        count = 0
        for batch in self._batches(images, batch_size, "outputs"):
            codes = {name: self._timed(name, run, batch.inputs) for name, run in everywhere.items()}
            few = batch.first(max(0, runtime_images - count))
            codes |= {
                name: self._timed(name, run, few.inputs)
                for name, run in limited.items()
                if len(few)
            }
            table.add(codes, batch.labels)
            self._suspect(codes, batch.inputs)
            count += len(batch)
        return dataclasses.replace(
            report,
            images=count,
            outputs=table.comparisons(),
            accuracy=table.accuracy(),
            seconds=dict(self.seconds),
        )

    def tensors(
        self, report: report_lib.Report, images: Any, limit: int, teacher: Any
    ) -> report_lib.Report:
        """Compares intermediate tensors over the first images, the twins' behind bounded operators
        as `bounds` says.
        """
        from tflite_export.lowering import builder

        runners = {
            name: litert.Interpreter(self._contents, name, keep_all_tensors=True)
            for name in self._kernels
            if name in TWINS or name == self._kernels[0]
        }
        tables = {
            (TWINS[name], name): code_differences.TensorTable(self._model, TWINS[name], name)
            for name in runners
            if name in TWINS
        }
        first = self._kernels[0]
        tables["student", first] = code_differences.TensorTable(self._model, "student", first)
        student = _traced(builder.student_codes(self._student), list(self._shapes.values()))
        twins = {
            name: self._cut_twin(name, runner) for name, runner in runners.items() if name in TWINS
        }
        floats = FloatTable(teacher, self._model) if teacher is not None else None

        def compare(part: Arrays) -> int:
            found = {
                name: runner.tensors(inputs_lib.packed(part)) for name, runner in runners.items()
            }
            found |= {TWINS[name]: run(part, found[name]) for name, run in twins.items()}
            found["student"] = _numpy(student(part))
            for (left, right), table in tables.items():
                table.add(found[left], found[right])
            if floats is not None:
                floats.add(part, found[first])
            return len(part[0])

        def comparisons() -> tuple[report_lib.Comparison, ...]:
            return tuple(
                comparison for table in tables.values() for comparison in table.comparisons()
            )

        count = sum(map(compare, self._first(images, limit)))
        self.unselected = comparisons()
        if self._suspects:
            count += compare(
                tuple(np.stack(arrays) for arrays in zip(*self._suspects, strict=True))
            )
        errors = floats.result() if floats is not None else ()
        return dataclasses.replace(
            report, tensor_images=count, tensors=comparisons(), float_errors=errors
        )

    def _suspect(self, codes: Mapping[str, Sequence[np.ndarray]], arrays: Arrays) -> None:
        for name in self._kernels:
            if name in TWINS and len(self._suspects) < TENSOR_BATCH:
                pairs = zip(codes[TWINS[name]], codes[name], strict=True)
                bad = np.any([(a != b).reshape(len(a), -1).any(1) for a, b in pairs], axis=0)
                room = TENSOR_BATCH - len(self._suspects)
                self._suspects += list(zip(*(array[bad][:room] for array in arrays), strict=True))

    def _sources(self) -> dict[str, Outputs]:
        """What computes output codes on all images, by name."""
        names = self._exported.deployed.outputs
        student = _traced(lambda x: self._student(x, training=False), list(self._shapes.values()))
        sources: dict[str, Outputs] = {
            "student": lambda arrays: self._student_codes(student(arrays))
        }
        for name, run in self._twin_functions(names).items():
            sources[name] = lambda arrays, run=run: [
                found[name] for found in [run(arrays)] for name in names
            ]
        for name in self._kernels:
            sources[name] = self._of_runtime(litert.Interpreter(self._contents, name))
        return sources

    def _twin_functions(
        self, names: Sequence[str]
    ) -> dict[str, Callable[[Arrays], dict[str, np.ndarray]]]:
        """The twins as functions of float images to the codes of tensors `names`.

        They get the interpreters' own input codes, quantized once, so that only arithmetic is
        compared.
        """
        runner = litert.Interpreter(self._contents, self._kernels[0])
        functions = {}
        for name, twin in self._twins.items():
            run = _traced_twin(twin, names)
            functions[name] = lambda arrays, run=run: _numpy(
                run(runner.to_inputs(inputs_lib.packed(arrays)))
            )
        return functions

    def _cut_twin(
        self, kernels: str, runner: litert.Interpreter
    ) -> Callable[[Arrays, Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """A twin as a function of float images and the interpreter's tensors to the codes of all
        tensors.

        Behind a bounded operator it goes on with the interpreter's codes; see `bounds`.
        """
        from tflite_export.twin import integer_twin

        given = [
            name for name in last_bit_bounds.of_tensors(self._model, kernels) if name in runner.kept
        ]
        whole = self._twins[TWINS[kernels]]
        cut = (
            integer_twin.IntegerTwin(last_bit_bounds.cut(self._model, given), whole.rounding)
            if given
            else whole
        )
        activations = [name for name, tensor in self._model.tensors.items() if tensor.data is None]
        computed = {
            name: f"{name}{last_bit_bounds.COMPUTED}" if name in given else name
            for name in activations
        }
        run = _traced_twin(cut, list(computed.values()))

        def codes(arrays: Arrays, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            inputs = runner.to_inputs(inputs_lib.packed(arrays))
            found = run((*inputs, *(tensors[name] for name in given)))
            return {name: np.asarray(found[written]) for name, written in computed.items()}

        return codes

    def _of_runtime(self, runtime: Runtime) -> Outputs:
        """A runtime's outputs as codes of the tensors inside the borders."""

        def run(arrays: Arrays) -> list[np.ndarray]:
            outputs = runtime.run(inputs_lib.packed(arrays))
            pairs = zip(self._model.outputs, self._inner, strict=True)
            return [_inner_codes(outputs[name], inner) for name, inner in pairs]

        return run

    def _student_codes(self, outputs: Any) -> list[np.ndarray]:
        """The student's outputs are on their grid already; dividing by the scale gives the codes
        exactly.
        """
        import tensorflow as tf

        outputs = tf.nest.flatten(outputs)
        return [
            _inner_codes(output.numpy(), inner)
            for output, inner in zip(outputs, self._inner, strict=True)
        ]

    def _batches(
        self, images: Any, batch_size: int, label: str
    ) -> Iterator[code_differences.Batch]:
        """Batches with a progress bar in images."""
        total = code_differences.number_of(images, tuple(self._shapes))
        with tqdm.tqdm(
            total=total,
            desc=f"verify {label}",
            unit="image",
            disable=not self._verbose,
            leave=False,
            mininterval=1,
        ) as bar:
            for batch in code_differences.batches(images, self._shapes, batch_size):
                yield batch
                bar.update(len(batch))

    def _first(self, images: Any, limit: int) -> Iterator[Arrays]:
        for batch in self._batches(images, TENSOR_BATCH, "tensors"):
            part = batch.first(limit)
            limit -= len(part)
            yield part.inputs
            if not limit:
                break

    def _timed(self, name: str, run: Outputs, arrays: Arrays) -> Sequence[np.ndarray]:
        start = time.perf_counter()
        result = run(arrays)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


class FloatTable:
    """Error of the interpreter's tensors against the float network's layers of the same names."""

    def __init__(self, teacher: Any, model: deployed_lib.DeployedModel):
        """Pairs tensor `<layer>_quantize` with layer `<layer>`."""
        from tf_fpq.keras_compat import keras

        layers = {layer.name: layer for layer in teacher.layers}
        pairs = {
            name: name.removesuffix("_quantize")
            for name in code_differences.kinds(model)
            if name.endswith("_quantize")
        }
        self._layers = {name: layer for name, layer in pairs.items() if layer in layers}
        self._grids = {name: model.tensors[name] for name in self._layers}
        probe = keras.Model(
            teacher.inputs, {name: layers[layer].output for name, layer in self._layers.items()}
        )
        self._run = _traced(
            lambda x: probe(x, training=False), [t.shape[1:] for t in teacher.inputs]
        )
        self._powers = dict.fromkeys(self._layers, (0.0, 0.0))

    def add(self, arrays: Arrays, tensors: Mapping[str, np.ndarray]) -> None:
        """Adds a batch."""
        for name, values in self._run(arrays).items():
            exact = values.numpy().astype(np.float64)
            grid = self._grids[name]
            error = litert.dequantize(tensors[name], float(grid.scale), grid.zero_point) - exact
            signal, noise = self._powers[name]
            self._powers[name] = (
                signal + float(np.square(exact).sum()),
                noise + float(np.square(error).sum()),
            )

    def result(self) -> tuple[report_lib.FloatError, ...]:
        """One entry per pair, in execution order."""
        return tuple(
            report_lib.FloatError(name, layer, code_differences.decibels(*self._powers[name]))
            for name, layer in self._layers.items()
        )


def _inner_codes(values: np.ndarray, inner: deployed_lib.Tensor) -> np.ndarray:
    """Codes of the int8 tensor inside the border, from a border value of any type."""
    if values.dtype.kind == "f":
        return litert.quantize(values, float(np.reshape(inner.scale, ())), inner.zero_point)
    return values.astype(np.int16) - 128 if values.dtype == np.uint8 else values


def _traced(
    function: Callable[..., Any],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[Any] | None = None,
) -> Callable[[Arrays], Any]:
    """A graph function of one array for each input, with any batch size, traced once.

    `function` gets the tensor of a model with one input, else the list of tensors.
    """
    import tensorflow as tf

    dtypes = [np.float32] * len(shapes) if dtypes is None else dtypes
    specs = [
        tf.TensorSpec((None, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    graph = tf.function(
        lambda *parts: function(parts[0] if len(parts) == 1 else list(parts)), input_signature=specs
    )
    # TensorFlow takes all of these for one function, and warned of its tracings.
    concrete = graph.get_concrete_function()
    return lambda arrays: concrete(*map(tf.convert_to_tensor, arrays))


def _traced_twin(twin: Any, names: Sequence[str]) -> Callable[[Arrays], dict[str, Any]]:
    """The codes of tensors `names` as a function of the codes of a twin's inputs."""

    def selected(codes: Any) -> dict[str, Any]:
        found = twin.run_codes(codes)
        return {name: found[name] for name in names}

    inputs = [twin.deployed.tensors[name] for name in twin.deployed.inputs]
    return _traced(
        selected,
        [tensor.shape[1:] for tensor in inputs],
        [np.dtype(tensor.dtype) for tensor in inputs],
    )


def _numpy(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}
