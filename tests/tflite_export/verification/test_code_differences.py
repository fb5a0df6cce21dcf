"""Differences are counted code by code, and images come in checked batches."""

import numpy as np
import pytest

from tflite_export import deployed
from tflite_export.verification import code_differences

TENSOR = deployed.Tensor("t", (1, 4), "int8", np.float32(0.5), zero_point=-1)
KINDS = pytest.mark.parametrize(
    "kind", [code_differences.Difference, code_differences.ValueDifference]
)


def test_images_are_streamed():
    class Endless:
        """Counts what was taken; an eager reader would never return."""

        taken = 0

        def as_numpy_iterator(self):
            while True:
                self.taken += 1
                yield np.zeros((8, 8, 8, 2), np.float32)

    endless = Endless()
    stream = code_differences.batches(endless, {"image": (8, 8, 2)}, 4)
    for _ in range(6):
        assert next(stream).inputs[0].shape == (4, 8, 8, 2)
    assert endless.taken == 3


def test_difference_counts_golden_codes():
    difference = code_differences.Difference(TENSOR, "a", "b")
    difference.add(np.array([[0, 1, 2, 127]]), np.array([[0, 1, 3, -128]]))
    difference.add(np.array([[5, 1, 2, 1]]), np.array([[5, 1, 2, 1]]))
    found = difference.result("ADD")
    assert found.histogram == ((-1, 1), (0, 6), (255, 1))
    assert (found.codes, found.differing, found.max_lsb, found.share) == (8, 2, 255, 0.25)
    # signal: squares of right + 1, noise: 1 + 255^2
    signal = 1 + 4 + 16 + 127**2 + 36 + 4 + 9 + 4
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / (1 + 255**2)))
    # [0, 1, 2, 127] and [0, 1, 3, -128] have different best classes, the second pair the same.
    assert found.top1 == 0.5
    with pytest.raises(ValueError, match="has shape"):
        difference.add(np.zeros((1, 4)), np.zeros((1, 3)))


@KINDS
def test_of_no_codes_none_differs(kind):
    found = kind(TENSOR, "a", "b").result()
    assert (found.codes, found.differing, found.share, found.max_lsb) == (0, 0, 0.0, 0)
    assert found.sqnr_db is None and found.top1 is None


@KINDS
@pytest.mark.parametrize(
    ("shape", "top1"), [((4, 3), 0.75), ((4,), None), ((4, 1), None), ((4, 1, 3), None)]
)
def test_only_scores_of_classes_have_a_best_class(kind, shape, top1):
    """A number for each image has none, nor has a map of scores. One image of four changes."""
    left = np.zeros(shape, np.int8)
    right = left.copy()
    right.reshape(-1)[-1] = 5
    difference = kind(TENSOR, "a", "b")
    difference.add(left, right)
    found = difference.result()
    assert (found.codes, found.differing, found.top1) == (left.size, 1, top1)


@pytest.mark.parametrize(("parts", "taken"), [(1, False), (2, True), (3, True), (4, False)])
def test_images_may_come_with_labels_and_these_with_sample_weights(parts, taken):
    images = tuple(np.zeros(shape, np.float32) for shape in ((6, 2), (6,), (6,), (6,))[:parts])
    stream = code_differences.batches(images, {"image": (2,)}, 4)
    if taken:
        assert [(len(batch), batch.labels.shape) for batch in stream] == [(4, (4,)), (2, (2,))]
    else:
        with pytest.raises(
            ValueError, match=rf"a pair \(images, labels\). Received: {parts} parts"
        ):
            next(stream)
