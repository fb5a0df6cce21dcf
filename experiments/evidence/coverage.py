r"""Takes every model of keras.applications through quantize, one FPQ step, export and verify.

tfmot is asked for its answer to the same model. Each model runs in a process of its own under a
memory and a time limit, so that a crash loses one row. Rows are appended to --json, one JSON object
a line. Models that are in the file already are skipped, so an interrupted run goes on where it
stopped. A later row of a model replaces an earlier one in the table.

Examples:

  All 71 models of tf_keras and the 40 of Keras 3 (hours), and the table.
    python -m experiments.evidence.coverage --json=experiments/results/coverage.jsonl \
        --markdown=docs/coverage.md

  Two models of Keras 3.
    python -m experiments.evidence.coverage --json=/tmp/coverage.jsonl --source=keras \
        --names=MobileNetV2,ResNet50

  How far Keras 3 models are from their conversions, and nothing else.
    python -m experiments.evidence.coverage --parity --json=experiments/results/parity.jsonl \
        --markdown=docs/parity.md

  The table again, without running anything.
    python -m experiments.evidence.coverage --json=experiments/results/coverage.jsonl \
        --markdown=docs/coverage.md --names=
"""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from experiments import records
from tf_fpq import programs

SOURCES = ("tf_keras", "keras")

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "File that the rows are appended to.")
flags.DEFINE_string("markdown", None, "File that the table is written to.")
flags.DEFINE_list(
    "names", None, "Models, as in MobileNetV2,ResNet50; all by default, none for an empty list."
)
flags.DEFINE_list(
    "source", ",".join(SOURCES), "Where the builders come from: tf_keras, keras (Keras 3) or both."
)
flags.DEFINE_bool(
    "parity", False, "Only compare Keras 3 models with their conversions to tf_keras."
)
flags.DEFINE_bool("again", False, "Run models that are in --json already, too.")
flags.DEFINE_float(
    "memory_gib", 18.0, "A model that takes more is stopped; ConvNeXtXLarge takes 17."
)
flags.DEFINE_float("timeout_s", 3600.0, "A model that takes longer is stopped.")
flags.DEFINE_string(
    "one", None, "Internal: run SOURCE:NAME in this process and print its row after each stage."
)

_POLL_S = 0.5


def main(argv: Sequence[str]) -> None:
    """Runs what the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    if FLAGS.one:
        _print_rows(*reversed(FLAGS.one.split(":")))
        return
    if not FLAGS.json:
        raise app.UsageError("--json=FILE is needed: the file that the rows are appended to.")
    unknown = sorted(set(FLAGS.source) - set(SOURCES))
    if unknown:
        raise app.UsageError(
            f"--source must be of {', '.join(SOURCES)}. Received: {', '.join(unknown)}."
        )
    path = pathlib.Path(FLAGS.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = _cases(path)
    for number, (name, source) in enumerate(cases):
        row = isolated(name, source, FLAGS.memory_gib, FLAGS.timeout_s, parity=FLAGS.parity)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{number + 1}/{len(cases)} {summary(row)}", flush=True)
        _write_table(read(path))
    rows = read(path)
    _write_table(rows)
    counts = {
        status: sum(row["status"] == status for row in rows)
        for status in sorted({row["status"] for row in rows})
    }
    print(", ".join(f"{count} {status}" for status, count in counts.items()))


def _cases(path: pathlib.Path) -> list[tuple[str, str]]:
    """What is to run: (name, source), the smallest of each family first."""
    done = set() if FLAGS.again else {(row["name"], row["source"]) for row in read(path)}
    if FLAGS.names is not None and not [name for name in FLAGS.names if name]:
        return []
    from experiments.evidence import coverage_case

    sources = ("keras",) if FLAGS.parity else FLAGS.source
    known = {source: list(coverage_case.builders(source)) for source in sources}
    unknown = sorted(set(FLAGS.names or ()) - {name for names in known.values() for name in names})
    if unknown:
        raise app.UsageError(
            f"--names must be builders of {', '.join(known)}. Received: {', '.join(unknown)}."
        )
    cases = [
        (name, source)
        for source, names in known.items()
        for name in FLAGS.names or names
        if name in names
    ]
    cases = [case for case in cases if case not in done]
    return sorted(cases, key=lambda case: case[0] not in coverage_case.SMALLEST)


def isolated(
    name: str, source: str, memory_gib: float, timeout_s: float, *, parity: bool = False
) -> dict[str, Any]:
    """Runs one model in a process of its own and returns its row.

    Args:
      name: Builder.
      source: "tf_keras" or "keras".
      memory_gib: Limit of the process' resident memory.
      timeout_s: Limit of its time.
      parity: Whether it is only compared with its conversion.
    """
    command = [sys.executable, "-m", "experiments.evidence.coverage", f"--one={source}:{name}"]
    command += ["--parity"] if parity else []
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    start, stopped = time.monotonic(), ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        reader = _Reader(process)
        while process.poll() is None:
            if time.monotonic() - start > timeout_s:
                stopped = f"took longer than {timeout_s:g} s"
            elif _resident(process.pid) > memory_gib * 2**30:
                stopped = f"took more than {memory_gib:g} GiB"
            if stopped:
                process.kill()
                break
            time.sleep(_POLL_S)
        output, errors = reader.texts()
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    row = (
        rows[-1]
        if rows
        else {
            "name": name,
            "source": source,
            "status": "unfinished",
            "stage": "start",
            "seconds": {},
        }
    )
    row = {"reason": "", "tfmot": "not asked", **row}
    if stopped and row["status"] == "unfinished":
        row |= {"status": "stopped", "reason": stopped}
    elif stopped:
        row["tfmot"] = f"no answer: {stopped}"
    elif row["status"] == "unfinished":
        row |= {
            "status": "crashed",
            "reason": f"exit status {process.returncode}: {' '.join(errors.split())[-300:]}",
        }
    return {**row, "wall_seconds": round(time.monotonic() - start, 1), "commit": records.commit()}


class _Reader:
    """Drains a process' pipes while it runs."""

    def __init__(self, process: subprocess.Popen):
        import threading

        self._texts = ["", ""]

        def drain(index: int, pipe: Any) -> None:
            self._texts[index] = pipe.read()

        pipes = (process.stdout, process.stderr)
        self._threads = [
            threading.Thread(target=drain, args=item, daemon=True) for item in enumerate(pipes)
        ]
        for thread in self._threads:
            thread.start()

    def texts(self) -> list[str]:
        """What was written, when both pipes are closed."""
        for thread in self._threads:
            thread.join()
        return self._texts


