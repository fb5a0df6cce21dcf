"""One random network through the exporter; see `experiments.evidence.fuzz`."""

from collections.abc import Iterable, Iterator
import contextlib
import json
import os
import pathlib
import tempfile
import time
from typing import Any
import warnings

import numpy as np
import tensorflow as tf

from experiments.evidence import fuzz_networks
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert
from tflite_export.twin import integer_twin as twin_lib
from tflite_export.verification import parameter_checks

IMAGES = 4
ROUNDINGS = {"xnnpack": "single", "reference": "double"}
# A refusal is one of these, raised by the package itself.
REFUSALS = (ValueError, TypeError)

Row = dict[str, Any]


class Mismatch(AssertionError):
    """Codes differ."""


def print_rows(seeds: Iterable[int], weights: str = "spread") -> None:
    """Runs networks one after the other and prints their rows."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for seed in seeds:
        print(json.dumps(run(seed, weights)), flush=True)


def run(seed: int, weights: str = "spread", catch: bool = True) -> Row:
    """Builds, quantizes, exports and compares one network.

    Args:
      seed: Of everything.
      weights: Kind of weights, of `fuzz_weights.KINDS`.
      catch: Whether an error that is no refusal becomes a row, or is raised.

    Returns:
      `status` is "exact", "refused", "mismatch", "false alarm" (all codes are equal, and
      `tflite_export.verify` raises all the same) or "error"; `reason` says why, `stage` how far it
      came.
    """
    keras.backend.clear_session()
    rng = np.random.default_rng([seed, 2])
    row: Row = {
        "seed": seed,
        "weights": weights,
        "weight_bits": int(rng.integers(2, 9)),
        "activation_bits": int(rng.integers(2, 9)),
    }
    row |= {"stage": "build", "status": "error", "reason": "", "codes": 0, "differing": 0}
    start = time.perf_counter()
    try:
        with _eagerly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensors that are constant here
            _stages(seed, weights, row)
    except Mismatch as error:
        row |= {"status": "mismatch", "reason": str(error)}
    except tflite_export.VerificationError as error:
        row |= {"status": "false alarm", "reason": " ".join(str(error).split())[:400]}
    except Exception as error:
        refused = (
            isinstance(error, REFUSALS)
            and row["stage"] in ("quantize", "calibrate", "export")
            and _is_own(error)
        )
        if not refused and not catch:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        row |= {"status": "refused" if refused else "error", "reason": reason}
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def _is_own(error: BaseException) -> bool:
    """Whether the error was raised by a module of the package, not by something below it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.split(".")[0] in ("tf_fpq", "tflite_export")


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Everything runs once or twice: tracing would cost more than it saves."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def _stages(seed: int, weights: str, row: Row) -> None:
    model = fuzz_networks.build(seed, weights)
    row["layers"] = sorted({type(layer).__name__ for layer in model.layers} - {"InputLayer"})
    images = fuzz_networks.images_for(seed, model, IMAGES)
    if not all(np.isfinite(value).all() for value in tf.nest.flatten(model(images))):
        raise AssertionError("the generator made a network with infinite outputs")
    row["stage"] = "quantize"
    rule = tf_fpq.QuantRule(
        ".*", weight_bits=row["weight_bits"], activation_bits=row["activation_bits"]
    )
    student = tf_fpq.quantize_model(model, [rule])
    row["stage"] = "calibrate"
    tf_fpq.calibrate(student, images, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        row["stage"] = "export"
        try:
            exported = tflite_export.export(student, path)
        except REFUSALS as error:
            if os.listdir(folder):
                raise Mismatch(f"refused, but left {os.listdir(folder)}: {error}") from error
            raise
        row["stage"] = "compare"
        row["operators"] = sorted({operator.kind for operator in exported.deployed.operators})
        _check_contents(student, exported, path.read_bytes())
        _check_codes(student, exported, images, row)
        row["stage"] = "verify"
        tflite_export.verify(student, exported, images, verbose=0)
    row |= {"status": "exact", "stage": "done"}


def _check_contents(student: Any, exported: Any, contents: bytes) -> None:
    """The file holds the student's constants, grids and operators."""
    found = reader.from_bytes(contents)
    failures = list(parameter_checks.compare(exported.file_model, found))
    if not failures:
        failures += parameter_checks.student_weights(student, found)[0]
    if failures:
        raise Mismatch(parameter_checks.summary(failures))


def _check_codes(student: Any, exported: Any, images: np.ndarray, row: Row) -> None:
    contents = pathlib.Path(exported.path).read_bytes()
    for kernels, rounding in ROUNDINGS.items():
        file = litert.Interpreter(contents, kernels, keep_all_tensors=True)
        codes = file.to_input(images)
        outputs, found = litert.Interpreter(contents, kernels).run(codes), file.tensors(codes)
        computed = twin_lib.IntegerTwin(exported.deployed, rounding).run_codes(codes)
        computed = {name: value.numpy() for name, value in computed.items()}
        missing = [name for name in exported.deployed.outputs if name not in outputs]
        if missing:
            raise Mismatch(f"{kernels}: the file has no outputs {missing}")
        named = [(f"output {name}", computed[name], value) for name, value in outputs.items()]
        named += [
            (f"tensor {name}", value, found[name])
            for name, value in computed.items()
            if name in found
        ]
        _count(kernels, named, row)
        if rounding == "single":
            row["student_lsb"] = _student_lsb(student, images, computed)


def _count(kernels: str, named: list[tuple[str, np.ndarray, np.ndarray]], row: Row) -> None:
    """Adds codes and differences; the first tensor that differs is where it begins."""
    wrong = []
    for name, twin, file in named:
        if twin.shape != file.shape:
            raise Mismatch(f"{kernels}: {name} has shape {file.shape}, its twin {twin.shape}")
        differing = int((twin != file).sum())
        row["codes"] += twin.size
        row["differing"] += differing
        if differing:
            worst = int(np.abs(twin.astype(int) - file.astype(int)).max())
            wrong.append(f"{name} in {differing} of {twin.size} codes by up to {worst} LSB")
    if wrong:
        inner = [text for text in wrong if text.startswith("tensor")]
        raise Mismatch(f"{kernels}: {len(wrong)} differ, first {(inner or wrong)[0]}")


def _student_lsb(student: Any, images: np.ndarray, computed: dict[str, np.ndarray]) -> float:
    """Largest mean difference, over tensors, of the student's codes and the twin's: not judged, as
    ties tip others.
    """
    from tflite_export.lowering import builder

    codes = builder.student_codes(student)(images)
    means = [float(np.abs(value.numpy() - computed[name]).mean()) for name, value in codes.items()]
    return round(max(means, default=0.0), 3)
