"""A hundred faces that come inside scikit-image's wheel: 25x25 pixels, grey, from the data set
*Labeled Faces in the Wild* (G. B. Huang et al., 2007).
"""

import io
import pathlib

import numpy as np
from PIL import Image

from experiments import wheels
from experiments.datasets.photographs import SCIKIT_IMAGE

# The file holds 100 faces, and then 100 pieces of background.
FACES = 100


def faces(folder: pathlib.Path, count: int, size: int, seed: int, first: int = 0) -> np.ndarray:
    """Faces, enlarged to `size`, mirrored and cut anew for each seed; uint8 `[count, size, size,
    1]`.

    Args:
      folder: Where wheels are kept.
      count: How many; the faces repeat after a hundred.
      size: Side of the images.
      seed: Of the cuts.
      first: First image of the file; `FACES` for pieces of background instead of faces.

    Raises:
      wheels.WheelError: If scikit-image's wheel cannot be fetched.
    """
    wheel = wheels.fetch(SCIKIT_IMAGE, folder)
    found = np.load(io.BytesIO(wheels.read(wheel, "skimage/data/lfw_subset.npy")))
    generator = np.random.default_rng(seed)
    images = np.empty((count, size, size, 1), np.uint8)
    for index in range(count):
        face = Image.fromarray(np.uint8(np.round(found[first + index % FACES] * 255)))
        left, top = generator.uniform(0, 4, 2)  # up to four of 25 pixels from either side
        right, bottom = 25 - generator.uniform(0, 4, 2)
        box = (left, top, right, bottom)
        pixels = np.asarray(face.resize((size, size), Image.Resampling.BICUBIC, box))
        images[index, ..., 0] = pixels[:, ::-1] if generator.random() < 0.5 else pixels
    return images
