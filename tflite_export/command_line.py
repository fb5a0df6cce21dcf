"""What the programs share: loading models and images, one JSON line, exit codes."""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

from tflite_export.errors import InterpreterError

# A condition is not met, e.g. the gate: for CI.
EXIT_FAILED = 1
# Bad arguments, or files that cannot be read or written.
EXIT_ERROR = 2


def run(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Wraps a program's main: expected errors become one line on stderr and exit code 2."""

    def guarded(arguments: list[str]) -> int:
        try:
            return main(arguments[1:])
        except (ValueError, TypeError, OSError, InterpreterError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR

    return guarded


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


def load_keras(path: str) -> Any:
    """A model of a `.keras` file; students load with their quantizers.

    Raises:
      ValueError: If the file is damaged, foreign, or a Keras 3 model of its own layers.
      OSError: If there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such file: {path!r}.")
    import tf_fpq  # noqa: F401  registers the layers a student is made of
    from tf_fpq.keras_compat import keras

    try:
        return keras.models.load_model(path, compile=False)
    # A damaged archive fails in the zip reader, the JSON parser, HDF5 or a layer's constructor.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"Cannot load {path!r} as a Keras 2 model: {reason[0]}") from error


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
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r" if path.endswith(".npy") else None)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path!r} is no NumPy file: {error}") from error
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path!r} is damaged: {error}") from error
    if isinstance(found, np.ndarray):
        return found
    arrays = {name: found[name] for name in found.files if name != "labels"}
    if not arrays:
        raise ValueError(
            f"{path!r} has no array 'images', nor any by the names of inputs. Received:"
            f" {found.files}."
        )
    images = arrays.get("images", arrays)
    return (images, found["labels"]) if "labels" in found else images
