"""Plots of rows: paired differences with their intervals."""

from collections.abc import Sequence
import pathlib

from matplotlib import figure

from experiments import paired, records, tables

# Inches of a line of the plot: two lines of small print fit.
_LINE = 0.32


def differences(rows: Sequence[tables.Row], path: pathlib.Path) -> bool:
    """Draws the differences to LSQ, a panel for each cell.

    A dot is the mean, a bar the 95 % interval, small marks are the pairs.

    Args:
      rows: All rows of a study.
      path: Picture to write.

    Returns:
      Whether there was anything to draw: two pairs of anything with LSQ.
    """
    panels = {cell: _panel(lines) for cell, lines in tables.cells(rows).items()}
    panels = {cell: panel for cell, panel in panels.items() if panel}
    if not panels:
        return False
    heights = [1 + len(panel) for panel in panels.values()]
    drawn = figure.Figure(figsize=(7.5, 0.8 + _LINE * sum(heights)), layout="constrained")
    axes = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axis, (cell, panel) in zip(axes, panels.items(), strict=True):
        for place, (_, found, pairs) in enumerate(panel):
            axis.plot(pairs, [place] * len(pairs), "|", color="0.6")
            axis.errorbar(found.mean, place, xerr=found.half, fmt="o", color="C0", capsize=3)
            axis.text(
                1.01, place, f"n={found.count}", va="center", transform=axis.get_yaxis_transform()
            )
        names = [name.replace(" (", "\n(") for name, _, _ in panel]
        axis.set_yticks(range(len(panel)), names, fontsize="small")
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{cell[2]}, {cell[3]} ({cell[1]})", loc="left", fontsize="medium")
    drawn.supxlabel(
        "test accuracy minus LSQ's, points; mean and 95 % interval of the pairs", fontsize="medium"
    )
    records.write_whole(path, lambda temporary: drawn.savefig(temporary, dpi=110))
    return True


def _panel(lines: Sequence[tables.Line]) -> list[tuple[str, paired.Difference, list[float]]]:
    base = next((line.scores() for line in lines if line.name == tables.REFERENCES["LSQ"]), {})
    panel = []
    for line in lines:
        ours = line.scores()
        found = paired.difference(ours, base)
        if found is not None and found.count > 1 and ours != base:
            panel.append((line.name, found, [ours[s] - base[s] for s in ours.keys() & base.keys()]))
    return panel
