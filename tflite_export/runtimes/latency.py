"""Latency and memory of `.tflite` files. Needs no TensorFlow.

Each file is measured in a process of its own.

Latency is `perf_counter_ns` around `invoke()`; its overhead is about 2 microseconds. Memory is how
far the process's peak grew from before the file was opened to after its last run, so it counts the
file, packed weights and the arena.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import numpy as np

from tflite_export import text_tables
from tflite_export.flatbuffer import file_summary, reader
from tflite_export.runtimes import litert

_MEASURE = """
import json, sys, time
from tflite_export.runtimes import litert
from tflite_export.errors import InterpreterError
kernels, threads, runs, warmup = sys.argv[1], *map(int, sys.argv[2:])
contents = sys.stdin.buffer.read()

def memory(field):
    try:
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None

try:
    try:
        # Resets the peak, VmHWM, to the present memory.
        open("/proc/self/clear_refs", "w").write("5")
        before = memory("VmRSS")
    except OSError:
        before = None
    runner = litert.Interpreter(contents, kernels, num_threads=threads)
    runner.run_zeros()
    for _ in range(warmup):
        runner.repeat()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        runner.repeat()
        times.append(time.perf_counter_ns() - start)
except InterpreterError as error:
    sys.exit(str(error))
grown = None if before is None else max(0, memory("VmHWM") - before)
print(json.dumps({"nanoseconds": times, "memory": grown}))
"""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Latency and memory of one file on one kernel set.

    Attributes:
      label: What the file is, e.g. "int8".
      kernels: Kernel set.
      threads: Threads of the kernels.
      runs: Number of timed runs.
      median_ms: Median latency of one image.
      p90_ms: Latency that 90 % of the runs keep.
      bytes: Size of the file.
      arena_bytes: Largest sum of activations alive at once (computed from the graph).
      memory_bytes: Growth of the process's peak memory; None where the system does not tell (it is
        read from /proc).
    """

    label: str
    kernels: str
    threads: int
    runs: int
    median_ms: float
    p90_ms: float
    bytes: int
    arena_bytes: int
    memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def measure(
    model: str | os.PathLike[str] | bytes,
    label: str = "",
    *,
    kernels: str = "xnnpack",
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
) -> Measurement:
    """Measures a file.

    Args:
      model: Path or contents.
      label: Name in the table; the path by default.
      kernels: "xnnpack", "builtin" or "reference".
      threads: Threads of the kernels.
      runs: Number of timed runs.
      warmup: Runs before them.

    Raises:
      ValueError: If an argument is out of range or the file is no whole `.tflite` file.
      InterpreterError: If it cannot be read or run.
    """
    for argument, value, least in (
        ("threads", threads, 1),
        ("runs", runs, 1),
        ("warmup", warmup, 0),
    ):
        if value < least:
            raise ValueError(f"{argument} must be at least {least}. Received: {argument}={value}.")
    if kernels not in litert.KERNEL_SETS:
        known = ", ".join(litert.KERNEL_SETS)
        raise ValueError(f"kernels must be one of {known}. Received: kernels={kernels!r}.")
    contents = litert.read_bytes(model)
    label = label or ("model" if isinstance(model, bytes) else os.fspath(model))
    records = reader.from_bytes(contents, label)
    arguments = [kernels, *map(str, (threads, runs, warmup))]
    found = json.loads(litert.run_isolated(_MEASURE, arguments, contents, f"{label} ({kernels})"))
    milliseconds = np.array(found["nanoseconds"]) / 1e6
    return Measurement(
        label=label,
        kernels=kernels,
        threads=threads,
        runs=runs,
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.percentile(milliseconds, 90)),
        bytes=len(contents),
        arena_bytes=file_summary.arena_bytes(records),
        memory_bytes=found["memory"],
    )


def compare(
    models: Mapping[str, str | os.PathLike[str] | bytes],
    *,
    kernels: Sequence[str] = ("xnnpack",),
    **arguments: Any,
) -> list[Measurement]:
    """`measure` for every file and kernel set."""
    return [
        measure(model, label, kernels=name, **arguments)
        for label, model in models.items()
        for name in kernels
    ]


def text(measurements: Sequence[Measurement]) -> str:
    """Measurements as an aligned table; speed relative to the first one."""
    header = (
        "model",
        "kernels",
        "threads",
        "median ms",
        "p90 ms",
        "speed",
        "bytes",
        "arena bytes",
        "memory bytes",
    )
    rows = [
        (
            m.label,
            m.kernels,
            f"{m.threads}",
            f"{m.median_ms:.3f}",
            f"{m.p90_ms:.3f}",
            f"{measurements[0].median_ms / m.median_ms:.2f}x",
            f"{m.bytes:,}",
            f"{m.arena_bytes:,}",
            "-" if m.memory_bytes is None else f"{m.memory_bytes:,}",
        )
        for m in measurements
    ]
    return text_tables.table(header, rows)
