"""What experiments.evidence.beside_tfmot measured, as a Markdown page."""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import statistics
from typing import Any

from experiments import records

Row = dict[str, Any]

# A side's key in a row, and its name on the page.
SIDES = {"ours": "tf_fpq + tflite_export", "tfmot": "tfmot + TFLiteConverter"}

PAGE = """# Beside tfmot

The same trained float network, the same images, W8A8 on both sides: `tf_fpq.quantize_model`,
`calibrate`, training, `tflite_export.export` beside `tfmot.quantization.keras.quantize_model`,
training, `TFLiteConverter` with `Optimize.DEFAULT` and int8 borders. Both train with the same
optimizer, batches, epochs and learning rate, without distillation.

- *Identical codes*: the Keras model's outputs on the file's output grid, against the file's on
  XNNPACK, over all test images. Ours is the student after the export, which has moved its biases by
  at most half a step onto their int32 grid.
- *Unrounded*: the same for the student as training left it, `export(round_biases=False)`; the file
  is the same.
- *Twin*: output codes in which our integer twin differs from the file. tfmot has no twin.
- *Drop*: accuracy of the Keras model minus that of its file, in points.
- *Latency*: median of one image, XNNPACK, one thread, the files taking turns; *ratio* is tfmot's
  over ours, median over the turns. The machine was shared with other work: the ratio tells more
  than the milliseconds.

What the figures do not say: networks and training are short (rows below), as the claim is about
arithmetic, not about accuracy. tfmot's ranges start at +-6 and follow the data with an average of
factor 0.999, so its grids depend on the number of steps; ours are calibrated on images first. tfmot
refuses other networks altogether (nested models, Multiply, Conv1D, operator layers); here it takes
the network unless a row says otherwise.

Where tfmot's differences come from, looked into on one network (resnet8 of width 8, digits; not in
the rows): the weights' codes of the first convolution are the file's, and behind it 1 code in
10,000 differs. Biases that training never rounded and float against integer arithmetic tip single
codes, and each layer's differences tip more behind it: 0.4 % after the first block, 2 % after the
second, 7 % after the third, 23 % in the logits.

Written by `python -m experiments.evidence.beside_tfmot`.
"""


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file; none if there is none."""
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line]
        if path.exists()
        else []
    )


def summary(row: Row) -> str:
    """A row in one line."""
    sides = [f"{side} {_identical(row[side])}, drop {_drop(row[side])}" for side in SIDES]
    return f"{row['network']} seed {row['seed']}: {'; '.join(sides)}"


def table(rows: Sequence[Row]) -> str:
    """Two Markdown tables: means over seeds, and every run."""
    return "\n\n".join(
        [
            "## Means over the seeds",
            _means(rows),
            "## Every run",
            _runs(rows),
            "Made by",
            _origins(rows),
        ]
    )


def write_page(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes the page, whole or not at all."""
    records.write_text(path, f"{PAGE}\n{table(rows)}\n")


def _means(rows: Sequence[Row]) -> str:
    """One line per network, epochs and side."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["epochs"]), []).append(row)
    lines = []
    for (network, epochs), group in groups.items():
        for side, name in SIDES.items():
            mine = [row for row in group if "refused" not in row[side]]
            refused = [row[side]["refused"] for row in group if "refused" in row[side]]
            cells = _mean_cells(mine, side) if mine else [f"refused: {refused[0]}", *[""] * 11]
            lines.append([network, epochs, name, len(mine), *cells])
    header = [
        "network",
        "epochs",
        "",
        "seeds",
        "identical codes",
        "unrounded",
        "largest LSB",
        "twin",
        "float",
        "Keras",
        "TFLite",
        "drop",
    ]
    return _table([*header, "same class", "bytes", "latency ms", "ratio"], lines)


def _mean_cells(rows: Sequence[Row], side: str) -> list[str]:
    sides = [row[side] for row in rows]
    twin = [s["twin_differing"] for s in sides if "twin_differing" in s]
    return [
        _mean(sides, lambda s: 100 * (1 - s["differing"] / s["codes"]), "%"),
        _unrounded(sides),
        str(max(s["max_lsb"] for s in sides)),
        f"{sum(twin):,} of {sum(s['codes'] for s in sides):,}" if twin else "none",
        _mean(rows, lambda row: 100 * row["float_accuracy"], "%"),
        _mean(sides, lambda s: 100 * s["keras_accuracy"], "%"),
        _mean(sides, lambda s: 100 * s["tflite_accuracy"], "%"),
        _mean(sides, lambda s: 100 * (s["keras_accuracy"] - s["tflite_accuracy"])),
        _mean(sides, lambda s: 100 * s["top1_agreement"], "%"),
        f"{statistics.mean(s['bytes'] for s in sides):,.0f}",
        _mean(sides, lambda s: statistics.median(s["latency_ms"])),
        _mean(rows, ratio) if side == "tfmot" else "1",
    ]


def _unrounded(sides: Sequence[Mapping[str, Any]]) -> str:
    measured = [s for s in sides if "unrounded_differing" in s]
    if not measured:
        return "-"
    return _mean(measured, lambda s: 100 * (1 - s["unrounded_differing"] / s["codes"]), "%")


def ratio(row: Row) -> float:
    """Latency of tfmot's file over ours, median over the turns."""
    pairs = zip(row["tfmot"]["latency_ms"], row["ours"]["latency_ms"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _runs(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for side, name in SIDES.items():
            s = row[side]
            if "refused" in s:
                cells = [f"refused: {s['refused']}", *[""] * 6]
            else:
                accuracies = [f"{s[key]:.2%}" for key in ("keras_accuracy", "tflite_accuracy")]
                cells = [
                    _identical(s),
                    s["max_lsb"],
                    *accuracies,
                    _drop(s),
                    f"{s['top1_agreement']:.2%}",
                ]
                cells.append(f"{statistics.median(s['latency_ms']):.3f}")
            lines.append([row["network"], row["epochs"], row["seed"], name, *cells])
    header = [
        "network",
        "epochs",
        "seed",
        "",
        "identical codes",
        "largest LSB",
        "Keras",
        "TFLite",
        "drop",
        "same class",
    ]
    return _table([*header, "latency ms"], lines)


def _origins(rows: Sequence[Row]) -> str:
    names = (
        "dataset",
        "width",
        "train_examples",
        "float_epochs",
        "epochs",
        "batch_size",
        "learning_rate",
        "commit",
    )
    found = [", ".join(f"{name} {row[name]}" for name in names) for row in rows]
    return "\n".join(f"- {line}" for line in dict.fromkeys(found))


def _identical(side: Mapping[str, Any]) -> str:
    if "refused" in side:
        return "refused"
    same = side["codes"] - side["differing"]
    return f"{same:,} of {side['codes']:,} ({same / side['codes']:.3%})"


def _drop(side: Mapping[str, Any]) -> str:
    return (
        ""
        if "refused" in side
        else f"{100 * (side['keras_accuracy'] - side['tflite_accuracy']):.2f}"
    )


def _mean(items: Sequence[Any], value: Callable[[Any], float], unit: str = "") -> str:
    values = [value(item) for item in items]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{unit}{deviation}"


def _table(header: Sequence[Any], lines: Sequence[Sequence[Any]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
