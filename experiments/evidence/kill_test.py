r"""Kills runs at random moments; each must end as the run that nobody killed, bit for bit.

    python -m experiments.evidence.kill_test --kills=50 --seed=0

The run is one of `experiments.train` with a line of results behind it: a float teacher of digits, a
W4A4 student by FPQ and CR, export, verification. SIGKILL comes

  time        after a random time,
  file        before a random operation on a file: making, opening, renaming or removing one,
  checkpoint  while TensorFlow writes a checkpoint,
  line        when half a line of results is written.

The run is started again until it ends. Then weights, `model.tflite`, report, history and figures
must be those of the run that nobody killed, no file must be left that it does not have, and the
results must hold its row once.

Exit code: 0, or 1 with what differs.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from typing import Any
import warnings
import zipfile

from absl import app, flags
import h5py
import numpy as np

from experiments import data, models, pipeline
from experiments.config import Config
from experiments.results_file import ResultsFile
from tf_fpq import programs
from tf_fpq.keras_compat import keras

# How often each kind of kill is drawn. Chosen here: a random time strikes anywhere, but rarely
# where something is written.
WEIGHTS = {"time": 4, "file": 3, "checkpoint": 2, "line": 1}
# Seconds between two looks for a checkpoint that is being written, which takes some 10 ms.
LOOK_SECONDS = 0.0005
_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class DifferenceError(RuntimeError):
    """A run that was killed did not end as the one that nobody killed."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed.

    Attributes:
      kind: A key of `WEIGHTS`.
      when: A share of the uninterrupted run: of its seconds, its operations on files, or its
        epochs.
    """

    kind: str
    when: float


@dataclasses.dataclass(frozen=True)
class Reference:
    """The run that nobody killed.

    Attributes:
      folder: Its folder.
      seconds: How long it took.
      operations: How many operations on files it made.
    """

    folder: pathlib.Path
    seconds: float
    operations: int


def network(image_shape: tuple[int, int, int], num_classes: int, width: int) -> keras.Model:
    """Convolutions, batch norms and a sum: as small as can be, so that a process takes seconds."""
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(width, 3, strides=2, use_bias=False, name="stem_conv")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = skip = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(x)
    x = keras.layers.BatchNormalization(name="conv_bn")(x)
    x = keras.layers.ReLU(name="relu")(keras.layers.Add(name="add")([x, skip]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(num_classes, name="logits")(x), name="smallest")


def config(data_dir: str) -> Config:
    """A run that has everything: noise, distillation, and an EMA teacher."""
    return Config(
        data_dir=data_dir,
        model="smallest",
        train_examples=96,
        width=4,
        float_epochs=2,
        epochs=3,
        batch_size=32,
        methods=("fpq", "cr"),
        kernels=("xnnpack",),
        min_top1_agreement=0.0,
    )


def run_kills(
    kills: int, seed: int, folder: pathlib.Path, log: Callable[[str], Any] = print
) -> int:
    """Kills `kills` times and compares every run that was killed.

    Args:
      kills: How many processes to kill.
      seed: Of the moments.
      folder: An empty folder.
      log: Called with a line for every process.

    Returns:
      The number of runs that were compared.

    Raises:
      DifferenceError: Naming what differs.
    """
    data_dir = str(folder / "data")
    data.load("digits", data_dir)
    reference = _uninterrupted(folder, data_dir)
    log(f"uninterrupted: {reference.seconds:.1f} s, {reference.operations} operations on files")
    generator, found, runs = random.Random(seed), collections.Counter[str](), 0
    while found.total() < kills:
        runs += 1
        for kill in _ended(folder, data_dir, reference, generator, kills - found.total()):
            found[kill.kind] += 1
            log(f"kill {found.total()}, run {runs}: {kill.kind} at {kill.when:.2f}")
        compare(folder / "run", reference.folder)
        log(f"run {runs} is the uninterrupted one")
    log(f"{found.total()} kills ({dict(found)}), {runs} runs: all are the uninterrupted one")
    return runs


def _uninterrupted(folder: pathlib.Path, data_dir: str) -> Reference:
    counted = folder / "operations"
    started = time.perf_counter()
    _check(_process(folder / "run", data_dir, None, counted) == 0, "the run itself fails")
    seconds = time.perf_counter() - started
    (folder / "run").rename(folder / "reference")
    return Reference(folder / "reference", seconds, int(counted.read_text()))


def _ended(
    folder: pathlib.Path,
    data_dir: str,
    reference: Reference,
    generator: random.Random,
    most: int,
) -> Iterator[Kill]:
    """Starts a run again and again until it ends; yields the kills, at most `most`."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    while True:
        kind = generator.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        kill = Kill(kind, generator.random()) if most else None
        code = _process(folder / "run", data_dir, kill and _scaled(kill, reference))
        if code == 0:
            return
        if kill is None or code != -signal.SIGKILL:
            raise DifferenceError(f"exit code {code}: {(folder / 'log.txt').read_text()[-2000:]}")
        most -= 1
        yield kill


def _scaled(kill: Kill, reference: Reference) -> Kill:
    whole = {"time": reference.seconds, "file": reference.operations, "checkpoint": 5}
    return dataclasses.replace(kill, when=kill.when * whole.get(kill.kind, 1))


