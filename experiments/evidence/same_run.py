"""Whether two folders hold the same run, bit for bit."""

from collections.abc import Iterator
import contextlib
import io
import json
import pathlib
from typing import Any
import zipfile

import h5py
import numpy as np


class DifferenceError(RuntimeError):
    """A run did not end as another one."""


def compare(run: pathlib.Path, reference: pathlib.Path) -> None:
    """Raises DifferenceError if a run is not the reference, bit for bit, or has other files."""
    left, right = (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (run, reference)
    )
    check(left == right, f"files: {left}, and not {right}")
    for name in left:
        one, other = (_content(folder / name) for folder in (run, reference))
        check(_equal(one, other), f"{name} is another one: {_differing(one, other)}")


def check(condition: bool, message: str) -> None:
    """Raises DifferenceError with the message unless the condition holds."""
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
    if path.suffix == ".jsonl":
        return list(_whole_rows(path))
    return path.read_bytes()


def _whole_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """All rows but half ones, which killed writers leave; a second line of a key is one more."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


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
