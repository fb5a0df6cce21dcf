"""A file of results, one JSON object a line, that several processes can add to at the same time.

Every row has a key. A key is written once, whoever comes first, and a process can claim a key while
it computes the row, so that two sweeps over one grid share the work. Claims are locks of the
operating system on bytes of a hidden file beside the results: they end with the process that holds
them, however it ends, and leave nothing behind.
"""

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any, BinaryIO
import warnings
import zlib

Row = dict[str, Any]

# The byte that is locked while a row is added; keys have the bytes below it.
_WRITING = 2**32


class ResultsFile:
    """Rows of JSON, each under a key of its own.

    Attributes:
      path: The file.
      key: What identifies a row.

    Example:
      >>> results = ResultsFile("runs.jsonl", lambda row: str(row["seed"]))
      >>> with results.claim("0") as mine:
      ...     if mine:
      ...         results.add({"seed": 0, "accuracy": 0.9})
    """

    def __init__(self, path: str | os.PathLike[str], key: Callable[[Row], str]):
        """Opens nothing yet: a file that does not exist has no rows.

        Args:
          path: The file; its folder is made when the first row is added.
          key: What identifies a row.
        """
        self.path = pathlib.Path(path)
        self.key = key
        self._lock_file: BinaryIO | None = None

    def rows(self) -> list[Row]:
        """All whole rows, in the order of the file.

        A line that was cut off, because its writer was killed, is skipped with a warning that names
        it. So is a second line with a key that an earlier line has.
        """
        found: dict[str, Row] = {}
        text = self.path.read_text("utf-8", errors="replace") if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            row = _parsed(line)
            if row is None:
                self._warn(number, "is no whole row; it is skipped, and its run is missing")
            elif found.setdefault(self.key(row), row) is not row:
                self._warn(number, "repeats the key of an earlier line and is skipped")
        return list(found.values())

    def keys(self) -> set[str]:
        """The keys of all rows."""
        return {self.key(row) for row in self.rows()}

    def add(self, row: Row) -> bool:
        """Appends a row, whole or not at all, unless its key is there already.

        Returns:
          Whether the row was added.
        """
        with self._locked(_WRITING, wait=True):
            if self.key(row) in self.keys():
                return False
            with self.path.open("ab+") as file:
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                file.write(line if _ends_whole(file) else b"\n" + line)
                file.flush()
                os.fsync(file.fileno())
        return True

    @contextlib.contextmanager
    def claim(self, key: str, *, wait: bool = False) -> Iterator[bool]:
        """Within the context no other process has the claim of this key.

        Args:
          key: A row's key, or any other text that processes agree upon.
          wait: Whether to wait for a process that has the claim.

        Yields:
          Whether the claim is ours; without `wait` another process may have it.
        """
        with self._locked(zlib.crc32(key.encode()), wait) as locked:
            yield locked

    @contextlib.contextmanager
    def _locked(self, place: int, wait: bool) -> Iterator[bool]:
        """Locks one byte of the hidden file, which the system frees when this process ends."""
        if self._lock_file is None:
            # Kept open: closing any handle of it would free all locks of this process.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = self.path.with_name(f".{self.path.name}.lock").open("ab+")
        flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._lock_file, flags, 1, place)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, place)

    def _warn(self, number: int, what: str) -> None:
        warnings.warn(f"{self.path}, line {number} {what}.", stacklevel=3)


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _ends_whole(file: BinaryIO) -> bool:
    """Whether a file is empty or ends with a line break."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return True
    file.seek(size - 1)
    return file.read(1) == b"\n"
