"""Who does the runs of a study: processes of this machine, or a Ray cluster.

Processes share the file of the rows and take runs from each other by its claims. On a Ray cluster
only the driver has that file: workers need no file system in common with it, nor with each other.
Each gets the float teacher of its run as bytes, so that all runs of a seed have the same teacher
wherever they are, and returns the row and the trained student.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import tqdm

from experiments import grid_runs, records, study
from experiments.config import Config
from experiments.results_file import ResultsFile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What a worker of a cluster imports.
_PACKAGES = ("experiments", "tf_fpq", "tflite_export")

# Seconds between two looks at runs that other processes are at.
_POLL_SECONDS = 5.0


class RayMissingError(ImportError):
    """Ray is not installed."""


def in_processes(
    found: study.Study, workdir: pathlib.Path, workers: int, minutes: float | None = None
) -> bool:
    """Runs what is missing in this process and in `workers - 1` others with the same command line.

    On Linux each of several processes has a share of the cores for itself. TensorFlow makes as many
    threads as it sees cores, and two processes that both make two are half as fast as two that make
    one each.

    Args:
      found: The study.
      workdir: Folder of teachers and students.
      workers: Number of processes.
      minutes: No run is begun after so many minutes; None for no end.

    Returns:
      Whether all processes ended well.
    """
    shares = _shares_of_cores(workers)
    others = []
    for share in shares[1:]:
        with _on_cores(share):
            others.append(_other_worker())
    try:
        with _on_cores(shares[0]):
            run_missing(found, workdir, minutes)
    finally:
        codes = [process.wait() for process in others]
    return not any(codes)


def _shares_of_cores(workers: int) -> list[set[int]]:
    """The cores of each worker; none where there are too few, or the system cannot tell."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < workers:
        return [set() for _ in range(workers)]
    return [set(cores[number::workers]) for number in range(workers)]


@contextlib.contextmanager
def _on_cores(share: set[int]) -> Iterator[None]:
    """Keeps this thread, and threads and processes that it begins, on cores; on all if none."""
    if not share:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _other_worker() -> subprocess.Popen:
    """The same command as one worker, whose progress our own bar shows."""
    command = [sys.executable, "-m", "experiments.sweep", *sys.argv[1:], "--workers=1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_missing(found: study.Study, workdir: pathlib.Path, minutes: float | None = None) -> None:
    """Runs what is in no row yet and no other process is at, until all rows are there.

    Args:
      found: The study. Its runs are asked for again after each one, as some follow from others.
      workdir: Folder of teachers and students.
      minutes: No run is begun after so many minutes; None for no end.
    """
    results, in_time, progress = found.open_results(), _clock(minutes), _Progress()
    with progress:
        while in_time():
            missing = progress.show(found, results.rows())
            if not missing:
                return
            if not run_one(missing, results, found.regime, workdir):
                time.sleep(_POLL_SECONDS)


def run_one(
    missing: Sequence[Config], results: ResultsFile, regime: str, workdir: pathlib.Path
) -> bool:
    """Runs the first that no other process is at; returns whether there was one."""
    for config in missing:
        name = study.key(study.plain(config))
        with results.claim(name) as mine:
            if mine and name not in results.keys():
                placed = grid_runs.placed(config, workdir)
                results.add(grid_runs.run(placed, results, regime))
                return True
    return False


def on_ray(
    found: study.Study,
    workdir: pathlib.Path,
    workers: int,
    *,
    config: str | None = None,
    address: str | None = None,
    gpus: float = 0.0,
    minutes: float | None = None,
) -> None:
    """Runs what is missing on a Ray cluster; this process alone reads and writes the rows.

    Args:
      found: The study.
      workdir: Folder of teachers and students, here and on every worker.
      workers: Runs at the same time; each asks for one CPU.
      config: The file that the study comes from. Workers execute it too, as it may bring networks.
      address: Of the cluster, or "auto" for the one that this machine is part of; None starts one
        on this machine, with `workers` CPUs.
      gpus: GPUs that a run asks for; 0.5 lets two runs share one.
      minutes: No run is begun after so many minutes; None for no end.

    Raises:
      RayMissingError: If Ray is not installed.
    """
    ray = _import_ray()
    # Threads and determinism of a worker are those of this process.
    variables = {name: value for name, value in os.environ.items() if name.startswith("TF_")}
    ray.init(
        address=address,
        num_cpus=workers if address is None else None,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "py_modules": [str(ROOT / name) for name in _PACKAGES],
            "env_vars": variables,
        },
    )
    try:
        source = pathlib.Path(config).read_text() if config else None
        _Driver(ray, found, workdir.absolute(), source, gpus).drain(workers, _clock(minutes))
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RayMissingError(
            "--launcher=ray needs Ray. Install the extra: pip install 'tf_fpq[ray]', or leave"
            f" --launcher=processes. ({error})"
        ) from error
    return ray


@dataclasses.dataclass(frozen=True)
class _Task:
    """A run that a worker is at, and a reference to its teacher."""

    config: Config
    teacher: Any


