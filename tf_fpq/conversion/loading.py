"""Model files of Keras 2 and Keras 3, as tf_keras models."""

import importlib
import json
import os
from typing import Any
import zipfile

from tf_fpq import graph
from tf_fpq.conversion import keras3
from tf_fpq.keras_compat import keras

# Bytes that members of a `.keras` archive may unpack to. Keras writes about 100 bytes of metadata;
# the configurations of keras.applications have up to 2 MB.
_MEMBER_BYTES = {"metadata.json": 2**20, "config.json": 2**26}
# Of any other member, at least so many, and so many times its packed bytes.
_UNPACKED_BYTES, _MAX_RATIO = 2**26, 100


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a model file that Keras 2 or Keras 3 wrote, as a tf_keras model.

    Which Keras wrote a `.keras` file stands in its `metadata.json`, for an HDF5 file in its
    attributes; other formats are left to tf_keras. Classes of one's own must be registered, for
    Keras 3 in both Keras.

    Args:
      path: A file, or a SavedModel folder.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: Keras 3 wrote the file and cannot be imported; the message says what to do.
      TypeError: As `from_keras3`.
      ValueError: The file cannot be read, or as `from_keras3`.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No model file. Received: path={os.fspath(path)!r}.")
    if not _keras_version(path).startswith("3."):
        return _read(path, keras.models)
    return keras3.from_keras3(_read(path, _import_keras3(path).saving))


def _read(path: str | os.PathLike[str], module: Any) -> Any:
    try:
        with graph.deep_recursion():
            return module.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"Cannot load {os.fspath(path)!r}: {_explanation(str(error))}") from error


def _explanation(message: str) -> str:
    """What Keras says, in a sentence, and what to do about it."""
    if "Lambda" in message:
        return (
            "it has a Lambda layer, which holds code that cannot be read and that Keras does not"
            " run unasked. Write it as Keras layers or operators, or as a layer class of your own,"
            " and save the model again."
        )
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


def check_archive(path: str | os.PathLike[str]) -> None:
    """Checks the sizes that a `.keras` file claims before anything is unpacked.

    Keras stores the members of its archives as they are, or packs them a few times smaller. A
    member that claims to be far larger than its bytes would only fill the memory.

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
    for member in members:
        limit = _MEMBER_BYTES.get(
            member.filename, _UNPACKED_BYTES + _MAX_RATIO * member.compress_size
        )
        if member.file_size > limit:
            raise ValueError(
                f"{os.fspath(path)!r} is damaged: {member.filename} claims {member.file_size:,}"
                f" bytes from {member.compress_size:,}; at most {limit:,} are read."
            )


def _keras_version(path: str | os.PathLike[str]) -> str:
    check_archive(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" in archive.namelist():
                return _version_in(path, archive)
    elif os.path.isfile(path):
        import h5py

        if not h5py.is_hdf5(path):
            raise ValueError(f"{os.fspath(path)!r} is no model file: neither .keras nor HDF5.")
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
