"""Fashion-MNIST from its four IDX files on disk, as a TFDS builder with a manual directory: nothing
is downloaded.
"""

from collections.abc import Iterator
import gzip
import pathlib
import struct
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

DEBIAN_DIR = pathlib.Path("/usr/share/datasets/fashion-mnist")

_PREFIXES = {"train": "train", "test": "t10k"}
_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def idx_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The four files that `folder` has to hold, images and labels of both splits."""
    return [
        folder / f"{prefix}-{kind}-ubyte.gz"
        for prefix in _PREFIXES.values()
        for kind in ("images-idx3", "labels-idx1")
    ]


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes: two zeros, type 8, number of axes, big-endian
    sizes, data.

    Raises:
      ValueError: If the file is not such a file, or is cut short.
    """
    with gzip.open(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes. Received: header={content[:4]!r}."
        )
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if data.size != np.prod(shape):
        raise ValueError(
            f"{path} holds {data.size} values where its header announces shape {shape}."
        )
    return data.reshape(shape)


class FashionMnistIdx(tfds.core.GeneratorBasedBuilder):
    """Images of 28x28 pixels in 10 classes of clothing; 60,000 to train and 10,000 to test, in the
    order of the files.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The manual directory holds the four files train-images-idx3-ubyte.gz,"
        " train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz;"
        f" Debian's package dataset-fashion-mnist puts them in {DEBIAN_DIR}."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fashion-MNIST, read from its IDX files.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=_LABELS),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv 1708.07747, 2017.",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Any]]]:
        folder = pathlib.Path(dl_manager.manual_dir)
        return {
            split: self._generate_examples(folder, prefix) for split, prefix in _PREFIXES.items()
        }

    def _generate_examples(
        self, folder: pathlib.Path, prefix: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image[..., np.newaxis], "label": int(label)}
