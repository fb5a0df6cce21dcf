"""What experiments.evidence.exactness measured, as Markdown tables."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

SECTION = ("<!-- table: made by experiments.evidence.exactness -->", "<!-- end of table -->")

Row = dict[str, Any]


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file; none if there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(row: Row) -> str:
    """A row in one line."""
    pairs = [f"{c['left']}/{c['right']} {c['differing']} of {c['codes']}" for c in row["outputs"]]
    return (
        f"{row['network']} {row['scheme']} {row['weights']} {row['images']} images:"
        f" {'; '.join(pairs)}"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown tables: int8 files, runtimes elsewhere, packed INT4 files, costs."""
    codes = [row for row in rows if row["kind"] == "codes"]
    whole = [row for row in codes if row["weights"] == "int8"]
    packed = [row for row in codes if row["weights"] == "int4"]
    parts = [
        _pairs_table("int8 weights", whole, (("twin", "xnnpack"), ("twin_double", "reference"))),
        _tensors_table(whole),
        _pairs_table("Runtimes elsewhere, int8 weights", whole, _elsewhere(whole)),
        _pairs_table("Packed INT4 weights", packed, _packed_pairs(packed)),
        _cost_table([row for row in rows if row["kind"] == "cost"]),
    ]
    origins = dict.fromkeys(f"- `{row['command']}`, commit `{row['commit']}`" for row in rows)
    return "\n\n".join([*filter(None, parts), "Made by\n\n" + "\n".join(origins)])


def _elsewhere(rows: Sequence[Row]) -> list[tuple[str, str]]:
    names = [(c["left"], c["right"]) for row in rows for c in row["outputs"]]
    kept = [
        (a, b)
        for a, b in names
        if (a == "xnnpack" and b.startswith("arm")) or (a, b) == ("reference", "tflm")
    ]
    return list(dict.fromkeys(kept))


def _packed_pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    names = [(c["left"], c["right"]) for row in rows for c in row["outputs"]]
    first = [
        ("twin", "xnnpack"),
        ("twin_double", "reference"),
        ("xnnpack", "builtin"),
        ("twin", "twin_double"),
    ]
    return list(dict.fromkeys([pair for pair in first if pair in names] + _elsewhere(rows)))


def _pairs_table(title: str, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> str:
    if not rows or not pairs:
        return ""
    lines = [f"### {title}: differing output codes", ""]
    names = [f"{left}, {right}" for left, right in pairs]
    head = ["network", "scheme", "images", "bytes", "accuracy", "reference kernels'", *names]
    lines += [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [row["network"], row["scheme"], f"{row['images']:,}", f"{row['bytes']:,}"]
        for kernels in ("xnnpack", "reference"):
            accuracy = row["accuracy"].get(kernels)
            cells.append("" if accuracy is None else f"{accuracy:.2%}")
        lines.append(_line(cells + [_cell(row["outputs"], pair) for pair in pairs]))
    return "\n".join(lines)


def _cell(outputs: Sequence[Mapping[str, Any]], pair: tuple[str, str]) -> str:
    for c in outputs:
        if (c["left"], c["right"]) == pair:
            worst = f", by up to {c['max_lsb']} LSB" if c["differing"] else ""
            same = "" if c["top1"] is None else f"; same class {c['top1']:.2%}"
            return f"{c['differing']:,} of {c['codes']:,}{worst}{same}"
    return "not run"


def _tensors_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = ["### int8 weights: differing codes of all tensors, intermediate ones too", ""]
    lines += [
        _line(["network", "scheme", "images", "pair", "tensors", "differing codes"]),
        _line(["---"] * 6),
    ]
    for row in rows:
        for c in row["tensors"]:
            cells = [
                row["network"],
                row["scheme"],
                row["tensor_images"],
                f"{c['left']}, {c['right']}",
                c["tensors"],
            ]
            lines.append(_line([*cells, f"{c['differing']:,} of {c['codes']:,}"]))
    return "\n".join(lines)


def _cost_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    keys = (
        "wall_s",
        "interpreter_s",
        "beyond_wall_s",
        "beyond_processor_s",
        "mib_before",
        "mib_peak",
        "load",
    )
    lines = [
        "### Cost of export and verification on XNNPACK",
        "",
        _line(["network", "scheme", "images", *keys]),
    ]
    lines.append(_line(["---"] * (3 + len(keys))))
    lines += [
        _line([row["network"], row["scheme"], f"{row['images']:,}", *(row[key] for key in keys)])
        for row in rows
    ]
    return "\n".join(lines)


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"
