"""Student, twins and interpreters on the same images: the measurements `verify` judges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any, Protocol

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export import exported_model, image_batches
from tflite_export import model_inputs as inputs_lib
from tflite_export.lowering.records import FloatSum
from tflite_export.runtimes import litert
from tflite_export.twin import integer_twin
from tflite_export.verification import (
    code_differences,
    operator_by_operator,
    report_records,
    student_layers,
)
from tflite_export.verification.judgement import MOVED
from tflite_export.verification.last_bit_bounds import ROUNDINGS, TWINS

# Values of a network's largest tensor that are computed at once: some hundred MiB in all, whatever
# the number of images.
BATCH_VALUES = 2**23
LARGEST_BATCH = 128
# By default the operators are compared on as many images as these codes are, from 4 to 64: 9 of
# 224x224 for EfficientNet-Lite0, some ten seconds.
TENSOR_CODES = 2**26
FEWEST_TENSOR_IMAGES, MOST_TENSOR_IMAGES = 4, 64
# The reference kernels are some 40 times slower than XNNPACK: by default they run on as many images
# as these codes are, half a minute's worth.
REFERENCE_CODES = 2**26
FEWEST_REFERENCE_IMAGES = 4

# Chaos shows on as many images as these codes are, from 32 to 512. Chosen here: twice as
# many as for the operators.
MOVED_CODES = 2**27
FEWEST_MOVED_IMAGES, MOST_MOVED_IMAGES = 32, 512

# One array for each input of the student, in its order.
Arrays = tuple[np.ndarray, ...]
Outputs = Callable[[Arrays], Sequence[np.ndarray]]


class Runtime(Protocol):
    """Something else that runs the file, e.g. `tflite_export.runtimes.micro.MicroInterpreter`."""

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    def run(self, batch: Any) -> Mapping[str, np.ndarray]:
        """The outputs by tensor name for float images `[images, ...]`, in the file's types.

        Images for several inputs are a tuple.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Sizes:
    """On how many images what is run; `Sizes.of` chooses what is None.

    Attributes:
      batch_size: Images that student and twin compute at once.
      tensor_images: Images for the operators one by one.
      reference_images: Images for the reference kernels.
      runtime_images: Images for other runtimes.
      moved_images: Images for the student with every value moved by a float ulp.
    """

    batch_size: int
    tensor_images: int
    reference_images: int
    runtime_images: int
    moved_images: int = MOST_MOVED_IMAGES

    @classmethod
    def of(
        cls,
        model: deployed_lib.DeployedModel,
        batch_size: int | None,
        tensor_images: int | None,
        reference_images: int | None,
        runtime_images: int,
    ) -> "Sizes":
        """Sizes that suit the network where the caller leaves them open (None)."""
        codes = operator_by_operator.codes_per_image(model)
        largest = max(int(np.prod(t.shape)) for t in model.tensors.values() if t.data is None)
        tensors = max(FEWEST_TENSOR_IMAGES, min(MOST_TENSOR_IMAGES, TENSOR_CODES // codes))
        reference = max(FEWEST_REFERENCE_IMAGES, REFERENCE_CODES // codes)
        batch = max(1, min(LARGEST_BATCH, BATCH_VALUES // largest))
        return cls(
            batch if batch_size is None else batch_size,
            tensors if tensor_images is None else tensor_images,
            reference if reference_images is None else reference_images,
            runtime_images,
            max(FEWEST_MOVED_IMAGES, min(MOST_MOVED_IMAGES, MOVED_CODES // codes)),
        )


class Run:
    """Runs student, twins and interpreters on the same images."""

    def __init__(
        self,
        student: Any,
        exported: exported_model.ExportedModel,
        contents: bytes,
        kernels: Sequence[litert.KernelSet],
        sizes: Sizes,
        float_sums: Mapping[str, FloatSum],
        verbose: int,
    ):
        """Runs nothing yet; `teacher` below is a flat Keras model or None."""
        self._student, self._exported, self._contents = student, exported, contents
        self._model = exported.file_model
        self._inner = [exported.deployed.tensors[name] for name in exported.deployed.outputs]
        self._first, *_ = self._kernels = tuple(kernels)
        self._sizes, self._verbose = sizes, verbose
        self._sums = float_sums
        self._shapes = {
            n: tuple(t.shape[1:]) for n, t in zip(student.input_names, student.inputs, strict=True)
        }
        self.seconds: dict[str, float] = {}
        # The operators one by one, before images were added that were chosen because outputs
        # differ.
        self.unselected: tuple[report_records.Comparison, ...] = ()
        # The first images on which a twin and its interpreter differ: their intermediate tensors
        # tell where it starts.
        self._suspects: list[Arrays] = []

    @functools.cached_property
    def _twins(self) -> dict[str, integer_twin.IntegerTwin]:
        names = [TWINS[kernels] for kernels in self._kernels if kernels in TWINS]
        return {name: integer_twin.IntegerTwin(self._model, ROUNDINGS[name]) for name in names}

    def outputs(
        self,
        report: report_records.Findings,
        images: Any,
        teacher: Any,
        runtimes: Sequence[Runtime],
    ) -> Any:
        """Compares the output codes of all runtimes over all images."""
        kinds = code_differences.kinds(self._exported.deployed)
        table = code_differences.OutputTable(self._inner, kinds)
        chaos = code_differences.OutputTable(self._inner, kinds)
        sources = self._sources() | {r.name: self._of_runtime(r) for r in runtimes}
        limits = self._limits(runtimes)
        moved = student_layers.Moved(self._student)
        floats = None if teacher is None else _traced_model(teacher)
        count, labelled = 0, False
        for batch in self._batches(images, self._sizes.batch_size, "outputs"):
            codes = {}
            for name, run in sources.items():
                if len(part := _among_first(batch, limits.get(name), count)):
                    codes[name] = self._timed(name, run, part.inputs)
            if floats is not None and batch.labels is not None:
                table.count_right(
                    "float", self._timed("float", floats, batch.inputs)[0], batch.labels
                )
            table.add(codes, batch.labels)
            if len(part := _among_first(batch, self._sizes.moved_images, count)):
                values = self._timed(MOVED, moved, part.inputs)
                chaos.add({"student": codes["student"], MOVED: self._student_codes(values)})
            self._suspect(codes, batch.inputs)
            count, labelled = count + len(batch), labelled or batch.labels is not None
        return dataclasses.replace(
            report,
            images=count,
            outputs=(*table.comparisons(), *chaos.comparisons()),
            output_kinds=self._output_kinds(kinds, labelled),
            accuracy=table.accuracy(),
            notes=(
                *report.notes,
                *_limit_notes({**limits, MOVED: self._sizes.moved_images}, count),
            ),
            seconds=dict(self.seconds),
        )

    def tensors(self, report: report_records.Findings, images: Any, teacher: Any) -> Any:
        """Compares the operators one by one over the first images."""
        operators = operator_by_operator.OperatorByOperator(
            self._student, self._exported, self._contents, self._kernels, self._twins, self._sums
        )
        floats = operator_by_operator.FloatTable(teacher, self._model) if teacher else None
        limits = {"reference": self._sizes.reference_images}

        def compare(batch: image_batches.Batch, before: int) -> None:
            for name in operators.kernels:
                if len(part := _among_first(batch, limits.get(name), before)):
                    tensors = operators.add(part.inputs, name)
                    if floats is not None and name == self._first:
                        floats.add(part.inputs, tensors)

        count, start = 0, time.perf_counter()
        size = operator_by_operator.images_at_once(self._model)
        for batch in self._batches(images, size, "operators", self._sizes.tensor_images):
            compare(batch, count)
            count += len(batch)
        self.unselected = operators.comparisons()
        for suspect in self._suspects:
            compare(image_batches.Batch(tuple(array[None] for array in suspect), None), 0)
        self.seconds["operators one by one"] = time.perf_counter() - start
        return dataclasses.replace(
            report,
            tensor_images=count + len(self._suspects),
            tensors=operators.comparisons(),
            layer_bounds=operators.layer_bounds(),
            float_errors=floats.result() if floats is not None else (),
            seconds=dict(self.seconds),
        )

    def _limits(self, runtimes: Sequence[Runtime]) -> dict[str, int]:
        """On how many images a runtime runs, by name; on all where it is not there."""
        limits = {runtime.name: self._sizes.runtime_images for runtime in runtimes}
        slow = ("reference", TWINS["reference"]) if "reference" in self._kernels else ()
        return limits | dict.fromkeys(slow, self._sizes.reference_images)

    def _suspect(self, codes: Mapping[str, Sequence[np.ndarray]], arrays: Arrays) -> None:
        """Keeps the first images on which a twin and its interpreter differ."""
        for name in self._kernels:
            if name in TWINS and name in codes:
                pairs = zip(codes[TWINS[name]], codes[name], strict=True)
                bad = np.any([np.any(a != b, tuple(range(1, a.ndim))) for a, b in pairs], axis=0)
                self._suspects += [tuple(x[index] for x in arrays) for index in np.flatnonzero(bad)]
        del self._suspects[operator_by_operator.MOST_IMAGES :]

    def _sources(self) -> dict[str, Outputs]:
        """What computes output codes, by name."""
        sources: dict[str, Outputs] = {"student": self._of_keras(self._student)}
        sources |= self._twin_functions(self._exported.deployed.outputs)
        for name in self._kernels:
            sources[name] = self._of_runtime(litert.Interpreter(self._contents, name))
        return sources

    def _twin_functions(self, names: Sequence[str]) -> dict[str, Outputs]:
        """The twins as functions of float images to the codes of tensors `names`.

        They get the interpreters' own input codes, quantized once, so that only arithmetic is
        compared.
        """
        runner = litert.Interpreter(self._contents, self._first)

        def function(twin: integer_twin.IntegerTwin) -> Outputs:
            run = _traced_twin(twin, names)
            return lambda arrays: [
                codes.numpy() for codes in run(runner.to_inputs(inputs_lib.packed(arrays)))
            ]

        return {name: function(twin) for name, twin in self._twins.items()}

    def _of_runtime(self, runtime: Runtime) -> Outputs:
        """A runtime's outputs as codes of the tensors inside the borders."""

        def run(arrays: Arrays) -> list[np.ndarray]:
            outputs = runtime.run(inputs_lib.packed(arrays))
            pairs = zip(self._model.outputs, self._inner, strict=True)
            return [_inner_codes(outputs[name], inner) for name, inner in pairs]

        return run

    def _of_keras(self, model: Any) -> Outputs:
        """A student's outputs as codes."""
        function = _traced_model(model)
        return lambda arrays: self._student_codes(function(arrays))

    def _student_codes(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The codes of the student's outputs.

        The outputs are on their grid already, so dividing by the scale gives the codes exactly.
        """
        return [
            _inner_codes(output, inner) for output, inner in zip(outputs, self._inner, strict=True)
        ]

    def _output_kinds(self, kinds: Mapping[str, str], labelled: bool) -> dict[str, str]:
        """Whether an output is the scores of classes, or values such as boxes, maps, embeddings.

        Scores are `[batch, classes]` from a softmax, those that labels are given for, and those of
        a Dense layer that is the network's only output.
        """
        found = {}
        for index, tensor in enumerate(self._inner):
            table = image_batches.has_classes(tensor.shape)
            kind = kinds.get(tensor.name, "")
            scores = kind == "SOFTMAX" or (labelled and index == 0)
            scores |= kind == "FULLY_CONNECTED" and len(self._inner) == 1
            found[tensor.name] = "classes" if table and scores else "values"
        return found

    def _batches(
        self, images: Any, batch_size: int, label: str, most: int | None = None
    ) -> Iterator[image_batches.Batch]:
        """Batches with a progress bar."""
        return image_batches.shown(
            images, self._shapes, batch_size, self._verbose, f"verify {label}", most
        )

    def _timed(self, name: str, run: Outputs, arrays: Arrays) -> Sequence[np.ndarray]:
        start = time.perf_counter()
        result = run(arrays)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def _among_first(batch: image_batches.Batch, limit: int | None, before: int) -> image_batches.Batch:
    """The images of a batch, before which `before` came, that are among the first `limit`."""
    return batch if limit is None else batch.first(max(0, limit - before))


def _limit_notes(limits: Mapping[str, int], count: int) -> list[str]:
    """What ran on fewer images than the others."""
    return [
        f"{name} ran on the first {limit:,} of {count:,} images."
        for name, limit in limits.items()
        if limit < count and name not in ROUNDINGS
    ]


def _inner_codes(values: np.ndarray, inner: deployed_lib.Tensor) -> np.ndarray:
    """Codes of the int8 tensor inside the border, from a border value of any type."""
    if values.dtype.kind == "f":
        return litert.quantize(values, float(inner.one_scale), inner.one_zero_point)
    return values.astype(np.int16) - 128 if values.dtype == np.uint8 else values


def _traced_model(model: Any) -> Outputs:
    """A Keras model at inference as a function of arrays to arrays, one for each output."""
    import tensorflow as tf

    run = _traced(
        lambda x: tf.nest.flatten(model(x, training=False)),
        [tf.TensorSpec((None, *t.shape[1:])) for t in model.inputs],
    )
    return lambda arrays: [output.numpy() for output in run(arrays)]


def _traced_twin(twin: integer_twin.IntegerTwin, names: Sequence[str]) -> Callable[[Arrays], Any]:
    """The codes of tensors `names` as a function of the codes of a twin's inputs."""
    import tensorflow as tf

    def selected(codes: Any) -> list[Any]:
        found = twin.run_codes(codes)
        return [found[name] for name in names]

    inputs = [twin.deployed.tensors[name] for name in twin.deployed.inputs]
    return _traced(
        selected,
        [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in inputs],
        autograph=False,  # kernels have no Python control flow on tensors; parsing takes seconds
    )


def _traced(
    function: Callable[..., Any], specs: Sequence[Any], autograph: bool = True
) -> Callable[[Arrays], Any]:
    """A graph function of one array for each input, with any batch size, traced once.

    Where the user has TensorFlow run functions eagerly, it is none. `function` gets the tensor of a
    model with one input, else the list of tensors.
    """
    import tensorflow as tf

    def graph(*parts: Any) -> Any:
        return function(parts[0] if len(parts) == 1 else list(parts))

    if tf.config.functions_run_eagerly():  # for few images tracing takes longer than they do
        return lambda arrays: graph(*map(tf.convert_to_tensor, arrays))
    traced = tf.function(graph, input_signature=specs, autograph=autograph)
    # TensorFlow takes all of these for one function, and warned of its tracings.
    concrete = traced.get_concrete_function()
    return lambda arrays: concrete(*map(tf.convert_to_tensor, arrays))
