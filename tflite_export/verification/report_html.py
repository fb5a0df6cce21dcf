"""A report as one self-contained HTML page: tables, and plots as inlined SVG."""

from collections.abc import Sequence
import html
import io
from typing import Any

import numpy as np

from tflite_export.verification import report_records as records
from tflite_export.verification import report_text

# Tensors with a histogram of their own; the ones that differ most come first.
MAX_HISTOGRAMS = 12

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24;
  max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; }
th, td { padding: 0.2em 0.8em; border-bottom: 1px solid #d5d9de; }
th { text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.passed { color: #116329; } .failed { color: #a40e26; } .equal { background: #e6f4ea; }
svg { max-width: 100%; height: auto; }
code { font-size: 0.95em; } .scroll { overflow-x: auto; }
"""

_BLUE, _RED = "#2a6fbb", "#c4432b"


def render(report: records.Findings) -> str:
    """The page."""
    verdict = "passed" if report.passed else "failed"
    parts = [
        f"<h1>{html.escape(report.model)}: <span class={verdict}>{verdict}</span></h1>",
        (
            f"<p><code>{html.escape(report.path)}</code>, {report.bytes:,} bytes."
            f" {report.parameters} constant tensors compared with the student's; outputs on"
            f" {report.images:,} images, intermediate tensors on {report.tensor_images:,}.</p>"
        ),
        _failures(report),
        _list("Notes", [*filter(None, [report_text.bounds(report)]), *report.notes]),
        _accuracy(report),
        _end_to_end(report),
        _outputs(report),
        _layers(report),
        _tensors(report),
        _float_errors(report),
        _provenance(report),
    ]
    title = html.escape(f"{report.model}: {verdict}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _failures(report: records.Findings) -> str:
    rows = [(f.check, f.tensor, f.message) for f in report.failures]
    return "<h2>Not met</h2>" + _table(("check", "tensor", "what"), rows) if rows else ""


def _accuracy(report: records.Findings) -> str:
    cells = [f"{100 * value:.2f}%" for value in report.accuracy.values()]
    header = ("accuracy", *report.accuracy)
    return "<h2>Accuracy</h2>" + _table(header, [("top-1", *cells)]) if cells else ""


def _end_to_end(report: records.Findings) -> str:
    rows = report_text.end_to_end(report)
    header = ("runtimes", "output", "compared by", "same top-1", "SQNR dB")
    note = f"<p>{html.escape(report_text.CHAOS)}</p>"
    return "<h2>End to end</h2>" + note + _table(header, rows) if rows else ""


def _layers(report: records.Findings) -> str:
    """The student's layers on the file's own codes, most damage first."""
    rows = report_text.layers(report)
    header = ("student layer", *report_text.LAYER_HEADER)
    return "<h2>Operators by damage</h2>" + _table(header, rows) if rows else ""


def _outputs(report: records.Findings) -> str:
    if not report.outputs:
        return ""
    rows = [
        (
            f"{c.left}, {c.right}",
            c.tensor,
            f"{c.codes:,}",
            f"{c.differing:,}",
            f"{c.max_lsb}",
            report_text.decibels(c.sqnr_db),
            "-" if c.top1 is None else report_text.percent(c.top1),
        )
        for c in report.outputs
    ]
    header = ("runtimes", "output", "codes", "differing", "max LSB", "SQNR dB", "same top-1")
    marked = [not c.differing for c in report.outputs]
    return "<h2>Which runtimes agree</h2><p>Green: equal on every output code.</p>" + _table(
        header, rows, marked
    )


def _tensors(report: records.Findings) -> str:
    sections = []
    for left, right in dict.fromkeys((c.left, c.right) for c in report.tensors):
        chosen = [c for c in report.tensors if (c.left, c.right) == (left, right)]
        sections.append(
            f"<h2>Tensor by tensor: {html.escape(left)} against {html.escape(right)}</h2>"
        )
        first = report.first_diverging(left, right)
        if first is None:
            total = sum(c.codes for c in chosen)
            sections.append(
                f"<p class=passed>Equal on all {total:,} codes of {len(chosen)} tensors.</p>"
            )
            continue
        sections.append(f"<p>First diverging tensor: <code>{html.escape(first)}</code></p>")
        sections += [
            _tensor_table(chosen),
            _share_plot(chosen),
            _sqnr_plot(chosen),
            _histograms(chosen),
        ]
    return "\n".join(sections)


def _tensor_table(chosen: Sequence[records.Comparison]) -> str:
    rows = [
        (
            c.tensor,
            c.kind,
            f"{c.codes:,}",
            report_text.percent(c.share),
            f"{c.max_lsb}",
            report_text.decibels(c.sqnr_db),
        )
        for c in chosen
    ]
    header = ("tensor", "operator", "codes", "differing", "max LSB", "SQNR dB")
    return _table(header, rows, [not c.differing for c in chosen])


def _share_plot(chosen: Sequence[records.Comparison]) -> str:
    """Share of differing codes of the tensors that differ most."""
    top = sorted((c for c in chosen if c.differing), key=lambda c: -c.share)[: 2 * MAX_HISTOGRAMS]
    return _bars(
        [c.tensor for c in top], [100 * c.share for c in top], "codes that differ, %", _RED
    )


def _sqnr_plot(chosen: Sequence[records.Comparison]) -> str:
    noisy = [(c.tensor, c.sqnr_db) for c in chosen if c.sqnr_db is not None]
    return _line(
        [tensor for tensor, _ in noisy], [db for _, db in noisy], "SQNR, dB, in execution order"
    )


def _histograms(chosen: Sequence[records.Comparison]) -> str:
    """Small multiples of `left - right` in LSB, on a logarithmic scale."""
    top = sorted((c for c in chosen if c.differing), key=lambda c: -c.share)[:MAX_HISTOGRAMS]
    columns = min(3, len(top))
    lines = -(-len(top) // columns)
    plot = _figure(3.4 * columns, 2.2 * lines)
    for axes, comparison in zip(np.ravel(plot.subplots(lines, columns)), top, strict=False):
        offsets, counts = zip(*comparison.histogram, strict=True)
        axes.bar(offsets, counts, color=_BLUE, width=0.8)
        axes.set_yscale("log")
        axes.set_title(_short(comparison.tensor), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    plot.supxlabel("difference, LSB", fontsize=8)
    plot.supylabel("codes", fontsize=8)
    for unused in plot.axes[len(top) :]:
        unused.remove()
    return _svg(plot)


def _float_errors(report: records.Findings) -> str:
    if not report.float_errors:
        return ""
    rows = [(e.tensor, e.layer, report_text.decibels(e.sqnr_db)) for e in report.float_errors]
    noisy = [(e.layer, e.sqnr_db) for e in report.float_errors if e.sqnr_db is not None]
    worst = min(noisy, key=lambda error: error[1], default=None)
    sentence = (
        f"<p>Worst: <code>{html.escape(worst[0])}</code>, {worst[1]:.1f} dB.</p>" if worst else ""
    )
    plot = _line([layer for layer, _ in noisy], [db for _, db in noisy], "SQNR against float, dB")
    return (
        "<h2>Quantized against float</h2>"
        + sentence
        + plot
        + _table(("tensor", "float layer", "SQNR dB"), rows)
    )


def _provenance(report: records.Findings) -> str:
    lines = [f"{name}: {value:.1f} s" for name, value in report.seconds.items()]
    return _list("Versions", [f"{k} {v}" for k, v in report.versions.items()]) + _list(
        "Time", lines
    )


def _bars(names: Sequence[str], values: Sequence[float], label: str, colour: str) -> str:
    plot = _figure(9, 0.8 + 0.24 * len(names))
    axes = plot.subplots()
    axes.barh([_short(name) for name in names], values, color=colour)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.tick_params(labelsize=8)
    return _svg(plot)


def _line(names: Sequence[str], values: Sequence[float], label: str) -> str:
    if not names:
        return ""
    plot = _figure(max(6, 0.28 * len(names)), 4)
    axes = plot.subplots()
    axes.plot(range(len(names)), values, "o-", color=_BLUE, markersize=4)
    axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=7)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    return _svg(plot)


def _figure(width: float, height: float) -> Any:
    from matplotlib import figure  # half a second, for those who save a page

    return figure.Figure(figsize=(width, height), layout="constrained")


def _svg(plot: Any) -> str:
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return f"<div class=scroll>{drawing[drawing.index('<svg') :]}</div>"


def _short(name: str, limit: int = 40) -> str:
    return name if len(name) <= limit else f"...{name[-limit + 3 :]}"


def _list(title: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<h2>{title}</h2><ul>{lines}</ul>" if items else ""


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] | None = None
) -> str:
    """An HTML table; marked rows are green."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td{_cell_class(cell)}>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{' class=equal' if marked and marked[index] else ''}>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>"


def _cell_class(cell: str) -> str:
    return " class=number" if cell in ("exact", "-") or cell.lstrip("<>-+")[:1].isdigit() else ""
