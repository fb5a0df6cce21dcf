"""One picture of a study's cell: accuracy beside flatness, method by method, as an SVG file.

Left are the paired differences to LSQ in test accuracy, with their 95 % intervals; right the mean
trace of the Hessian of the same students. Fewer than eight pairs are drawn hollow and called
unfinished. Text stays readable where 600 units become 390 pixels, and colours follow the reader's
light or dark mode.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import pathlib
import statistics
from xml.sax import saxutils

from experiments import paired, records, tables

WHOLE = 8
# Names of methods as readers know them; others are shown as tables name them.
NAMES = {
    **{"float": "float, goes on", "none": "LSQ", "kd": "LSQ + KD", "sam": "LSQ + SAM"},
    **{"sfp": "SFP", "csd": "CSD", "fpq": "FPQ", "cr": "CR", "fpq+cr": "FPQ + CR"},
    **{"sam+kd": "KD + SAM", "sfp+cr+kd (noise_probability=0.5)": "KD + SFP + CR"},
}

_WIDTH, _TOP, _LINE, _BARS = 600, 112, 34, 428
_STYLE = """
text { font-family: system-ui, sans-serif; font-size: 17.5px; fill: #24292f }
.title { font-weight: 600; font-size: 19px }
.small { fill: #57606a } .card { fill: #fff } .grid { stroke: #d8dee4 } .zero { stroke: #57606a }
.bar { stroke: #0969da; stroke-width: 3 } .dot { fill: #0969da; stroke: #0969da; stroke-width: 2.5 }
.part { fill: #fff } .trace { fill: #0969da } .lsq { fill: #8c959f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .card, .part { fill: #0d1117 }
.grid { stroke: #30363d } .zero { stroke: #9198a1 } .bar, .dot { stroke: #4493f8 }
.dot, .trace { fill: #4493f8 } .part { fill: #0d1117 } .lsq { fill: #6e7681 }
}
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """What is known of one method in a cell.

    Attributes:
      name: As tables name it.
      accuracy: Difference to LSQ in points; None for LSQ itself, or without a pair.
      traces: Traces of the Hessian by seed.
    """

    name: str
    accuracy: paired.Difference | None
    traces: Mapping[int, float]

    @property
    def whole(self) -> bool:
        """Whether it has all its pairs; LSQ has no pair to wait for."""
        return self.name == "none" or (self.accuracy is not None and self.accuracy.count >= WHOLE)


def lines(
    rows: Sequence[tables.Row], sharpness: Sequence[tables.Row], model: str, scheme: str
) -> list[Line]:
    """The methods of a cell that have a test row, LSQ first.

    Args:
      rows: Rows of a study.
      sharpness: Rows of `experiments.analyze`.
      model: Network of the cell.
      scheme: Its widths, as W2A2.
    """
    found: list[tables.Line] = []
    for cell, of_cell in tables.cells(rows).items():
        found += of_cell if cell[2:] == (model, scheme) else []
    base = next((line.scores() for line in found if line.name == "none"), {})
    traces = _traces(sharpness, model, scheme)
    several = [
        Line(line.name, _difference(line, base), traces.get(line.name, {})) for line in found
    ]
    order = [*NAMES]
    order.insert(0, order.pop(order.index("none")))
    rank = {name: place for place, name in enumerate(order)}
    return sorted(several, key=lambda line: (rank.get(line.name, len(rank)), line.name))


def _difference(line: tables.Line, base: Mapping[int, float]) -> paired.Difference | None:
    return None if line.name == "none" else paired.difference(line.scores(), base)


def _traces(
    sharpness: Sequence[tables.Row], model: str, scheme: str
) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in sharpness:
        here = (row["model"], tables.scheme(row)) == (model, scheme)
        if here and row["split"] == "test":
            found.setdefault(row["methods"], {})[row["seed"]] = row["hessian_trace"]
    return found


def write(found: Sequence[Line], title: str, path: pathlib.Path) -> bool:
    """Writes the picture; returns whether there was anything to draw."""
    if not any(line.accuracy for line in found):
        return False
    records.write_text(path, svg(found, title))
    return True


def svg(found: Sequence[Line], title: str) -> str:
    """The picture of some lines."""
    unfinished = not all(line.whole for line in found)
    height = _TOP + _LINE * len(found) + (62 if unfinished else 38)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{saxutils.escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="card" width="{_WIDTH}" height="{height}" rx="8"/>',
        _text(16, 30, title, "title"),
        _text(152, 62, "accuracy minus LSQ’s, points"),
        _text(152, 84, "mean and 95 % interval", "small"),
        _text(_BARS, 62, "trace of Hessian"),
        _text(_BARS, 84, _seeds(found), "small"),
    ]
    for place, line in enumerate(found):
        parts.append(_text(16, _y(place) + 5, NAMES.get(line.name, line.name)))
    parts += [*_accuracies(found), *_bars(found)]
    if unfinished:
        parts.append(
            _text(16, height - 12, f"hollow: unfinished, fewer than {WHOLE} pairs", "small")
        )
    return "\n".join([*parts, "</svg>", ""])


def _seeds(found: Sequence[Line]) -> str:
    """Of how many seeds the traces are means."""
    counts = sorted({len(line.traces) for line in found if line.traces})
    if not counts:
        return "lower: flatter"
    return f"lower: flatter; n={'–'.join(map(str, dict.fromkeys(counts[:1] + counts[-1:])))}"


def _y(place: float) -> float:
    return _TOP + _LINE * (place + 0.5)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Where a value is between two places of the picture."""

    low: float
    high: float
    left: float = 162
    right: float = 378

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    def ticks(self) -> Iterator[float]:
        """Some three round numbers."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(f for f in (5, 2, 1) if f * step <= (self.high - self.low) / 2)
        first = math.ceil(self.low / step)
        while first * step <= self.high:
            yield first * step
            first += 1


def _accuracies(found: Sequence[Line]) -> Iterator[str]:
    ends = [0.0]
    for line in found:
        if line.accuracy:
            half = line.accuracy.half if math.isfinite(line.accuracy.half) else 0.0
            ends += [line.accuracy.mean - half, line.accuracy.mean + half]
    # An interval of two pairs may be wide as the picture: what is beyond 5 points is cut off.
    low, high = max(min(ends), -5.0), min(max(ends), 5.0)
    margin = 0.06 * (high - low) or 0.5
    scale = _Scale(low - margin, high + margin)
    bottom = _y(len(found) - 0.5)
    for tick in scale.ticks():
        kind = "zero" if tick == 0 else "grid"
        yield _line(scale.x(tick), _TOP, scale.x(tick), bottom, kind)
        yield _text(scale.x(tick), bottom + 18, f"{tick:+g}" if tick else "0", "small", "middle")
    for place, line in enumerate(found):
        if line.accuracy:
            yield from _interval(line, line.accuracy, scale, _y(place))


def _interval(line: Line, accuracy: paired.Difference, scale: _Scale, y: float) -> Iterator[str]:
    if math.isfinite(accuracy.half):
        low, high = accuracy.mean - accuracy.half, accuracy.mean + accuracy.half
        yield _line(scale.x(low), y, scale.x(high), y, "bar")
    kind = "dot" if line.whole else "dot part"
    yield f'<circle class="{kind}" cx="{scale.x(accuracy.mean):.1f}" cy="{y:.1f}" r="6"/>'
    if not line.whole:
        yield _text(scale.right + 4, y + 5, f"n={accuracy.count}", "small")


def _bars(found: Sequence[Line]) -> Iterator[str]:
    means = {line.name: statistics.fmean(line.traces.values()) for line in found if line.traces}
    if not means:
        yield _text(_BARS, _y(0) + 5, "not measured yet", "small")
        return
    scale = _Scale(0.0, max(means.values()), _BARS, 540)
    for place, line in enumerate(found):
        if line.name in means:
            width = max(scale.x(means[line.name]) - scale.left, 1.0)
            kind = "lsq" if line.name == "none" else "trace"
            y = _y(place)
            yield (
                f'<rect class="{kind}" x="{scale.left}" y="{y - 9:.1f}" width="{width:.1f}"'
                ' height="18" rx="3"/>'
            )
            yield _text(scale.left + width + 6, y + 5, f"{means[line.name]:.0f}")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{saxutils.escape(text)}</text>"
    )
