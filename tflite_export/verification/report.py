"""What verification found, as frozen records: printed as text, saved as JSON or as one HTML page.
Needs no TensorFlow.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

from tflite_export.flatbuffer import atomic_files

# Counts up when a field changes its name or meaning; new fields alone do not change it.
SCHEMA_VERSION = 1

OVERLAY_METRICS = ("differing", "max_lsb", "sqnr_db", "float_sqnr_db")


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
    """How far the twin may be from a kernel set in the output of one kind of operator; all others
    must be equal.

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
class Failure:
    """One unmet condition: which check, which tensor, and what is wrong."""

    check: Literal["parameters", "runtime", "twin", "student"]
    tensor: str
    message: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
      model: Name of the network.
      path: The file.
      bytes: Its size.
      images: Number of images all outputs were compared on.
      tensor_images: Number of images intermediate tensors were compared on.
      parameters: Number of constant tensors compared with the student's.
      operators: `(kind, first output)` of the file's operators, in execution order.
      outputs: Output codes, every pair of runtimes.
      tensors: Intermediate tensors, in execution order.
      float_errors: Error against a float teacher, in execution order; empty without one.
      accuracy: Share of right answers by runtime; empty without labels.
      bounds: Operators of the file that need not be equal, and their bounds.
      failures: Unmet conditions, most upstream first.
      notes: What a reader should know, such as weights that stayed int8.
      seconds: Time spent, by runtime.
      versions: Versions of the packages involved.
    """

    model: str
    path: str
    bytes: int
    images: int = 0
    tensor_images: int = 0
    parameters: int = 0
    operators: tuple[tuple[str, str], ...] = ()
    outputs: tuple[Comparison, ...] = ()
    tensors: tuple[Comparison, ...] = ()
    float_errors: tuple[FloatError, ...] = ()
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bounds: tuple[OperatorBound, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

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

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists with the schema version: what `save("x.json")` writes."""
        return {"schema_version": SCHEMA_VERSION, "passed": self.passed, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Reads `to_dict()` back.

        Raises:
          ValueError: If the schema version is another one.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                "This report has another schema. Received:"
                f" schema_version={data.get('schema_version')!r}; expected {SCHEMA_VERSION}."
            )
        fields = {
            field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data
        }
        for name, record in (
            ("float_errors", FloatError),
            ("bounds", OperatorBound),
            ("failures", Failure),
        ):
            fields[name] = tuple(record(**entry) for entry in fields.get(name, ()))
        for name in ("outputs", "tensors"):
            fields[name] = tuple(_comparison(entry) for entry in fields[name])
        fields["operators"] = tuple(tuple(entry) for entry in fields["operators"])
        return cls(**{**fields, "notes": tuple(fields["notes"])})

    def text(self) -> str:
        """Aligned tables for a terminal."""
        from tflite_export.verification import report_text

        return report_text.render(self)

    __str__ = text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report, whole or not at all.

        Args:
          path: `x.json`, `x.html` or `x.txt`.

        Raises:
          ValueError: If the ending is another one.
          OSError: If the path cannot be written.
        """
        suffix = pathlib.Path(path).suffix.lower()
        if suffix == ".json":
            contents = json.dumps(self.to_dict(), indent=1)
        elif suffix == ".html":
            from tflite_export.verification import report_html

            contents = report_html.render(self)
        elif suffix == ".txt":
            contents = self.text()
        else:
            raise ValueError(
                f"path must end in .json, .html or .txt. Received: path={os.fspath(path)!r}."
            )
        _write(path, contents)

    def overlay(
        self, metric: str = "differing", left: str = "student", right: str = "xnnpack"
    ) -> dict[str, Any]:
        """Colours for Google's Model Explorer: one value per operator of the file, by its first
        output tensor.

        Args:
          metric: "differing" (share of codes), "max_lsb", "sqnr_db", or "float_sqnr_db" (against
            the float teacher).
          left: One runtime of the pair.
          right: The other one.

        Returns:
          The structure `model-explorer x.tflite --node_data_paths=overlay.json` reads. A tensor
          without any difference has no SQNR and no entry.

        Raises:
          ValueError: If the metric is unknown.
        """
        if metric not in OVERLAY_METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(OVERLAY_METRICS)}. Received: metric={metric!r}."
            )
        values = self._metric(metric, {left, right})
        indexed = (
            (str(index), values.get(tensor)) for index, (_, tensor) in enumerate(self.operators)
        )
        bad, good = "#d7301f", "#ffffff"
        ends = (bad, good) if metric.endswith("sqnr_db") else (good, bad)
        return {
            "main": {
                "results": {
                    index: {"value": value} for index, value in indexed if value is not None
                },
                "gradient": [{"stop": stop, "bgColor": colour} for stop, colour in enumerate(ends)],
            }
        }

    def save_overlay(
        self, path: str | os.PathLike[str], metric: str = "differing", **pair: str
    ) -> None:
        """Writes `overlay(metric, **pair)` as JSON, whole or not at all."""
        _write(path, json.dumps(self.overlay(metric, **pair), indent=1))

    def _metric(self, metric: str, pair: set[str]) -> dict[str, float | None]:
        if metric == "float_sqnr_db":
            return {found.tensor: found.sqnr_db for found in self.float_errors}
        chosen = [found for found in self.tensors if {found.left, found.right} == pair]
        return {c.tensor: c.share if metric == "differing" else getattr(c, metric) for c in chosen}


def _write(path: str | os.PathLike[str], text: str) -> None:
    atomic_files.write_whole(text.encode(), path, "the report")


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**entry, "histogram": tuple(tuple(pair) for pair in entry["histogram"])})