def _resident(pid: int) -> int:
    """Bytes of memory the process holds; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def summary(row: dict[str, Any]) -> str:
    """A row in a line."""
    stages = " ".join(f"{stage}={seconds:.1f}" for stage, seconds in row["seconds"].items())
    reason = f" ({row['stage']}) {row['reason'][:300]}" if row["reason"] else ""
    return (
        f"{row['name']} [{row['source']}] {row['status']}{reason}; {stages}; tfmot:"
        f" {row['tfmot'][:60]}"
    )


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The last row of every model in the file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({(row["name"], row["source"]): row for row in rows}.values())


def _write_table(rows: list[dict[str, Any]]) -> None:
    """Writes --markdown, if there is one; after every model, so that it is as new as the rows."""
    from experiments.evidence import coverage_case, parity_case

    if not FLAGS.markdown:
        return
    heading, table = (
        (_PARITY, parity_case.table) if FLAGS.parity else (_HEADING, coverage_case.table)
    )
    commits = sorted({row.get("commit") or "no commit" for row in rows})
    records.write_text(
        pathlib.Path(FLAGS.markdown),
        f"{heading}\nCommits of the rows: {', '.join(commits)}.\n\n{table(rows)}\n",
    )


_HEADING = """# Which models of keras.applications work

Random weights, 10 classes, the smallest input each builder allows. Every model is quantized to W4A4
(first and last layer W8A8), calibrated on 16 random images, trained for one FPQ step with the float
model as teacher, exported and verified: all output codes of the file equal those of the integer
twin, on XNNPACK and on the reference kernels. Beside it what
`tfmot.quantization.keras.quantize_model` (0.8.1) says. Seconds are wall-clock time without tfmot's,
on two shared cores; a Keras 3 model is converted, with the check that both compute the same ([how
far they are](parity.md)), before its batch norms get statistics. Regenerate with `python -m
experiments.evidence.coverage`.
"""

_PARITY = """# How far Keras 3 models are from their conversions

Every builder of Keras 3's `keras.applications`, the smallest input it allows, 10 classes, on two
random images: the largest difference of two logits, in float32 and in float64, and that of the
worst layer by itself, on the input that the Keras 3 layer has; relative to the largest element, or
1. "Built": the weights that the builder starts with (`weights=None`). "Drawn": every weight but
kernels is uniform in 0.5 .. 1. "Settled": batch norms take their statistics from 16 random images.
The layers and float64 show that the conversion is right; the float32 logits show how far the
network carries the rounding of its layers. EfficientNetV2L as built is chaotic: in Keras 3 alone
its logits, of up to 4551, move by 3223 if each pixel moves by 1e-7 of itself. `from_keras3` accepts
1e-5 of the outputs, in silence, or of each layer, with a warning. Regenerate with `python -m
experiments.evidence.coverage --parity`.
"""


def _print_rows(name: str, source: str) -> None:
    from experiments.evidence import coverage_case, parity_case

    for row in parity_case.run(name) if FLAGS.parity else coverage_case.run(name, source):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    programs.run(main)
