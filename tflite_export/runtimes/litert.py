"""A `.tflite` file on the CPU kernels of LiteRT, as a phone runs it. Needs no TensorFlow.

It takes one image at a time.

One image at a time is no slower than a resized batch (0.236 against 0.238 ms per image for
resnet20), every file allows it, and memory does not depend on the number of images.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, Literal
import warnings

from ai_edge_litert import interpreter as litert
import numpy as np

from tflite_export import model_inputs as inputs_lib
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import reader

KernelSet = Literal["xnnpack", "builtin", "reference"]

# What a phone runs; LiteRT's own optimized kernels; the reference kernels, which TensorFlow Lite
# Micro shares.
KERNEL_SETS: Mapping[KernelSet, litert.OpResolverType] = {
    "xnnpack": litert.OpResolverType.AUTO,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": litert.OpResolverType.BUILTIN_REF,
}

# Of a run of one image in a process of its own. Chosen here, long for one image of any network: it
# is there for processes that hang.
TIMEOUT_SECONDS = 300

_PROBE = """
import sys
from tflite_export.runtimes import litert
contents = sys.stdin.buffer.read()
try:
    for kernels in sys.argv[1:]:
        litert.Interpreter(contents, kernels).run_zeros()
except Exception as error:
    sys.exit(f"{kernels}: {error.__cause__ or error}")
