"""Random networks through the whole exporter: exact on every code, or refused.

A refusal is a clear error before a file is written.

Every seed is a network, its weights, its widths (W2-W8, A2-A8) and its images. Equal must be, on
every code of every tensor: integer twin and XNNPACK, double-rounding twin and reference kernels;
what the file holds must be what the student holds; and `tflite_export.verify` must pass what is
equal. A difference, a false alarm, a crash, another error than ValueError or TypeError, or a file
left by a refusal is a failure.

The networks run in processes of their own, some at a time, so that a crash of a kernel costs one
seed and has its name.

Examples:

  500 networks.
    python -m experiments.evidence.fuzz --models=500 --seed=0 --json=experiments/results/fuzz.jsonl

  As many as five minutes allow; `make fuzz`.
    python -m experiments.evidence.fuzz --models=1000000 --minutes=5 --json=/tmp/fuzz.jsonl

  500 networks with weights as long trainings leave them: dead and saturated channels, gammas down
  to 1e-20, statistics over 12 orders of magnitude.
    python -m experiments.evidence.fuzz --weights=trained_like --json=/tmp/trained_like.jsonl

  One seed again, in this process, with the traceback.
    python -m experiments.evidence.fuzz --one=17

Exit code: 0 if nothing failed, 1 otherwise.
"""

import collections
from collections.abc import Iterator, Sequence
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any

from absl import app, flags

from experiments import records
from tf_fpq import programs

FLAGS = flags.FLAGS


# Networks per process: TensorFlow's start costs as much as some networks, and its memory grows with
# them.
PER_PROCESS = 50
PASSED = ("exact", "refused")

Row = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Runs what the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    if FLAGS.one is not None:
        from experiments.evidence import fuzz_case

        print(json.dumps(fuzz_case.run(FLAGS.one, FLAGS.weights, catch=False)))
        return
    path = pathlib.Path(FLAGS.json) if FLAGS.json else None
    rows = {row["seed"]: row for row in read(path)}
    wanted = range(FLAGS.seed, FLAGS.seed + FLAGS.models)
    deadline = time.monotonic() + FLAGS.minutes * 60 if FLAGS.minutes else float("inf")
    missing = [seed for seed in wanted if seed not in rows]
    commit = records.commit()  # before the rows themselves change the tree
    for row in run(missing, deadline, FLAGS.timeout_s, FLAGS.weights):
        row |= {"commit": commit}
        rows[row["seed"]] = row
        if path:
            _append(path, row)
        if row["status"] not in PASSED:
            print(
                f"seed {row['seed']} W{row.get('weight_bits')}A{row.get('activation_bits')}:"
                f" {row['status']}: {row['reason']}",
                flush=True,
            )
    mine = [rows[seed] for seed in wanted if seed in rows]
    print(summary(mine))
    sys.exit(any(row["status"] not in PASSED for row in mine))


def run(
    seeds: Sequence[int], deadline: float, timeout_s: float, weights: str = "spread"
) -> Iterator[Row]:
    """Runs networks in processes of their own and yields their rows.

    Args:
      seeds: The networks.
      deadline: Value of `time.monotonic()` after which none is started.
      timeout_s: Longest time of one network.
      weights: Kind of weights, of `fuzz_weights.KINDS`.
    """
    waiting = list(seeds)
    while waiting and time.monotonic() < deadline:
        for row in _process(waiting[:PER_PROCESS], deadline, timeout_s, weights):
            waiting.remove(row["seed"])
            yield row


def _process(
    seeds: Sequence[int], deadline: float, timeout_s: float, weights: str
) -> Iterator[Row]:
    """Rows of one process, at least one unless the deadline came; the last one says so if the
    process died.
    """
    arguments = f"{list(seeds)!r}, {weights!r}"
    code = f"from experiments.evidence import fuzz_case; fuzz_case.print_rows({arguments})"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        errors: collections.deque[str] = collections.deque(maxlen=5)
        threading.Thread(target=_drain, args=(process.stdout, lines.put), daemon=True).start()
        threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True).start()
        left = list(seeds)
        while left and time.monotonic() < deadline:
            try:
                line = lines.get(timeout=timeout_s)
            except queue.Empty:
                line = None
            if line is None:
                running = process.poll() is None
                reason = (
                    f"took longer than {timeout_s:g} s"
                    if running
                    else f"exit status {process.wait()}: {errors}"
                )
                yield {"seed": left.pop(0), "status": "crashed", "reason": reason}
                break
            if line.startswith("{"):
                row = json.loads(line)
                left.remove(row["seed"])
                yield row
        process.kill()


def _drain(pipe: Any, put: Any) -> None:
    for line in pipe:
        put(line)
    put(None)


def _append(path: pathlib.Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: pathlib.Path | None) -> list[Row]:
    """The rows of a file; none if there is none."""
    return (
        [json.loads(line) for line in path.read_text().splitlines()]
        if path and path.exists()
        else []
    )


def summary(rows: Sequence[Row]) -> str:
    """Counts by status, the failed seeds, refusals by reason, and how often each layer and operator
    came.
    """
    by_status = collections.Counter(row["status"] for row in rows)
    lines = [
        f"{len(rows)} networks: "
        + ", ".join(f"{count} {status}" for status, count in by_status.most_common())
    ]
    lines.append(
        f"codes compared: {sum(row.get('codes', 0) for row in rows):,}; differing:"
        f" {sum(row.get('differing', 0) for row in rows)}"
    )
    commits = collections.Counter(row.get("commit") or "no commit" for row in rows)
    lines.append("commits: " + ", ".join(f"{name} ({n})" for name, n in commits.most_common()))
    failed = [row["seed"] for row in rows if row["status"] not in PASSED]
    lines.append(f"failed seeds: {', '.join(map(str, failed)) or 'none'}")
    for status in ("refused",):
        reasons = collections.Counter(
            row["reason"][:100] for row in rows if row["status"] == status
        )
        lines += [f"  {status}, {count}: {reason}" for reason, count in reasons.most_common(10)]
    for key in ("layers", "operators"):
        found = collections.Counter(kind for row in rows for kind in row.get(key, ()))
        lines.append(
            f"{key}: " + ", ".join(f"{kind} {count}" for kind, count in found.most_common())
        )
    return "\n".join(lines)


def _define_flags() -> None:
    flags.DEFINE_integer("models", 500, "Number of networks.")
    flags.DEFINE_integer("seed", 0, "Seed of the first network; the others follow.")
    flags.DEFINE_enum(
        "weights", "spread", ["spread", "trained_like"], "Kind of weights; see fuzz_weights."
    )
    flags.DEFINE_float("minutes", 0, "Stop after so many minutes; 0 for no limit.")
    flags.DEFINE_string(
        "json",
        None,
        "File that a row per network is appended to; seeds that are in it are not run again.",
    )
    flags.DEFINE_float("timeout_s", 600, "A network that takes longer has failed.")
    flags.DEFINE_integer("one", None, "Run this seed only, here.")


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
