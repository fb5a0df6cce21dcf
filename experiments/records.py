"""What an experiment leaves behind: files that are whole or absent, and what is needed to run it
again.
"""

from collections.abc import Callable, Mapping
from importlib import metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

from tflite_export.flatbuffer import atomic_files

_PACKAGES = (
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "tensorflow-datasets",
    "numpy",
)

_CHANGES = ("status", "--porcelain", "--", ".", ":!experiments/results")


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def prepare_workdir(path: str) -> pathlib.Path:
    """Creates a folder and checks that it can be written to, before anything is computed.

    Raises:
      OSError: If it cannot be created or written to.
    """
    workdir = pathlib.Path(path)
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(
            error.errno, f"workdir cannot be written to ({error.strerror}); choose another", path
        ) from error
    return workdir


def write_whole(path: pathlib.Path, write: Callable[[str], None]) -> None:
    """Lets `write` fill a temporary file beside `path` and moves it there when it is complete.

    Args:
      path: Where the file goes; the temporary name keeps its suffix.
      write: Called with the temporary name.
    """
    with atomic_files.whole_file(path, "the file") as temporary:
        write(str(temporary))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: pathlib.Path(temporary).write_text(text))


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all, and the folder that it is in."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False, allow_nan=True) + "\n")


def write_section(path: pathlib.Path, section: tuple[str, str], text: str) -> None:
    """Writes `text` between two marks of a Markdown file; a file without them gets them at its
    end.
    """
    before = path.read_text() if path.exists() else ""
    start, end = section
    if start in before and end in before.split(start)[1]:
        head, rest = before.split(start, 1)
        tail = rest.split(end, 1)[1]
    else:
        head, tail = before, "\n"
    write_text(path, f"{head}{start}\n\n{text}\n\n{end}{tail}")


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide about the figures, and the machine's
    architecture.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        found[package] = metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of this source tree, with "+changes" if files differ from it; None outside a git
    checkout. Results do not count: a sweep adds rows to them.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+changes" if _git(root, *_CHANGES) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
