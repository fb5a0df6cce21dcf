r"""Kills runs at random moments; each must end as the run that nobody killed, bit for bit.

    python -m experiments.evidence.kill_test --kills=50 --seed=0

The run is one of `experiments.train` with a line of results behind it: a float teacher of digits, a
W4A4 student by FPQ and CR, export, verification. SIGKILL comes

  time        after a random time,
  file        before a random operation on a file: making, opening, renaming or removing one,
  checkpoint  while TensorFlow writes a checkpoint,
  export      at a random time within the export,
  line        when half a line of results is written.

The run is started again until it ends. One that only lacks its line of results is killed no more,
so that kills strike runs that have something to lose. At the end weights, `model.tflite`, report,
history and figures must be those of the run that nobody killed, no file must be left that it does
not have, and the results must hold its row once.

Exit code: 0, or 1 with what differs.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from typing import Any

from absl import app, flags

from experiments import data, models, pipeline
from experiments.config import Config
from experiments.evidence import same_run
from experiments.results_file import ResultsFile
from tf_fpq import programs
from tf_fpq.keras_compat import keras
import tflite_export

# How many of a dozen kills are of each kind. Chosen here: a random time strikes anywhere, but
# rarely where something is written.
WEIGHTS = {"time": 4, "file": 3, "checkpoint": 2, "export": 2, "line": 1}
# Seconds between two looks for a checkpoint that is being written, which takes some 10 ms.
LOOK_SECONDS = 0.0005
_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed.

    Attributes:
      kind: A key of `WEIGHTS`.
      when: A share of the uninterrupted run: of its seconds, its operations on files, its
        checkpoints, or the seconds of its export.
    """

    kind: str
    when: float


@dataclasses.dataclass(frozen=True)
class Reference:
    """The run that nobody killed.

    Attributes:
      folder: Its folder.
      whole: What there is of each kind's measure: seconds, operations on files, checkpoints,
        seconds of the export.
    """

    folder: pathlib.Path
    whole: Mapping[str, float]


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
    log(f"uninterrupted: {json.dumps(reference.whole)}")
    generator = random.Random(seed)
    planned = collections.deque(itertools.islice(_kinds(generator), kills))
    kinds, places, runs = collections.Counter[str](), collections.Counter[str](), 0
    while planned:
        runs += 1
        for kill in _ended(folder, data_dir, reference, generator, planned):
            place = _place(folder)
            kinds[kill.kind] += 1
            places[place] += 1
            log(f"kill {kinds.total()}, run {runs}: {kill.kind} at {kill.when:.2f}, in {place}")
        same_run.compare(folder / "run", reference.folder)
        log(f"run {runs} is the uninterrupted one")
    log(f"{kinds.total()} kills, {runs} runs: all are the uninterrupted one")
    log(f"kills by kind: {dict(kinds)}, by place: {dict(places)}")
    return runs


def _kinds(generator: random.Random) -> Iterator[str]:
    """Kinds of kills, each as often as `WEIGHTS` says in every dozen."""
    dozen = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
    while True:
        yield from generator.sample(dozen, len(dozen))


def _uninterrupted(folder: pathlib.Path, data_dir: str) -> Reference:
    measured = folder / "measured.json"
    same_run.check(_process(folder / "run", data_dir, None, measured) == 0, "the run itself fails")
    (folder / "run").rename(folder / "reference")
    return Reference(folder / "reference", json.loads(measured.read_text()))


def _ended(
    folder: pathlib.Path,
    data_dir: str,
    reference: Reference,
    generator: random.Random,
    planned: collections.deque[str],
) -> Iterator[Kill]:
    """Starts a run again and again until it ends; takes its kills from `planned` and yields them.

    A process that ends before its moment is not killed, and the kind stays planned.
    """
    shutil.rmtree(folder / "run", ignore_errors=True)
    while True:
        finished = (folder / "run" / "cell" / "result.json").exists()
        kill = None if finished or not planned else Kill(planned[0], generator.random())
        code = _process(folder / "run", data_dir, kill and _scaled(kill, reference))
        if code == 0:
            return
        if kill is None or code != -signal.SIGKILL:
            printed = (folder / "log.txt").read_text()
            raise same_run.DifferenceError(f"exit code {code}: {printed[-2000:]}")
        planned.popleft()
        yield kill


