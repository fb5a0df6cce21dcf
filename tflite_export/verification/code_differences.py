"""Counting how codes differ, in LSB, batch by batch. Needs no TensorFlow.

Memory does not depend on the number of images.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.image_batches import has_classes
from tflite_export.verification import report_records as records

# Largest difference between two 8-bit codes.
_SPAN = 255
_Codes = Mapping[str, Any]


class Difference:
    """Counts `left - right` over the codes of one tensor."""

    def __init__(self, tensor: deployed_lib.Tensor, left: str, right: str):
        """Starts at zero.

        Args:
          tensor: Record of the tensor; its grid gives values to the codes.
          left: Name of what is compared.
          right: Name of what it is compared with; the signal of the SQNR is its.
        """
        self._tensor, self._left, self._right = tensor, left, right
        self._histogram = np.zeros(2 * _SPAN + 1, np.int64)
        self._signal = 0.0
        self._images = self._same_top1 = self._beyond = self._beyond_lsb = 0
        self._has_top1 = False

    def add(self, left: np.ndarray, right: np.ndarray, nearest: np.ndarray | None = None) -> None:
        """Adds a batch of codes (any numeric dtype, integer-valued).

        `nearest` is what `left` could be, within its slack, that is nearest to `right`.

        Raises:
          ValueError: If the shapes differ.
        """
        left, right = np.asarray(left), np.asarray(right)
        if left.shape != right.shape:
            raise ValueError(
                f"Tensor {self._tensor.name!r} has shape {left.shape} in {self._left} and"
                f" {right.shape} in {self._right}."
            )
        left, right = left.astype(np.int16), right.astype(np.int16)
        difference = (left - right).ravel()
        if nearest is not None:
            beyond = np.abs(nearest.astype(np.int16) - right)
            self._beyond += int(np.count_nonzero(beyond))
            self._beyond_lsb = int(beyond.max(initial=self._beyond_lsb))
        self._histogram += np.bincount(
            np.clip(difference, -_SPAN, _SPAN) + _SPAN, minlength=2 * _SPAN + 1
        )
        self._signal += float(np.square((right - self._tensor.zero_point).astype(np.float64)).sum())
        self._images += len(left)
        if has_classes(left.shape):
            self._has_top1 = True
            self._same_top1 += int((left.argmax(1) == right.argmax(1)).sum())

    def result(self, kind: str = "") -> records.Comparison:
        """The counts so far; `kind` is the operator that writes the tensor."""
        bins = tuple(
            (int(place) - _SPAN, int(self._histogram[place]))
            for place in np.flatnonzero(self._histogram)
        )
        return records.Comparison(
            tensor=self._tensor.name,
            kind=kind,
            left=self._left,
            right=self._right,
            codes=sum(count for _, count in bins),
            differing=sum(count for lsb, count in bins if lsb),
            max_lsb=max((abs(lsb) for lsb, _ in bins), default=0),
            histogram=bins,
            sqnr_db=decibels(self._signal, sum(count * lsb**2 for lsb, count in bins)),
            top1=self._same_top1 / self._images if self._has_top1 else None,
            beyond=self._beyond,
            beyond_lsb=self._beyond_lsb,
        )


class ValueDifference:
    """As `Difference`, for a tensor without an 8-bit grid: its values are compared, in float64."""

    def __init__(self, tensor: deployed_lib.Tensor, left: str, right: str):
        self._tensor, self._left, self._right = tensor, left, right
        self._count = self._differing = self._images = self._same_top1 = 0
        self._signal = self._noise = self._largest = 0.0
        self._has_top1 = False

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Adds a batch of values. A NaN differs from everything but a NaN."""
        left, right = np.asarray(left), np.asarray(right)
        differs = (left != right) & ((left == left) | (right == right))
        a, b = left.astype(np.float64), right.astype(np.float64)
        # Nothing is subtracted where both are the same: infinities have no difference.
        difference = np.subtract(a, b, out=np.zeros_like(a), where=differs)
        self._count += left.size
        self._differing += int(differs.sum())
        self._signal += float(np.square(b).sum())
        self._noise += float(np.square(difference).sum())
        self._largest = float(np.abs(difference).max(initial=self._largest))
        self._images += len(left)
        if has_classes(left.shape):
            self._has_top1 = True
            self._same_top1 += int((left.argmax(1) == right.argmax(1)).sum())

    def result(self, kind: str = "") -> records.Comparison:
        """The counts so far; `kind` is the operator that writes the tensor."""
        return records.Comparison(
            tensor=self._tensor.name,
            kind=kind,
            left=self._left,
            right=self._right,
            codes=self._count,
            differing=self._differing,
            max_lsb=0,
            histogram=(),
            sqnr_db=decibels(self._signal, self._noise),
            top1=self._same_top1 / self._images if self._has_top1 else None,
            max_abs=self._largest,
        )


