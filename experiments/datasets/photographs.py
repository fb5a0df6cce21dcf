"""Crops of photographs that come inside PyPI wheels: real images without labels, and without a
dataset to download. scikit-learn brings two of 427x640, scikit-image some more.
"""

import io
import pathlib

import numpy as np
from PIL import Image
from sklearn import datasets

from experiments import wheels

SCIKIT_IMAGE = "scikit-image==0.26.0"
# The colour photographs of everyday things among scikit-image's data, at least 300 pixels high.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
# Sides of the squares that are cut out, as shares of the photograph's shorter side.
SMALLEST_CROP = 0.4


def photographs(folder: pathlib.Path) -> list[np.ndarray]:
    """The photographs, uint8 `[height, width, 3]`.

    Args:
      folder: Where wheels are kept.

    Raises:
      wheels.WheelError: If scikit-image's wheel cannot be fetched.
    """
    wheel = wheels.fetch(SCIKIT_IMAGE, folder)
    files = [wheels.read(wheel, f"skimage/data/{name}") for name in PHOTOGRAPHS]
    opened = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    return [*datasets.load_sample_images().images, *opened]


def crops(images: list[np.ndarray], count: int, size: int, seed: int) -> np.ndarray:
    """Random square crops, mirrored half of the time, resized to `size`; uint8 `[count, size, size,
    3]`.

    Each photograph gives as many crops as the others, in turns. Different seeds give different
    crops; the photographs are the same.
    """
    generator = np.random.default_rng(seed)
    found = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        image = images[index % len(images)]
        height, width = image.shape[:2]
        side = round(min(height, width) * generator.uniform(SMALLEST_CROP, 1.0))
        top, left = (
            generator.integers(0, height - side + 1),
            generator.integers(0, width - side + 1),
        )
        crop = Image.fromarray(image[top : top + side, left : left + side])
        crop = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
        found[index] = crop[:, ::-1] if generator.random() < 0.5 else crop
    return found
