"""The report of a verification. Needs no TensorFlow.

Its findings are printed as text, and saved as JSON or as one HTML page.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from tflite_export.flatbuffer import atomic_files
from tflite_export.verification import report_html, report_text
from tflite_export.verification.report_records import (
    Comparison,
    Failure,
    Findings,
    FloatError,
    LayerBound,
    OperatorBound,
    OperatorCost,
)

# Counts up when a field changes its name or meaning; new fields alone do not change it.
SCHEMA_VERSION = 2

OVERLAY_METRICS = ("differing", "max_lsb", "sqnr_db", "float_sqnr_db")


@dataclasses.dataclass(frozen=True)
class Report(Findings):
    """Findings that can be printed and saved.

        report = tflite_export.verify(student, exported, (images, labels))
        report.save("report.html")

    `report_records.Findings` says what they hold.
    """

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
            ("costs", OperatorCost),
        ):
            fields[name] = tuple(record(**entry) for entry in fields.get(name, ()))
        for name in ("outputs", "tensors"):
            fields[name] = tuple(_comparison(entry) for entry in fields[name])
        fields["operators"] = tuple(tuple(entry) for entry in fields["operators"])
        fields["layer_bounds"] = tuple(
            LayerBound(**{**entry, "kinds": tuple(entry["kinds"])})
            for entry in fields.get("layer_bounds", ())
        )
        fields["history"] = _by_epoch(fields.get("history", {}))
        return cls(**{**fields, "notes": tuple(fields["notes"])})

    def with_history(self, history: Mapping[str, Sequence[float]]) -> "Report":
        """The same report with training curves, which `save("x.html")` then shows.

            report.with_history(model.fit(train, epochs=9).history).save("report.html")

        Args:
          history: Numbers by epoch, by name, as in `keras.callbacks.History.history`.
        """
        return dataclasses.replace(self, history=_by_epoch(history))

    def text(self) -> str:
        """Aligned tables for a terminal."""
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
        suffix = check_path(path)
        if suffix == ".json":
            contents = json.dumps(self.to_dict(), indent=1)
        elif suffix == ".html":
            contents = report_html.render(self)
        else:
            contents = self.text()
        _write(path, contents)

    def overlay(
        self, metric: str = "differing", left: str = "student", right: str = "xnnpack"
    ) -> dict[str, Any]:
        """Colours for Google's Model Explorer.

        There is one value per operator of the file, by its first output tensor.

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


def check_path(path: str | os.PathLike[str]) -> str:
    """The ending of a report's path.

    Raises:
      ValueError: If no report has it.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in (".json", ".html", ".txt"):
        raise ValueError(
            f"path must end in .json, .html or .txt. Received: path={os.fspath(path)!r}."
        )
    return suffix


def _write(path: str | os.PathLike[str], text: str) -> None:
    atomic_files.write_whole(text.encode(), path, "the report")


def _by_epoch(history: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(float, values)) for name, values in history.items()}


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**entry, "histogram": tuple(tuple(pair) for pair in entry["histogram"])})
