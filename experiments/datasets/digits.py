"""The 1,797 handwritten digits that scikit-learn carries inside its package, as a TFDS builder:
nothing is downloaded.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn import datasets, model_selection
import tensorflow_datasets as tfds

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Images of 8x8 pixels in 10 classes; 1,437 to train and 360 to test, stratified by class,
    always the same split.

    The source counts the ink in blocks of 4x4 pixels, 0 to 16; the builder stores `round(255 *
    count / 16)` as uint8, so that an image has the usual range.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Optical recognition of handwritten digits, the copy that scikit-learn bundles."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=(
                "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
            ),
            citation=(
                "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine"
                " Learning Repository, 1998."
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # The images come with scikit-learn.
        labels = datasets.load_digits().target
        train, test = model_selection.train_test_split(
            np.arange(len(labels)),
            test_size=_TEST_FRACTION,
            stratify=labels,
            random_state=_SPLIT_SEED,
        )
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        digits = datasets.load_digits()
        for index in indices.tolist():
            image = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
            yield index, {"image": image[..., np.newaxis], "label": int(digits.target[index])}