def _process(
    run: pathlib.Path, data_dir: str, kill: Kill | None, counted: pathlib.Path | None = None
) -> int:
    """Exit code of a process that goes on with a run."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, before TensorFlow is used: a process then starts in no time.
    context.set_forkserver_preload(["experiments.pipeline"])
    process = context.Process(target=go_on, args=(run, data_dir, kill, counted))
    process.start()
    process.join(kill.when if kill and kill.kind == "time" else None)
    process.kill()  # without effect on one that has ended
    process.join()
    return process.exitcode or 0


def go_on(
    run: pathlib.Path, data_dir: str, kill: Kill | None, counted: pathlib.Path | None
) -> None:
    """Goes on with a run, in a process of its own that `kill` ends."""
    log = os.open(run.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    models.BUILDERS["smallest"] = network
    operations = _count_operations(run, kill)
    if kill and kill.kind == "checkpoint":
        threading.Thread(target=_watch_checkpoints, args=(run, int(kill.when)), daemon=True).start()
    if kill and kill.kind == "line":
        os.fsync = _cut_off
    result = pipeline.run(dataclasses.replace(config(data_dir), workdir=str(run / "cell")))
    _results(run / "rows.jsonl").add({"seed": 0, "metrics": result["metrics"]})
    if counted:
        counted.write_text(str(operations()))


def _die(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _count_operations(run: pathlib.Path, kill: Kill | None) -> Callable[[], int]:
    """Counts what Python does to the files of a run; dies before the operation of `kill`."""
    last = int(kill.when) if kill and kill.kind == "file" else None
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _FILE_EVENTS and str(arguments[0]).startswith(str(run)):
            if count == last:
                _die()
            count += 1

    sys.addaudithook(hook)
    return lambda: count


def _watch_checkpoints(run: pathlib.Path, number: int) -> None:
    """Dies when a checkpoint is being written, after `number` others of this process."""
    seen: set[str] = set()
    while True:
        for temporary in run.glob("**/checkpoints/*/epoch-*_temp"):
            seen.add(str(temporary))
            if len(seen) > number:
                _die()
        time.sleep(LOOK_SECONDS)


def _cut_off(handle: int) -> None:
    """In place of `os.fsync`: as if the power went when half a line was on the disk."""
    size = os.fstat(handle).st_size
    os.ftruncate(handle, size - size // 3)
    _die()


def compare(run: pathlib.Path, reference: pathlib.Path) -> None:
    """Raises DifferenceError if a run is not the reference, bit for bit, or has other files."""
    left, right = (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (run, reference)
    )
    _check(left == right, f"files: {left}, and not {right}")
    for name in left:
        one, other = (_content(folder / name) for folder in (run, reference))
        _check(_equal(one, other), f"{name} is another one: {_differing(one, other)}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise DifferenceError(message)


def _content(path: pathlib.Path) -> Any:
    """What of a file must be repeated."""
    if path.suffix == ".keras":
        return _archive(path)
    if path.suffix == ".json":
        return _repeated(json.loads(path.read_text()))
    if path.suffix == ".html":
        return None  # it shows report.json, with seconds and drawings whose parts have random names
    if path.name == "rows.jsonl":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the half lines, which are to be there
            return _results(path).rows()
    return path.read_bytes()


def _results(path: pathlib.Path) -> ResultsFile:
    return ResultsFile(path, lambda row: str(row["seed"]))


def _repeated(row: dict[str, Any]) -> dict[str, Any]:
    """Without times: a `.keras` file says when it was written, so its sum is one."""
    return {n: value for n, value in row.items() if n not in ("seconds", "teacher_sha256")}


def _archive(path: pathlib.Path) -> dict[str, Any]:
    """Configuration and all arrays of a `.keras` file, which also says when it was written.

    Without the metrics, which are sums over the last epoch that the process has trained itself.
    """
    with zipfile.ZipFile(path) as archive:
        found: dict[str, Any] = {"config": archive.read("config.json")}
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visititems(
                lambda name, node: (
                    found.update({name: np.asarray(node)})
                    if isinstance(node, h5py.Dataset) and not name.startswith("metrics/")
                    else None
                )
            )
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and any(isinstance(value, np.ndarray) for value in one.values()):
        return one.keys() == other.keys() and all(
            np.array_equal(value, other[name]) for name, value in one.items()
        )
    return one == other


def _differing(one: Any, other: Any) -> str:
    """What differs between two contents, as far as it has names."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return "its bytes"
    both = set(one) & set(other)
    names = {n for n in both if not _equal({n: one[n]}, {n: other[n]})} | (set(one) ^ set(other))
    return "; ".join(f"{n}: {one.get(n)!r}, and not {other.get(n)!r}"[:500] for n in sorted(names))


def main(arguments: Sequence[str]) -> None:
    """Kills."""
    if len(arguments) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(arguments[1:])}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_kills(flags.FLAGS.kills, flags.FLAGS.seed, pathlib.Path(folder))
        except DifferenceError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 50, "How many processes to kill.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the moments.")
    programs.run(main)
