"""Files that are whole or not there. Needs no TensorFlow."""

import os
import pathlib
import tempfile


def write_whole(data: bytes, path: str | os.PathLike[str], what: str) -> int:
    """Writes `data` to `path` whole or not at all, by a temporary file beside it, and returns the
    number of bytes.

    Args:
      data: Contents.
      path: Where they go.
      what: Name of the file's kind, for errors.

    Raises:
      OSError: If the path cannot be written; what was there before is untouched.
    """
    target = pathlib.Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            temporary = pathlib.Path(file.name)
            file.write(data)
        # A temporary file is readable by its owner only; this one is a file like others.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        raise type(error)(
            error.errno, f"Cannot write {what} ({error.strerror})", str(target)
        ) from error
    finally:  # also when somebody presses Ctrl-C
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return len(data)