def _scaled(kill: Kill, reference: Reference) -> Kill:
    return dataclasses.replace(kill, when=kill.when * reference.whole.get(kill.kind, 1))


def _place(folder: pathlib.Path) -> str:
    """The step of the run in which the last process died, by what it had printed."""
    steps = re.findall(r"^== (.*)", (folder / "log.txt").read_text(), re.MULTILINE)
    return steps[-1] if steps else "the start"


def _process(
    run: pathlib.Path, data_dir: str, kill: Kill | None, measured: pathlib.Path | None = None
) -> int:
    """Exit code of a process that goes on with a run."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, before TensorFlow is used: a process then starts in no time.
    context.set_forkserver_preload(["experiments.pipeline"])
    process = context.Process(target=go_on, args=(run, data_dir, kill, measured))
    process.start()
    process.join(kill.when if kill and kill.kind == "time" else None)
    process.kill()  # without effect on one that has ended
    process.join()
    return process.exitcode or 0


def go_on(
    run: pathlib.Path, data_dir: str, kill: Kill | None, measured: pathlib.Path | None
) -> None:
    """Goes on with a run, in a process of its own that `kill` ends."""
    started = time.perf_counter()
    log = os.open(run.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    models.BUILDERS["smallest"] = network
    operations = _count_operations(run, kill)
    if kill:
        _prepare(kill, run)
    result = pipeline.run(dataclasses.replace(config(data_dir), workdir=str(run / "cell")))
    row = {"seed": 0, "metrics": result["metrics"]}
    ResultsFile(run / "rows.jsonl", lambda row: str(row["seed"])).add(row)
    if measured:
        found = {"time": time.perf_counter() - started, "file": operations()}
        history = result["history"]
        found["checkpoint"] = sum(len(history[name]["loss"]) for name in ("float", "student"))
        found["export"] = result["seconds"]["export"]
        measured.write_text(json.dumps(found))


def _prepare(kill: Kill, run: pathlib.Path) -> None:
    """Sets up a kill that comes from inside the process."""
    if kill.kind == "checkpoint":
        threading.Thread(target=_watch_checkpoints, args=(run, int(kill.when)), daemon=True).start()
    if kill.kind == "export":
        tflite_export.export = _killed_within(tflite_export.export, kill.when)
    if kill.kind == "line":
        os.fsync = _cut_off


def _killed_within(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The function, in a process that dies so many seconds after the call unless it has ended."""

    def call(*arguments: Any, **named: Any) -> Any:
        timer = threading.Timer(seconds, _die)
        timer.start()
        try:
            return function(*arguments, **named)
        finally:
            timer.cancel()

    return call


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
    """Dies when a checkpoint is being written, after `number` others of this process.

    What an earlier process left half written is older than this one.
    """
    began, seen = time.time(), set[str]()
    while True:
        for temporary in run.glob("**/checkpoints/*/epoch-*_temp"):
            with contextlib.suppress(FileNotFoundError):
                if temporary.stat().st_mtime >= began:
                    seen.add(str(temporary))
            if len(seen) > number:
                _die()
        time.sleep(LOOK_SECONDS)


def _cut_off(handle: int) -> None:
    """In place of `os.fsync`: as if the power went when half a line was on the disk."""
    size = os.fstat(handle).st_size
    os.ftruncate(handle, size - size // 3)
    _die()


def main(arguments: Sequence[str]) -> None:
    """Kills."""
    if len(arguments) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(arguments[1:])}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_kills(flags.FLAGS.kills, flags.FLAGS.seed, pathlib.Path(folder))
        except same_run.DifferenceError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 50, "How many processes to kill.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the moments.")
    programs.run(main)
