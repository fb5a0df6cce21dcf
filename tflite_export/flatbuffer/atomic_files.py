"""Files that are whole or not there. Needs no TensorFlow."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], what: str) -> Iterator[pathlib.Path]:
    """Gives the path of a temporary file beside `path`.

    It takes the place of `path` when the block ends without an error.

    A symbolic link stays, and what it points to is written. A device or a pipe, such as
    `/dev/stdout`, is no file that could be replaced: the block then writes into it directly.

    Args:
      path: Where the file goes; the temporary name keeps its suffix.
      what: Name of the file's kind, for errors.

    Raises:
      OSError: If the path cannot be written; what was there before is untouched.
    """
    target = pathlib.Path(os.path.realpath(path))
    try:
        if target.exists() and not (target.is_file() or target.is_dir()):
            yield target
            return
        with _temporary_beside(target) as temporary:
            yield temporary
            # A temporary file is readable by its owner only; this one is a file like others.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, target)
    except OSError as error:
        if error.errno is None:  # of a library, without the system's reason
            raise
        raise type(error)(
            error.errno, f"Cannot write {what} ({error.strerror})", os.fspath(path)
        ) from error


def write_whole(data: bytes, path: str | os.PathLike[str], what: str) -> int:
    """Writes `data` to `path` whole or not at all, and returns the number of bytes.

    It does so as `whole_file`.

    Raises:
      OSError: If the path cannot be written; what was there before is untouched.
    """
    with whole_file(path, what) as file, open(file, "wb") as stream:
        stream.write(data)
    return len(data)


@contextlib.contextmanager
def _temporary_beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new file in the folder of `target`, which is gone afterwards unless it was moved."""
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
    )
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
    finally:  # also when somebody presses Ctrl-C
        temporary.unlink(missing_ok=True)
