"""Drawings of a report, as inlined SVG. Matplotlib is imported with the first one."""

from collections.abc import Mapping, Sequence
import io
from typing import Any

import numpy as np

from tflite_export.verification import report_records as records

# Tensors with a histogram of their own; the ones that differ most come first.
MAX_HISTOGRAMS = 12
_BLUE, _RED = "#2a6fbb", "#c4432b"


def histograms(chosen: Sequence[records.Comparison]) -> str:
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


def line(names: Sequence[str], values: Sequence[float], label: str) -> str:
    """Values in execution order, a name below each; nothing without a value."""
    if not names:
        return ""
    plot = _figure(max(6, 0.28 * len(names)), 4)
    axes = plot.subplots()
    axes.plot(range(len(names)), values, "o-", color=_BLUE, markersize=4)
    axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=7)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    return _svg(plot)


def curves(history: Mapping[str, Sequence[float]]) -> str:
    """Losses beside everything else that was logged by epoch; nothing without an epoch."""
    losses = {name: values for name, values in history.items() if name.endswith("loss")}
    others = {name: values for name, values in history.items() if name not in losses}
    drawn = [_curves(group) for group in (losses, others) if group]
    return f"<div class=side>{''.join(drawn)}</div>" if drawn else ""


def _curves(history: Mapping[str, Sequence[float]]) -> str:
    plot = _figure(5, 3.4)
    axes = plot.subplots()
    for name, values in history.items():
        axes.plot(range(1, len(values) + 1), values, "o-", markersize=3, label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(plot)


def _figure(width: float, height: float) -> Any:
    from matplotlib import figure  # half a second, for those who save a page

    return figure.Figure(figsize=(width, height), layout="constrained")


def _svg(plot: Any) -> str:
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    return f"<div class=scroll>{drawing[drawing.index('<svg') :]}</div>"


def _short(name: str, limit: int = 40) -> str:
    return name if len(name) <= limit else f"...{name[-limit + 3 :]}"