def has_8_bit_grid(tensor: deployed_lib.Tensor) -> bool:
    """Whether a tensor's codes differ in LSB."""
    return tensor.dtype in ("int8", "uint8") and tensor.scale is not None


def decibels(signal: float, noise: float) -> float | None:
    """Signal to noise ratio `10 log10(signal / noise)`.

    None when there is no noise, or no signal. A worked number: noise of a hundredth of the signal's
    energy is 20 dB.
    """
    return 10.0 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None


class OutputTable:
    """Compares the outputs of several runtimes, every pair of them.

    Where labels are known it counts right answers too.
    """

    def __init__(self, outputs: Sequence[deployed_lib.Tensor], kinds: Mapping[str, str]):
        """Starts empty.

        Args:
          outputs: Records of the output tensors.
          kinds: Operator that writes a tensor, by tensor name.
        """
        self._outputs, self._kinds = list(outputs), kinds
        self._differences: dict[tuple[str, str, int], Difference | ValueDifference] = {}
        self._right: dict[str, int] = {}
        self._labelled: dict[str, int] = {}

    def add(
        self, codes: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray | None = None
    ) -> None:
        """Adds a batch: for each runtime, in a fixed order, one array of codes per output.

        A runtime may have run on the first images of the batch only.
        """
        if labels is not None:
            _check_labels(labels, self._outputs[0])
        for left, right in itertools.combinations(codes, 2):
            for index, tensor in enumerate(self._outputs):
                kind = Difference if has_8_bit_grid(tensor) else ValueDifference
                difference = self._differences.setdefault(
                    (left, right, index), kind(tensor, left, right)
                )
                count = min(len(codes[left][index]), len(codes[right][index]))
                difference.add(codes[left][index][:count], codes[right][index][:count])
        for name, arrays in codes.items():
            self.count_right(name, arrays[0], labels)

    def count_right(self, name: str, scores: np.ndarray, labels: np.ndarray | None) -> None:
        """Counts the right answers of a runtime, or of the float network, where labels are known.

        Args:
          name: What the report calls it.
          scores: Codes or floats of the first output; counted where they are `[images, classes]`.
          labels: Class numbers of at least as many images.
        """
        if labels is None or not has_classes(scores.shape):
            return
        right = int((scores.argmax(1) == labels[: len(scores)]).sum())
        self._right[name] = self._right.get(name, 0) + right
        self._labelled[name] = self._labelled.get(name, 0) + len(scores)

    def comparisons(self) -> tuple[records.Comparison, ...]:
        """One comparison per pair of runtimes and output."""
        return tuple(
            difference.result(self._kinds.get(self._outputs[index].name, ""))
            for (_, _, index), difference in self._differences.items()
        )

    def accuracy(self) -> dict[str, float]:
        """Share of right answers by runtime; empty without labels."""
        return {name: self._right[name] / count for name, count in self._labelled.items()}


class TensorTable:
    """Compares intermediate tensors of one pair of runtimes, in execution order."""

    def __init__(
        self,
        model: deployed_lib.DeployedModel,
        left: str,
        right: str,
        layers: Mapping[str, str] | None = None,
    ):
        """Starts empty, for all activations of `model`.

        Args:
          model: The network.
          left: One runtime.
          right: The other one.
          layers: What a report calls the operator of a tensor; None for the one that writes it.
        """
        written = kinds(model)
        self._kinds = written if layers is None else layers
        self._order = [
            name
            for name in (*model.inputs, *written)
            if model.tensors[name].dtype in ("int8", "uint8")
        ]
        self._differences = {
            name: Difference(model.tensors[name], left, right) for name in self._order
        }
        self._seen: set[str] = set()

    def add(self, left: _Codes, right: _Codes, nearest: _Codes | None = None) -> None:
        """Adds the tensors of a batch that both have; `nearest` as of `Difference.add`."""
        for name in self._order:
            if name in left and name in right:
                near = None if nearest is None else nearest[name]
                self._differences[name].add(np.asarray(left[name]), np.asarray(right[name]), near)
                self._seen.add(name)

    def comparisons(self) -> tuple[records.Comparison, ...]:
        """One comparison per tensor that was seen."""
        return tuple(
            self._differences[n].result(self._kinds.get(n, "INPUT"))
            for n in self._order
            if n in self._seen
        )


def _check_labels(labels: np.ndarray, output: deployed_lib.Tensor) -> None:
    """Refuses class numbers that no output `[batch, classes]` has: they would count as wrong."""
    if not has_classes(output.shape) or not labels.size:
        return
    _, classes = output.shape
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high < classes and np.array_equal(labels, np.rint(labels))):
        raise ValueError(
            f"labels must be class numbers 0 to {classes - 1}, of output {output.name!r}."
            f" Received: labels from {low} to {high}."
        )


def kinds(model: deployed_lib.DeployedModel) -> dict[str, str]:
    """The kind of the operator that writes each activation, by tensor name in execution order."""
    return {name: operator.kind for operator in model.operators for name in operator.outputs}
