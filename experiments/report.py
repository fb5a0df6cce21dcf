r"""Makes tables and plots of a study's rows, and writes them into experiments/README.md.

    python -m experiments.report --config=experiments/configs/interpolating.py
    python -m experiments.report --config=experiments/configs/interpolating.py \
        --picture=docs/evidence.svg
    python -m experiments.report --results=experiments/results/quantizers.jsonl

With --config a section of --markdown is written, with a table for each cell (accuracies, and
differences paired over seeds with their 95 % intervals) and a plot beside the rows. --picture draws
one cell for readers: accuracy beside the Hessian's trace. With --results alone the means are
printed.
"""

from collections.abc import Sequence
import pathlib

from absl import app, flags

from experiments import analyze, overview, plots, records, study, tables
from tf_fpq import programs

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> None:
    """Prints, or writes the section."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    if not FLAGS.config:
        if not FLAGS.results:
            raise app.UsageError("--config or --results must be given. Received: neither.")
        print(tables.means(study.results_file(FLAGS.results).rows()))
        return
    try:
        found = study.load(FLAGS.config)
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error
    path = pathlib.Path(FLAGS.results or found.results)
    rows = study.results_file(path).rows()
    plot = path.with_suffix(".png")
    has_plot = plots.differences(rows, plot)
    text = section(found, rows, FLAGS.config, plot if has_plot else None)
    if FLAGS.picture:
        _picture(rows)
    if FLAGS.markdown:
        name = pathlib.Path(FLAGS.config).stem
        marks = (f"<!-- {name}: made by experiments.report -->", f"<!-- end of {name} -->")
        records.write_section(pathlib.Path(FLAGS.markdown), marks, text)
    print(text)


def _picture(rows: Sequence[tables.Row]) -> None:
    """Draws the cell of the flags."""
    measured = analyze.results_file(FLAGS.sharpness).rows()
    found = overview.lines(rows, measured, FLAGS.model, FLAGS.scheme)
    title = f"{FLAGS.model} at {FLAGS.scheme}, test images, each at its own rate"
    if not overview.write(found, title, pathlib.Path(FLAGS.picture)):
        print(f"{FLAGS.picture} is not drawn: no pair of test rows of {title}.")


def section(
    found: study.Study, rows: Sequence[tables.Row], config: str, plot: pathlib.Path | None
) -> str:
    """The Markdown of a study: what was claimed, what was found, what is missing."""
    known, missing = found.progress(rows)
    parts = [
        f"**{found.claim}** ({found.source})",
        f"    python -m experiments.sweep --config={config} --workers=2",
        f"{known - len(missing)} of {known} runs that are known so far are done; a row took"
        f" {_seconds(rows)} s of CPU (median). Hardware: {found.hardware or 'any'}."
        f"{' Time: ' + found.time + '.' if found.time else ''}",
    ]
    if found.expected:
        parts.append(_expected(found))
    for (dataset, regime, model, scheme), lines in tables.cells(rows).items():
        parts.append(f"#### {model}, {scheme} ({dataset}, {regime})")
        parts.append(tables.comparison(lines))
    tested = [row for row in rows if row["split"] == "test" and "failed" not in row]
    if tested:
        parts.append(f"Twin and file: {tables.codes(tested)} codes differ.")
    if plot is not None:
        parts.append(f"![Paired differences]({plot.parent.name}/{plot.name})")
    if chosen := tables.choices(rows):
        title = "<details><summary>What was chosen on validation images</summary>"
        parts.append(f"{title}\n\n{chosen}\n\n</details>")
    if failed := list(tables.failures(rows)):
        parts.append("Failed runs:\n\n" + "\n".join(f"- {line}" for line in failed))
    return "\n\n".join(parts)


def _seconds(rows: Sequence[tables.Row]) -> str:
    seconds = sorted(row["seconds"] for row in rows)
    return f"{seconds[len(seconds) // 2]:.0f}" if seconds else "-"


def _expected(found: study.Study) -> str:
    table = [["expected of", "%"], ["---", "---"], *map(list, found.expected.items())]
    return tables.markdown(table)


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("config", None, "A file that defines a STUDY.")
    flags.DEFINE_string("results", None, "Rows; by default the study's.")
    flags.DEFINE_string(
        "picture", None, "SVG of one cell: accuracy beside flatness; none without it."
    )
    flags.DEFINE_string("model", "resnet8", "Network of the picture.")
    flags.DEFINE_string("scheme", "W2A2", "Widths of the picture.")
    flags.DEFINE_string(
        "sharpness", analyze.RESULTS, "Rows of experiments.analyze, for the picture."
    )
    flags.DEFINE_string(
        "markdown", "experiments/README.md", "File whose section is written; '' for none."
    )


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
