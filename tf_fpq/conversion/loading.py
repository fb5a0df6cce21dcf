"""Model files of Keras 2 and Keras 3, as tf_keras models."""

import importlib
import json
import os
from typing import Any
import zipfile
import zlib

from tf_fpq import graph
from tf_fpq.conversion import keras3
from tf_fpq.keras_compat import keras

# Bytes that members of a `.keras` archive may unpack to. Keras writes about 100 bytes of metadata;
# the configurations of keras.applications have up to 2 MB.
_MEMBER_BYTES = {"metadata.json": 2**20, "config.json": 2**26}
# Of any other member, at least so many, and so many times its packed bytes.
_UNPACKED_BYTES, _MAX_RATIO = 2**26, 100


# What `trust` means, for the help of the programs.
TRUST = (
    "Run code that a model file holds: the functions of Lambda layers, and the graphs of a"
    " SavedModel. It can do whatever you can, so give this only for files whose maker you trust."
)


_LAMBDA = (
    "it has a Lambda layer, which holds code that cannot be read and that is not run unasked. Write"
    " it as Keras layers or operators, or as a layer class of your own, and save the model again."
)
_WAY_OUT = (
    "On the command line --trust loads it, if you trust whoever made it; in Python trust=True."
)


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> keras.Model:
    """Loads a model file that Keras 2 or Keras 3 wrote, as a tf_keras model.

        teacher = tf_fpq.load_model("float.keras")

    Which Keras wrote a `.keras` file stands in its `metadata.json`, for an HDF5 file in its
    attributes; other formats are left to tf_keras. Classes of one's own must be registered, for
    Keras 3 in both Keras.

    Nothing that a file holds is run, unless `trust` says so: a Lambda layer is a Python function,
    and a SavedModel folder is a program.

    Args:
      path: A file, or a SavedModel folder, which `trust` must allow.
      trust: Whether to run code that the file holds. It can do whatever you can.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: Keras 3 wrote the file and cannot be imported; the message says what to do.
      TypeError: As `from_keras3`.
      ValueError: The file cannot be read or holds code, or as `from_keras3`.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No model file. Received: path={os.fspath(path)!r}.")
    if not keras_version(path, trust=trust).startswith("3."):
        return _read(path, keras.models, trust)
    return keras3.from_keras3(_read(path, _import_keras3(path).saving, trust))


def _read(path: str | os.PathLike[str], module: Any, trust: bool) -> Any:
    try:
        with graph.deep_recursion():
            return module.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:
        raise ValueError(f"Cannot load {os.fspath(path)!r}: {_explanation(str(error))}") from error


def _explanation(message: str) -> str:
    """What Keras says, in a sentence, and what to do about it."""
    if "Lambda" in message:
        return _LAMBDA
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = next(
        (line for line in lines if "Could not locate class" in line),
        lines[0] if lines else "no reason given.",
    )
    said = said.removeprefix("Exception encountered:").split("Full object config:")[0].strip()
    return (
        f"Keras says: {said} If the model has classes of your own, the module that registers them"
        " must be imported first; on the command line, --imports=MODULE."
    )


def check_code(path: str | os.PathLike[str]) -> None:
    """Checks that loading a model file runs nothing that is stored in it.

    Keras itself sees to that for `.keras` files only.

    Raises:
      ValueError: If it is a SavedModel, or an HDF5 file with a Lambda layer.
    """
    if os.path.isdir(path):
        raise ValueError(
            f"Cannot load {os.fspath(path)!r}: it is a folder, and a SavedModel is a program that"
            " TensorFlow runs. Load it where it was made, and save it as .keras. " + _WAY_OUT
        )
    if _is_hdf5(path) and "Lambda" in _classes(path):
        raise ValueError(f"Cannot load {os.fspath(path)!r}: {_LAMBDA} {_WAY_OUT}")


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    import h5py

    # Also one that is an archive at the same time: Keras goes by the name.
    return os.path.isfile(path) and h5py.is_hdf5(path)


def _classes(path: str | os.PathLike[str]) -> set[str]:
    """Names of all classes in the configuration that an HDF5 file holds."""
    import h5py

    found: set[str] = set()

    def note(part: dict[str, Any]) -> dict[str, Any]:
        found.add(str(part.get("class_name")))
        return part

    try:
        with h5py.File(path) as file:
            json.loads(file.attrs.get("model_config", "{}"), object_hook=note)
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {error}") from error
    return found


def check_archive(path: str | os.PathLike[str]) -> None:
    """Checks the sizes that a `.keras` file claims before anything is unpacked, and then its sums.

    Keras stores the members of its archives as they are, or packs them a few times smaller. A
    member that claims to be far larger than its bytes would only fill the memory. Sums are checked
    here, as HDF5 reads weights in an order in which Python's archives do not check them.

    Raises:
      ValueError: If it is a damaged archive, or a member claims too much.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{os.fspath(path)!r} is a damaged archive: {error}") from error
    _check_sizes(path, members)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # A damaged header asks for a password, or for a way of packing that there is not.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {error}") from error
    if damaged:
        raise ValueError(f"{os.fspath(path)!r} is damaged: {damaged} is not what was written.")


def _check_sizes(path: str | os.PathLike[str], members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        limit = _MEMBER_BYTES.get(
            member.filename, _UNPACKED_BYTES + _MAX_RATIO * member.compress_size
        )
        if member.file_size > limit:
            raise ValueError(
                f"{os.fspath(path)!r} is damaged: {member.filename} claims {member.file_size:,}"
                f" bytes from {member.compress_size:,}; at most {limit:,} are read."
            )


def keras_version(path: str | os.PathLike[str], *, trust: bool = False) -> str:
    """Version of the Keras that wrote a model file, which is checked before anything is loaded.

    Args:
      path: A file, or a folder.
      trust: Whether to allow code in it.

    Raises:
      ValueError: If it is no model file, damaged, or holds code.
    """
    if not trust:
        check_code(path)
    check_archive(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" in archive.namelist():
                return _version_in(path, archive)
    elif os.path.isfile(path):
        if not _is_hdf5(path):
            raise ValueError(f"{os.fspath(path)!r} is no model file: neither .keras nor HDF5.")
        import h5py

        with h5py.File(path) as file:
            return str(file.attrs.get("keras_version", ""))
    return ""


def _version_in(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> str:
    what = f"{os.fspath(path)!r} is damaged: its metadata.json"
    try:
        found = json.loads(archive.read("metadata.json"))
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} is a {type(found).__name__}, not an object.")
    return str(found.get("keras_version", ""))


def _import_keras3(path: str | os.PathLike[str]) -> Any:
    reason = f"{os.fspath(path)!r} was written by Keras 3"
    try:
        module = importlib.import_module("keras")
    except Exception as error:
        raise ImportError(
            f"{reason}, and `import keras` fails: {error} Install it (`pip install 'keras>=3'`); if"
            " the backend is missing, set the environment variable KERAS_BACKEND=tensorflow before"
            " Python starts."
        ) from error
    if not module.__version__.startswith("3."):
        raise ImportError(
            f"{reason}, but `keras` is version {module.__version__}: `pip install 'keras>=3'`."
        )
    return module