class _Driver:
    """Hands out runs and takes in rows."""

    def __init__(
        self, ray: Any, found: study.Study, workdir: pathlib.Path, source: str | None, gpus: float
    ):
        self._ray, self._found, self._workdir, self._source = ray, found, workdir, source
        self._results, self._commit = found.open_results(), records.commit()
        remote = ray.remote(num_cpus=1, num_gpus=gpus)
        self._train, self._run = remote(_train_teacher), remote(_run)
        self._tasks: dict[Any, _Task] = {}
        self._claimed: set[str] = set()
        self._teachers: dict[pathlib.Path, Any] = {}

    def drain(self, workers: int, in_time: Callable[[], bool]) -> None:
        """Until all rows are there, or the time is over and the last run has ended."""
        with _Progress() as progress, contextlib.ExitStack() as claims:
            while True:
                missing = progress.show(self._found, self._results.rows())
                if in_time():
                    self._hand_out(missing, workers, claims)
                if self._tasks:
                    (done,), _ = self._ray.wait(list(self._tasks))
                    self._take_in(done)
                elif not missing or not in_time():
                    return
                else:
                    time.sleep(_POLL_SECONDS)

    def _hand_out(
        self, missing: Sequence[Config], workers: int, claims: contextlib.ExitStack
    ) -> None:
        """Gives the first runs that nobody is at to workers that are free.

        Claims are held until this process has done all runs: a row counts before its claim does.
        """
        for config in missing:
            name = study.key(study.plain(config))
            if len(self._tasks) == workers:
                return
            if name in self._claimed or not claims.enter_context(self._results.claim(name)):
                continue
            self._claimed.add(name)
            if name in self._results.keys():
                continue
            placed = grid_runs.placed(config, self._workdir)
            teacher = self._teacher(placed)
            done = self._run.remote(self._source, placed, teacher, self._found.regime)
            self._tasks[done] = _Task(placed, teacher)

    def _teacher(self, config: Config) -> Any:
        """A reference to the float teacher's bytes: of the file that is here, or of a task."""
        path = grid_runs.teacher_path(config, self._workdir)
        if path not in self._teachers:
            self._teachers[path] = (
                self._ray.put(path.read_bytes())
                if path.exists()
                else self._train.remote(self._source, config)
            )
        return self._teachers[path]

    def _take_in(self, done: Any) -> None:
        """Writes what a run left: its row, its student, and its teacher if that is new here."""
        task = self._tasks.pop(done)
        try:
            row, student = self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        _write_absent(
            grid_runs.teacher_path(task.config, self._workdir),
            lambda: self._ray.get(task.teacher),
        )
        if student is not None:
            path = pathlib.Path(task.config.workdir) / "student.keras"
            _write_absent(path, lambda: student)
        self._results.add({**row, "commit": self._commit})


def _train_teacher(source: str | None, config: Config) -> bytes:
    """What a worker does first for a seed: the bytes of its float teacher."""
    _know(source)
    return pathlib.Path(grid_runs.teacher(config, _claims(config))).read_bytes()


def _run(
    source: str | None, config: Config, teacher: bytes, regime: str
) -> tuple[dict[str, Any], bytes | None]:
    """What a worker does for a run: its row, and the bytes of its student if it has one."""
    _know(source)
    path = grid_runs.teacher_path(config, pathlib.Path(config.workdir).parent)
    _write_absent(path, lambda: teacher)
    row = grid_runs.run(config, _claims(config), regime)
    student = pathlib.Path(config.workdir) / "student.keras"
    return row, student.read_bytes() if student.exists() else None


@functools.lru_cache(maxsize=1)
def _know(source: str | None) -> None:
    """Executes the study's file in a worker, once: it may bring networks of its own."""
    if source is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "config.py"
            path.write_text(source)
            study.load(str(path))


def _claims(config: Config) -> ResultsFile:
    """No rows, but the claims by which the workers of one machine share its folder of runs."""
    return study.results_file(str(pathlib.Path(config.workdir).parent / "on_ray.jsonl"))


def _write_absent(path: pathlib.Path, read: Callable[[], bytes]) -> None:
    """Writes a file, whole, that is not there; on a shared file system it is."""
    if not path.exists():
        records.prepare_workdir(str(path.parent))
        content = read()
        records.write_whole(path, lambda name: pathlib.Path(name).write_bytes(content))


def _clock(minutes: float | None) -> Callable[[], bool]:
    """Whether there is time to begin a run."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return lambda: end is None or time.monotonic() < end


class _Progress:
    """A bar of all processes' progress, whose ETA follows from it."""

    def __enter__(self) -> "_Progress":
        self._bar = tqdm.tqdm(unit="run", file=sys.stderr, smoothing=0)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, found: study.Study, rows: Sequence[study.Row]) -> list[Config]:
        """Shows how many of the known runs are done; returns those that are not."""
        known, missing = found.progress(rows)
        if self._bar.total is None:
            self._bar.initial = self._bar.n = known - len(missing)
        self._bar.total = known
        self._bar.update(known - len(missing) - self._bar.n)
        self._bar.refresh()
        return missing
