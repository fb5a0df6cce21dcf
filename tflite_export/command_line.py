"""What the programs share: loading models and images, one JSON line, exit codes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import io
import json
import logging
import os
import pathlib
import sys
import tempfile
from typing import Any

from absl import app
from absl import logging as absl_logging
import numpy as np

from tflite_export.errors import InterpreterError

_HELP = ("help", "helpshort", "helpfull", "helpxml", "?")
_NPY, _ZIP = b"\x93NUMPY", b"PK"

# Twin of `tf_fpq.conversion.loading.TRUST`, which would bring TensorFlow along.
TRUST = (
    "Run code that a model file holds, the functions of Lambda layers. It can do whatever you can,"
    " so give this only for files whose maker you trust."
)
# A condition is not met, e.g. the gate: for CI.
EXIT_FAILED = 1
# Bad arguments, or files that cannot be read or written.
EXIT_ERROR = 2
# As a shell shows a program that SIGPIPE ended.
EXIT_BROKEN_PIPE = 128 + 13


def run(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Wraps a program's main: expected errors become one line on stderr and exit code 2.

    What the terminal's encoding lacks is written as an escape. When the reader of a pipe goes, as
    `head` does, the program ends without a word, as if by SIGPIPE.
    """

    def guarded(arguments: list[str]) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = main(arguments[1:])
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Python flushes once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except (ValueError, TypeError, OSError, InterpreterError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR

    return guarded


@contextlib.contextmanager
def tensorflow_silenced() -> Iterator[None]:
    """Keeps off the terminal what TensorFlow logs while it is imported inside the block.

    These lines tell about CUDA and oneDNN, which no user of a program asked about. TensorFlow 2.21
    writes them straight to file descriptor 2, whatever `TF_CPP_MIN_LOG_LEVEL` is. If the import
    fails they are shown after all. Who sets `TF_CPP_MIN_LOG_LEVEL` gets everything.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.ERROR)
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(terminal, held_back.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def start(main: Callable[[list[str]], int]) -> None:
    """Runs a program by `absl.app.run`, with exit code 0 for `--help`, where absl has 1.

    Twin of `tf_fpq.programs.run`, which would bring TensorFlow along.
    """
    asked = any(argument.lstrip("-") in _HELP for argument in sys.argv[1:] if argument[:1] == "-")
    try:
        app.run(run(main))
    except SystemExit:
        if asked:
            sys.exit(0)
        raise


def print_json(data: Mapping[str, Any]) -> None:
    """One line of JSON on stdout, the only thing a program with `--json` writes there."""
    print(json.dumps(data, separators=(",", ":")))


def positional(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The positional arguments, if there is one for each name.

    Raises:
      ValueError: Otherwise.
    """
    if len(arguments) != len(names):
        wanted = " ".join(name.upper() for name in names)
        raise ValueError(
            f"Expected arguments: {wanted}. Received: {' '.join(arguments) or 'none'}. See --help."
        )
    return list(arguments)


def check_exists(*paths: str) -> None:
    """Says which file is missing, before anything that takes long.

    Raises:
      FileNotFoundError: If one of them is no file.
    """
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"No such file: {path!r}.")


def load_keras(path: str, *, trust: bool = False) -> Any:
    """A model of a file of Keras 2 or Keras 3; students load with their quantizers.

    Args:
      path: The file.
      trust: Whether to run code that the file holds; it can do whatever you can.

    Raises:
      ValueError: If the file is damaged or foreign, or holds code.
      OSError: If there is no such file.
    """
    check_exists(path)
    with tensorflow_silenced():
        import tf_fpq
    return tf_fpq.load_model(path, trust=trust)


def load_labels(path: str) -> list[str]:
    """The class names of a text file, one a line; empty lines at the end do not count.

    Raises:
      ValueError: If it is no text.
      OSError: If there is no such file.
    """
    try:
        return pathlib.Path(path).read_text("utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is no UTF-8 text: {error}") from error


def load_images(path: str) -> Any:
    """Images, or the pair (images, labels), of a NumPy file.

    Args:
      path: `x.npy` with images, or `x.npz` with `images` and, if you like, `labels`. For a model of
        several inputs, `x.npz` with an array under the name of each input instead of `images`.

    Raises:
      ValueError: If it is something else.
      OSError: If there is no such file.
    """
    arrays = _load_arrays(path)
    if isinstance(arrays, np.ndarray):
        if not arrays.ndim:
            raise ValueError(f"{path!r} must be an array of images. Received: one number.")
        return arrays
    labels = arrays.pop("labels", None)
    if not arrays:
        raise ValueError(
            f"{path!r} has no array 'images', nor any by the names of inputs. Received:"
            f" {'only labels' if labels is not None else 'no arrays'}."
        )
    images = arrays.get("images", arrays)
    return images if labels is None else (images, labels)


def _load_arrays(path: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an `.npy` file, or all arrays of an `.npz` file by name."""
    with open(path, "rb") as file:
        start = file.read(len(_NPY))
    if not start.startswith((_NPY, _ZIP)):
        raise ValueError(f"{path!r} is no NumPy file: its first bytes are {start!r}.")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r" if start == _NPY else None)
        return found if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        objects = "allow_pickle" in str(error) or "Python objects" in str(error)
        reason = "it holds Python objects." if objects else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path!r} is damaged or holds no numbers: {reason}") from error
