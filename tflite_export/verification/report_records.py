"""What verification found, as frozen records without any way to show them. Needs no TensorFlow.

`report.Report` adds printing and saving; the renderers read the records alone.
"""

from collections.abc import Mapping
import dataclasses
from typing import Literal

from tflite_export.flatbuffer.file_summary import OperatorCost


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the codes of one tensor differ between two runtimes.

    Attributes:
      tensor: Name in the file.
      kind: Operator that writes it.
      left: One runtime.
      right: The other one.
      codes: Number of codes compared.
      differing: Number of codes that differ.
      max_lsb: Largest difference in LSB.
      histogram: `(left - right in LSB, number of codes)` for each difference that occurs.
      sqnr_db: Power of `right` over power of the difference, in dB; None when nothing differs.
      top1: For class scores, share of images with the same best class, ties broken alike; else
        None.
      max_abs: Largest difference of the values of a tensor that has no 8-bit grid, which has no
        LSB: `codes` then counts values, `max_lsb` is 0 and `histogram` empty. Else None.
      beyond: Of a student layer, number of codes that differ and that no rounding tie explains: no
        value within the layer's slack rounds to the other code. Else 0.
      beyond_lsb: Of these, the largest distance that the slack leaves, in LSB.
    """

    tensor: str
    kind: str
    left: str
    right: str
    codes: int
    differing: int
    max_lsb: int
    histogram: tuple[tuple[int, int], ...]
    sqnr_db: float | None = None
    top1: float | None = None
    max_abs: float | None = None
    beyond: int = 0
    beyond_lsb: int = 0

    @property
    def difference(self) -> str:
        """The largest difference with its unit, e.g. "2 LSB"; a value has none."""
        return f"{self.max_lsb} LSB" if self.max_abs is None else f"{self.max_abs:.3g}"

    @property
    def share(self) -> float:
        """Share of codes that differ."""
        return self.differing / self.codes if self.codes else 0.0


@dataclasses.dataclass(frozen=True)
class FloatError:
    """How far a quantized tensor is from the float network's.

    Attributes:
      tensor: Name in the file.
      layer: Layer of the float network.
      sqnr_db: Power of the float tensor over power of the error, in dB; None when there is no
        error.
    """

    tensor: str
    layer: str
    sqnr_db: float | None


@dataclasses.dataclass(frozen=True)
class OperatorBound:
    """How far the twin may be from a kernel set in the output of one kind of operator.

    All others must be equal.

    Attributes:
      kind: The operator.
      kernels: The kernel set.
      lsb: Largest difference.
      share: Largest share of codes that differ.
    """

    kind: str
    kernels: str
    lsb: int
    share: float


@dataclasses.dataclass(frozen=True)
class LayerBound:
    """How far a student layer may be from the file, given the file's codes before it.

    Attributes:
      tensor: The tensor that the layer writes.
      kinds: The operators that it is in the file, in execution order.
      slack: How far from a tie a value may be that student and file round differently, in output
        steps; the most of all channels.
      lsb: Largest difference beyond that.
      share: Largest share of codes that differ by more.
    """

    tensor: str
    kinds: tuple[str, ...]
    slack: float
    lsb: int
    share: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """One unmet condition: which check, which tensor, and what is wrong."""

    check: Literal["parameters", "runtime", "twin", "student"]
    tensor: str
    message: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of a verification.

    Attributes:
      model: Name of the network.
      path: The file.
      bytes: Its size.
      images: Number of images all outputs were compared on.
      tensor_images: Number of images intermediate tensors were compared on.
      parameters: Number of constant tensors compared with the student's.
      operators: `(kind, first output)` of the file's operators, in execution order.
      outputs: Output codes end to end, every pair of runtimes; and the student against itself with
        every value moved by one float ulp ("moved"), which is what chaos alone makes of it.
      output_kinds: What each output is, by tensor: "classes" compare by the best class, "values"
        (boxes, maps, embeddings) by SQNR.
      tensors: Operators one by one, in execution order: what student and twin make of the very
        codes that the kernel set on the right had before the operator.
      layer_bounds: How far each student layer may be from the file there.
      float_errors: Error against a float teacher, in execution order; empty without one.
      accuracy: Share of right answers by runtime; empty without labels.
      bounds: Operators of the file that need not be equal, and their bounds.
      failures: Unmet conditions, most upstream first.
      notes: What a reader should know, such as weights that stayed int8.
      seconds: Time spent, by runtime.
      versions: Versions of the packages involved.
      costs: Bits, bytes and multiply-adds of the file's operators, in execution order.
      history: What training logged by epoch, by name; see `Report.with_history`.
    """

    model: str
    path: str
    bytes: int
    images: int = 0
    tensor_images: int = 0
    parameters: int = 0
    operators: tuple[tuple[str, str], ...] = ()
    outputs: tuple[Comparison, ...] = ()
    output_kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tensors: tuple[Comparison, ...] = ()
    layer_bounds: tuple[LayerBound, ...] = ()
    float_errors: tuple[FloatError, ...] = ()
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bounds: tuple[OperatorBound, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    costs: tuple[OperatorCost, ...] = ()
    history: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every condition is met."""
        return not self.failures

    def output(self, left: str, right: str) -> Comparison:
        """The comparison of two runtimes' output codes (of the first output).

        Raises:
          KeyError: If the pair was not compared.
        """
        for found in self.outputs:
            if {found.left, found.right} == {left, right}:
                return found
        raise KeyError(f"{left!r} and {right!r} were not compared; pairs: {self.pairs()}.")

    def of_pair(self, left: str, right: str) -> tuple[Comparison, ...]:
        """The comparisons of two runtimes' outputs, one for each output.

        It is empty if there are none.
        """
        return tuple(c for c in self.outputs if {c.left, c.right} == {left, right})

    def by_damage(self, left: str, right: str) -> list[Comparison]:
        """The operators in which two runtimes differ, those with most differing codes first."""
        chosen = [c for c in self.tensors if {c.left, c.right} == {left, right} and c.differing]
        return sorted(chosen, key=lambda c: (-c.share, -c.max_lsb))

    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of runtimes whose outputs were compared."""
        return list(dict.fromkeys((found.left, found.right) for found in self.outputs))

    def agreeing(self) -> list[tuple[str, str]]:
        """Pairs of runtimes with no differing output code."""
        differing = {(found.left, found.right) for found in self.outputs if found.differing}
        return [pair for pair in self.pairs() if pair not in differing]

    def first_diverging(self, left: str, right: str) -> str | None:
        """First tensor in execution order in which two runtimes differ, or None."""
        for found in self.tensors:
            if {found.left, found.right} == {left, right} and found.differing:
                return found.tensor
        return None