"""


class Interpreter:
    """A file on one kernel set.

    Attributes:
      name: Name of the kernel set.
      inputs: LiteRT's details of the input tensors.
      outputs: LiteRT's details of the output tensors.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        kernels: KernelSet = "xnnpack",
        *,
        num_threads: int = 1,
        keep_all_tensors: bool = False,
    ):
        """Opens a file.

        Run `probe` first on a file of unknown origin: a corrupt one can crash the process.

        Args:
          model: Path or contents.
          kernels: "xnnpack", "builtin" or "reference".
          num_threads: Threads of the kernels.
          keep_all_tensors: Whether `tensors` shall work; costs memory, changes no result.

        Raises:
          ValueError: If the kernel set is unknown.
          InterpreterError: If the file cannot be read or LiteRT refuses it.
        """
        if kernels not in KERNEL_SETS:
            raise ValueError(
                f"kernels must be one of {', '.join(KERNEL_SETS)}. Received: kernels={kernels!r}."
            )
        self.name = kernels
        self._contents = read_bytes(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # "preserve_all_tensors is for debugging", which this is
                self._litert = litert.Interpreter(
                    model_content=self._contents,
                    num_threads=num_threads,
                    experimental_op_resolver_type=KERNEL_SETS[kernels],
                    experimental_preserve_all_tensors=keep_all_tensors,
                )
            for details in self._litert.get_input_details():
                if details["shape"].size and details["shape"][0] != 1:
                    self._litert.resize_tensor_input(details["index"], [1, *details["shape"][1:]])
            self._litert.allocate_tensors()
            inputs, outputs = self._litert.get_input_details(), self._litert.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise InterpreterError(
                f"LiteRT cannot open {_label(model)} with the {kernels} kernels: {error}"
            ) from error
        names = self._names()
        self.inputs: list[dict[str, Any]] = [
            {**details, "name": names[details["index"]]} for details in inputs
        ]
        self.outputs: list[dict[str, Any]] = [
            {**details, "name": names[details["index"]]} for details in outputs
        ]
        self._keeps = keep_all_tensors

    def run(self, batch: Any) -> dict[str, np.ndarray]:
        """The outputs for a batch, by tensor name, images stacked along axis 0.

        Args:
          batch: `[images, ...]`. Floats for an integer input are quantized on its grid; a batch in
            the input's dtype goes in as it is. Several inputs come as a tuple in the file's order,
            or as a dict by tensor name.

        Raises:
          ValueError: If the batch does not fit the inputs.
        """
        return self._collect(batch, {details["name"]: details["index"] for details in self.outputs})

    def tensors(self, batch: Any) -> dict[str, np.ndarray]:
        """All activations for a batch, intermediate ones too; needs `keep_all_tensors=True`."""
        if not self._keeps:
            raise ValueError(
                "Intermediate tensors need keep_all_tensors=True. Received: keep_all_tensors=False."
            )
        self.invoke(*(codes[:1] for codes in self.to_inputs(batch)))
        return self._collect(batch, self._activations())

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of what `tensors` returns."""
        return tuple(self._activations())

    def run_zeros(self) -> None:
        """Runs once on zeros: what `probe` does in a process of its own."""
        for details in self.inputs:
            self._litert.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
        self._litert.invoke()

    def repeat(self) -> None:
        """Runs again on the inputs that are set: what a benchmark times."""
        self._litert.invoke()

    def invoke(self, *images: np.ndarray) -> None:
        """Runs on one image, an array `[1, ...]` for each input in its dtype."""
        for details, image in zip(self.inputs, images, strict=True):
            self._litert.set_tensor(details["index"], image)
        self._litert.invoke()

    def to_input(self, batch: Any) -> Any:
        """`batch` in the dtypes of the file's inputs.

        Floats for an integer input become codes, `clip(rint(x * (1 / scale)) + zero_point)`.

        Returns:
          The array of a model with one input, else the tuple of its arrays.
        """
        return inputs_lib.packed(self.to_inputs(batch))

    def to_inputs(self, batch: Any) -> tuple[np.ndarray, ...]:
        """As `to_input`, always as a tuple."""
        names = [details["name"] for details in self.inputs]
        arrays = [np.asarray(array) for array in inputs_lib.in_order(batch, names)]
        titles = [inputs_lib.title(name, names) for name in names]
        found = tuple(map(_to_input, arrays, self.inputs, titles))
        inputs_lib.check_lengths(found, names)
        return found

    def _collect(self, batch: Any, indices: Mapping[str, int]) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in indices}
        codes = self.to_inputs(batch)
        for image in range(len(codes[0])):
            self.invoke(*(part[image : image + 1] for part in codes))
            for name, index in indices.items():
                found[name].append(self._litert.get_tensor(index))
        return {
            name: np.concatenate([np.atleast_1d(part) for part in parts])
            for name, parts in found.items()
        }

    def _activations(self) -> dict[str, int]:
        """Tensors the graph computes: those written by an operator, and the inputs."""
        operators = reader.from_bytes(self._contents).operators
        written = {name for operator in operators for name in operator.outputs}
        written |= {details["name"] for details in self.inputs}
        names = self._names()
        return {
            names[d["index"]]: d["index"]
            for d in self._litert.get_tensor_details()
            if names[d["index"]] in written and d["shape"].size and d["shape"][0] == 1
        }

    def _names(self) -> dict[int, str]:
        """The tensors' names as `reader.read` gives them, each once, by index.

        Details of a tensor whose name is no UTF-8 are not to be had.
        """
        found = {d["index"]: d["name"] for d in self._litert.get_tensor_details()}
        names = (found.get(index, "") for index in range(max(found, default=-1) + 1))
        return dict(enumerate(reader.unique_names(names)))


def check_kernels(kernels: Sequence[str]) -> None:
    """Checks names of kernel sets.

    Raises:
      ValueError: If there is none, or an unknown one.
    """
    if isinstance(kernels, str) or not kernels or set(kernels) - set(KERNEL_SETS):
        raise ValueError(
            f"kernels must be some of {', '.join(KERNEL_SETS)}. Received: kernels={kernels!r}."
        )


def _to_input(batch: np.ndarray, details: Mapping[str, Any], title: str) -> np.ndarray:
    """One input's array in its dtype; see `Interpreter.to_input`."""
    expected, dtype = tuple(int(size) for size in details["shape"][1:]), np.dtype(details["dtype"])
    if batch.shape[1:] != expected or not batch.size:
        raise ValueError(f"{title} must have shape {(None, *expected)}. Received: {batch.shape}.")
    if batch.dtype == dtype:
        return batch
    if batch.dtype.kind != "f":
        raise ValueError(f"{title} must be float or {dtype}. Received: dtype {batch.dtype}.")
    whole_numbers = not details["quantization"][0] and np.array_equal(batch, np.rint(batch))
    if dtype.kind == "f" or whole_numbers:
        return batch.astype(dtype)
    scale, zero_point = details["quantization"]
    return quantize(batch, scale, zero_point, dtype)


def quantize(values: np.ndarray, scale: float, zero_point: int, dtype: Any = np.int8) -> np.ndarray:
    """Codes `clip(rint(values * (1 / scale)) + zero_point)`, ties to even.

    They are computed in float32, as the student computes them.

    Raises:
      ValueError: If the tensor has no scale.
    """
    if not scale:
        raise ValueError(f"The tensor has no grid to quantize on. Received: scale={scale}.")
    limits = np.iinfo(dtype)
    reciprocal = np.float32(1) / np.float32(scale)
    levels = np.rint(np.asarray(values, np.float32) * reciprocal) + np.float32(zero_point)
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def dequantize(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Values `(codes - zero_point) * scale` in float32."""
    return (np.asarray(codes, np.float32) - np.float32(zero_point)) * np.float32(scale)


def read_bytes(model: str | os.PathLike[str] | bytes) -> bytes:
    """Contents of a path, or the contents themselves.

    Raises:
      InterpreterError: If the file cannot be read.
    """
    if isinstance(model, bytes):
        return model
    try:
        return pathlib.Path(model).read_bytes()
    except OSError as error:
        raise InterpreterError(f"Cannot read {_label(model)}: {error.strerror}.") from error


def probe(
    model: str | os.PathLike[str] | bytes,
    kernels: Sequence[str] = ("xnnpack",),
    source: str | None = None,
) -> None:
    """Opens and runs a file once in a process of its own.

    A crash of the kernels there is an error here.

    Args:
      model: Path or contents.
      kernels: Kernel sets to try, in order.
      source: The file's name in errors; the path by default.

    Raises:
      InterpreterError: If LiteRT refuses the file, crashes on it or does not come back.
    """
    label = _label(model) if source is None else repr(source)
    what = f"{label} with the {' or '.join(kernels)} kernels"
    run_isolated(_PROBE, kernels, read_bytes(model), what)


def run_isolated(script: str, arguments: Sequence[str], contents: bytes, what: str) -> str:
    """Runs a Python script in a process of its own and returns what it printed.

    Args:
      script: Source; it may import this package.
      arguments: Its `sys.argv[1:]`.
      contents: Its standard input, the contents of a file.
      what: Name of the file and the kernels, for errors.

    Raises:
      InterpreterError: If the process crashes, ends with an error or does not end.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            input=contents,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InterpreterError(f"{what} did not finish within {TIMEOUT_SECONDS} s.") from error
    if done.returncode < 0:
        raise InterpreterError(
            f"The interpreter crashed on {what} ({signal.Signals(-done.returncode).name})."
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise InterpreterError(f"{what} cannot be run: {lines[-1]}")
    return done.stdout.decode()


def _label(model: str | os.PathLike[str] | bytes) -> str:
    return f"these {len(model)} bytes" if isinstance(model, bytes) else repr(os.fspath(model))
