"""Runtimes that live in another process: arrays travel through files. Needs no TensorFlow."""

from collections.abc import Callable
import pathlib
import tempfile

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.runtimes import litert


def exchange(codes: np.ndarray, run: Callable[[str, str], object]) -> dict[str, np.ndarray]:
    """Calls `run(path of codes, path of outputs)` and returns the arrays it left, by tensor name.

    Args:
      codes: Input batch in the file's type, saved as `.npy`.
      run: Starts the process, which writes an `.npz` file.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(pathlib.Path(folder) / name) for name in ("codes.npy", "outputs.npz")]
        np.save(paths[0], codes)
        run(*paths)
        with np.load(paths[1]) as found:
            return {name: found[name] for name in found.files}


def to_input(batch: np.ndarray, records: deployed_lib.DeployedModel) -> np.ndarray:
    """Float images in the type of a file's one input; a batch in that type goes in as it is.

    Raises:
      ValueError: If the file has several inputs, or the batch does not fit.
    """
    if len(records.inputs) != 1:
        raise ValueError(
            f"Only models with one input can be run. Received: {len(records.inputs)} inputs."
        )
    tensor, batch = records.tensors[records.inputs[0]], np.asarray(batch)
    if batch.shape[1:] != tuple(tensor.shape[1:]) or not batch.size:
        raise ValueError(
            f"images must have shape {(None, *tensor.shape[1:])}. Received: {batch.shape}."
        )
    if tensor.scale is None or batch.dtype == np.dtype(tensor.dtype):
        return batch.astype(tensor.dtype)
    return litert.quantize(batch, float(tensor.one_scale), tensor.one_zero_point, tensor.dtype)
