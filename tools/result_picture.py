"""Draws docs/result.svg, the picture in the README, from the rows of the results files.

python -m tools.result_picture            writes it

Left: accuracy of `.tflite` files by bit width (LSQ, experiments/results/quantizers.jsonl). Right:
how many output codes of the trained Keras model the file has, here and with tfmot
(experiments/results/beside_tfmot.jsonl).
"""

from collections.abc import Iterable, Mapping
import json
import pathlib
import statistics
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/results"
PICTURE = ROOT / "docs/result.svg"
OURS, THEIRS, INK, GREY = "#2a6fbb", "#b9bec6", "#222", "#666"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def accuracies(found: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Accuracy in % over seeds, of the float teachers and of LSQ's files by scheme."""
    result: dict[str, list[float]] = {"float": []}
    for row in found:
        config, metrics = row["config"], row["metrics"]
        if config["quantizer"] == "lsq":
            scheme = f"W{config['weight_bits']}A{config['activation_bits']}"
            result.setdefault(scheme, []).append(100 * metrics["tflite_accuracy"])
            if scheme == "W4A4":  # all schemes of a seed share its teacher
                result["float"].append(100 * metrics["float_accuracy"])
    return result


def shared_codes(found: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Mean share in % of output codes that Keras model and file share, by network and library."""
    shares: dict[tuple[str, str], list[float]] = {}
    for row in found:
        for side in ("ours", "tfmot"):
            share = 100 * (1 - row[side]["differing"] / row[side]["codes"])
            shares.setdefault((row["network"], side), []).append(share)
    return {key: statistics.mean(values) for key, values in shares.items()}


def svg() -> str:
    """The picture."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 290"'
        ' font-family="system-ui, sans-serif" font-size="14">',
        '<rect width="860" height="290" rx="8" fill="#fff"/>',
        _text(30, 34, "Accuracy of the .tflite file, %", bold=True),
        _text(30, 54, "Fashion-MNIST, resnet8, LSQ; mean and spread of 3 seeds"),
        *_dots(accuracies(rows("quantizers.jsonl"))),
        _text(460, 34, "Output codes that Keras model and file share, %", bold=True),
        _text(460, 54, "W8A8, the same float network and training on both sides"),
        *_bars(shared_codes(rows("beside_tfmot.jsonl"))),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _dots(values: Mapping[str, list[float]], low: int = 81, high: int = 85) -> list[str]:
    def y(value: float) -> float:
        return 250 - 170 * (value - low) / (high - low)

    parts = [
        f'<line x1="70" x2="400" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e3e6ea"/>'
        + _text(60, y(tick) + 5, f"{tick}", anchor="end")
        for tick in range(low, high + 1)
    ]
    for index, (name, found) in enumerate(values.items()):
        x, mean, spread = 120 + 110 * index, statistics.mean(found), statistics.stdev(found)
        colour = GREY if name == "float" else OURS
        parts += [
            f'<line x1="{x}" x2="{x}" y1="{y(mean - spread):.1f}" y2="{y(mean + spread):.1f}"'
            f' stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x}" cy="{y(mean):.1f}" r="7" fill="{colour}"/>',
            _text(x + 14, y(mean) + 5, f"{mean:.2f}", colour=INK),
            _text(x, 276, name, anchor="middle", colour=INK),
        ]
    return parts


def _bars(shares: Mapping[tuple[str, str], float]) -> list[str]:
    parts, y = [], 76
    for network in dict.fromkeys(network for network, _ in shares):
        parts.append(_text(460, y + 14, network, colour=INK))
        for side, label, colour in (("ours", "tf_fpq", OURS), ("tfmot", "tfmot 0.8.1", THEIRS)):
            share = shares[network, side]
            y += 26
            parts += [
                _text(560, y + 14, label, anchor="end"),
                f'<rect x="570" y="{y}" width="{2.2 * share:.1f}" height="20" fill="{colour}"/>',
                _text(576 + 2.2 * share, y + 15, f"{share:.1f}", colour=INK),
            ]
        y += 42
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = GREY, bold: bool = False
) -> str:
    weight = f' font-weight="bold" fill="{INK}"' if bold else f' font-size="12.5" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(svg())
