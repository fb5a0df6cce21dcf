"""The folder of one run: whose it is, what a killed process left there, and if it is finished.

A run writes `checkpoints/run.json` first, which has configuration, commit and versions, and last
`result.json`, which has the same and the figures. So a folder without both is nobody's, one with
the first is a run's that was killed, and one with the second is a run's that is finished.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any
import warnings

from experiments import records
from experiments.config import Config

# What a run writes, in this order.
PRODUCTS = (
    "float.keras",
    "model.tflite",
    "student.keras",
    "report.json",
    "report.html",
    "result.json",
)
# Files that temporary ones may stand beside: these, and those of a sweep's teacher.
_WRITTEN_WHOLE = (*PRODUCTS, "depends_on.json")
_CHECKPOINTS = "checkpoints"
# Where files are; of the teacher, its sum counts.
_PLACES = ("workdir", "data_dir", "fashion_mnist_dir", "teacher")


class OtherRunError(RuntimeError):
    """The folder holds a run of another configuration."""


class RunFolder:
    """A folder that this process alone writes to; made by `opened`.

    Attributes:
      path: The folder.
      result: What `result.json` holds if the run is finished, or None.
    """

    def __init__(self, path: pathlib.Path, config: Config):
        self.path, self._config = path, config
        self.result: dict[str, Any] | None = _read(path / "result.json")

    def checkpoints(self, stage: str) -> pathlib.Path:
        """The folder for the checkpoints of a stage of the run, which is begun by asking for it."""
        records.write_json(self.path / _CHECKPOINTS / "run.json", about(self._config))
        return self.path / _CHECKPOINTS / stage

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, and removes what only an unfinished run needs."""
        records.write_json(self.path / "result.json", result)
        remove_leftovers(self.path)


@contextlib.contextmanager
def opened(config: Config, *, resume: bool) -> Iterator[RunFolder]:
    """Opens the folder `config.workdir` for a run, which goes on if it was begun there.

    Args:
      config: The run.
      resume: Whether to go on; if not, what a run left in the folder is removed first.

    Yields:
      The folder, without strays of killed writes, and without any file of an earlier run but the
        one that goes on.

    Raises:
      OtherRunError: If the folder holds a run of another configuration.
      OSError: If it cannot be written to, or if another process is at a run in it.
    """
    workdir = records.prepare_workdir(config.workdir)
    with _alone_in(workdir):
        remove_strays(workdir)
        found = _read(workdir / "result.json") or _begun(workdir)
        if found and resume:
            _check_same(found, config)
        else:
            _remove_results(workdir)
        folder = RunFolder(workdir, config)
        if folder.result is not None:
            remove_leftovers(workdir)
        yield folder


def about(config: Config) -> dict[str, Any]:
    """What identifies a run, and what it was computed with."""
    return {
        "config": dataclasses.asdict(config),
        "commit": records.commit(),
        "versions": records.versions(),
        "teacher_sha256": None if config.teacher is None else _digest(config.teacher),
    }


def remove_strays(folder: pathlib.Path) -> None:
    """Removes the temporary files of writes that were killed; nobody else may be writing there."""
    for name in (*_WRITTEN_WHOLE, f"{_CHECKPOINTS}/run.json"):
        target = pathlib.Path(name)
        for stray in (folder / target.parent).glob(f".{target.stem}.*{target.suffix}"):
            stray.unlink()


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what a run needs only until it is finished: strays and checkpoints."""
    remove_strays(folder)
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


def _remove_results(workdir: pathlib.Path) -> None:
    """Removes what an earlier run left, so that no file of it stands beside one of the new run.

    `float.keras` stays until the new one takes its place: it may be the teacher of this run.
    """
    remove_leftovers(workdir)
    for name in PRODUCTS[1:]:
        (workdir / name).unlink(missing_ok=True)


def _check_same(found: Mapping[str, Any], config: Config) -> None:
    """Raises OtherRunError for another configuration, and warns of other code."""
    here = json.loads(json.dumps(about(config)))
    there = {**_defaults(), **found["config"]}
    differing = [
        f"{name}={there[name]!r} there, {value!r} here"
        for name, value in here["config"].items()
        if name not in _PLACES and value != there[name]
    ]
    # A record from before there were sums has the path alone.
    if found.get("teacher_sha256", here["teacher_sha256"]) != here["teacher_sha256"]:
        differing.append(f"another teacher than {there['teacher']!r} there, or changed since")
    if differing:
        raise OtherRunError(
            f"workdir {config.workdir!r} holds a run of another configuration:"
            f" {'; '.join(differing)}. Choose"
            " another workdir, or remove what is there (experiments.train --noresume)."
        )
    code = {"commit": here["commit"], **here["versions"]}
    before = {"commit": found.get("commit"), **found.get("versions", {})}
    changed = [f"{n} was {before.get(n)}, is {code[n]}" for n in code if code[n] != before.get(n)]
    if changed:
        warnings.warn(
            f"The run in {config.workdir!r} was begun with other code: {'; '.join(changed)}."
            " --noresume begins it again.",
            stacklevel=4,
        )


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _defaults() -> dict[str, Any]:
    """Of fields that a configuration has not that was written before they existed."""
    return json.loads(json.dumps(dataclasses.asdict(Config())))


def _begun(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The run that has a checkpoint in a folder: one without has nothing to go on with."""
    checkpoints = workdir / _CHECKPOINTS
    return _read(checkpoints / "run.json") if list(checkpoints.glob("*/*.index")) else None


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """A whole JSON object, or None."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("config"), dict) else None


@contextlib.contextmanager
def _alone_in(workdir: pathlib.Path) -> Iterator[None]:
    """Locks the folder itself, which leaves no file behind and ends with this process."""
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another process is at a run in this folder"
            raise OSError(errno.EBUSY, message, str(workdir)) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
