"""Rows of sweeps as Markdown tables: means over seeds, and paired differences.

Accuracies are those of the deployed file on the split that the rows name, in %, unless a column
says otherwise. Runs that failed are counted and have no accuracy.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import statistics
from typing import Any

from experiments import paired, selection, study
from experiments.config import Config

Row = Mapping[str, Any]
Cell = tuple[str, str, str, str]

# Fields that the name of a line has where they are not the defaults.
_NAMED = (
    *("noise_probability", "noise_position", "csd_weight", "quantizer"),
    *("task_weight", "mixup", "average_from", "stages"),
)

# Methods that others are compared with, by the name that a table gives them.
REFERENCES = {"LSQ": "none", "KD": "kd", "float": "float"}


@dataclasses.dataclass(frozen=True)
class Line:
    """The runs of one configuration but for the seed.

    Attributes:
      name: Methods, and what of their arguments is not the default.
      rows: Rows by seed.
    """

    name: str
    rows: Mapping[int, Row]

    def values(self, field: str) -> dict[int, float]:
        """Values of a field in % by seed, where there are some."""
        return {
            seed: 100 * row[field] for seed, row in self.rows.items() if row.get(field) is not None
        }

    def scores(self) -> dict[int, float]:
        """Accuracy in % by seed of the file, or of the network where there is no file."""
        return {
            seed: 100 * selection.score(row)
            for seed, row in self.rows.items()
            if "failed" not in row
        }


def cells(rows: Sequence[Row]) -> dict[Cell, list[Line]]:
    """Lines by dataset, regime, model and widths; the float network is in every cell of its model
    whose students have its weight decay.

    Rows on validation images are left out: they choose, and are no result. If a choice was made
    again, the earlier lines of the same name have their rate in it.
    """
    tested = [row for row in rows if row["split"] == "test"]
    found: dict[Cell, dict[str, dict[int, Row]]] = {}
    decays: dict[Cell, set[float]] = {}
    for row in tested:
        if row["methods"] != "float":
            found.setdefault(_cell(row), {}).setdefault(_line_key(row), {})[row["seed"]] = row
            decays.setdefault(_cell(row), set()).add(row["weight_decay"])
    for row in tested:
        for cell, lines in found.items():
            of_cell = cell[:3] == _cell(row)[:3] and row["weight_decay"] in decays[cell]
            if row["methods"] == "float" and of_cell:
                lines.setdefault(_line_key(row), {})[row["seed"]] = row
    return {
        cell: sorted(
            _named(lines.values()),
            key=lambda line: (line.name != "float", line.name != "none", line.name),
        )
        for cell, lines in found.items()
    }


def _named(lines: Iterable[Mapping[int, Row]]) -> Iterator[Line]:
    """Lines in the order of their rows; the last of a name has it alone."""
    by_name: dict[str, list[Mapping[int, Row]]] = {}
    for by_seed in lines:
        by_name.setdefault(name_of(next(iter(by_seed.values()))), []).append(by_seed)
    for name, (*earlier, last) in by_name.items():
        yield Line(name, last)
        for by_seed in earlier:
            yield Line(f"{name}, rate {next(iter(by_seed.values()))['learning_rate']}", by_seed)


def _cell(row: Row) -> Cell:
    return row["dataset"], row["regime"], row["model"], scheme(row)


def scheme(row: Row) -> str:
    """Widths of a row, as "W4A4"."""
    return f"W{row['weight_bits']}A{row['activation_bits']}"


def _line_key(row: Row) -> str:
    return study.key({**row["config"], "seed": None})


def name_of(row: Row) -> str:
    """Methods of a row, and their arguments where they are not the defaults."""
    config, parts = row["config"], []
    for field in dataclasses.fields(Config):
        if field.name in _NAMED:
            value = config.get(field.name, study.default(field))
            if value != study.default(field):
                parts.append(f"{field.name}={value}")
    for name, arguments in config.get("method_arguments", {}).items():
        parts += [f"{name}.{key}={value}" for key, value in arguments.items()]
    parts += [f"{name}={points}" for name, points in config.get("schedules", {}).items()]
    return row["methods"] + (f" ({', '.join(parts)})" if parts else "")


def comparison(lines: Sequence[Line]) -> str:
    """One cell: accuracies, and the paired differences to the references with their intervals."""
    references = {
        title: line.scores()
        for title, name in REFERENCES.items()
        for line in lines
        if line.name == name
    }
    head = ["methods", "rate", "decay", "n", "file", "student", "file, BN again", "train"]
    head += [f"minus {title}" for title in references]
    table = [head, ["---"] * len(head)]
    for line in lines:
        config = next(iter(line.rows.values()))["config"]
        texts = [line.name, config["learning_rate"], config["weight_decay"], len(line.scores())]
        texts += [
            spread(line.values(field))
            for field in (
                *("accuracy_tflite", "accuracy_student", "accuracy_tflite_reestimated"),
                "train_accuracy",
            )
        ]
        texts += [difference_text(line.scores(), scores) for scores in references.values()]
        table.append(texts)
    return markdown(table)


def difference_text(ours: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """A paired difference as text, in bold if its interval does not hold 0."""
    found = paired.difference(ours, reference)
    if found is None or ours == reference:
        return ""
    if found.count == 1:
        return f"{found.mean:+.2f} (n=1)"
    text = f"{found.mean:+.2f} ± {found.half:.2f} (n={found.count})"
    return f"**{text}**" if found.sign else text


def spread(values: Mapping[int, float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values.values()):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values.values()):.2f}{deviation}"


def sharpness(rows: Sequence[Row]) -> str:
    """Trace and largest eigenvalue of the loss's Hessian: mean over seeds, and paired differences
    of the logarithms to LSQ's as a ratio with its 95 % interval.
    """
    found: dict[tuple[Cell, str], dict[int, Row]] = {}
    for row in rows:
        found.setdefault((_cell(row), row["methods"]), {})[row["seed"]] = row
    head = ["model", "widths", "methods", "n", "trace", "largest eigenvalue", "trace / LSQ's"]
    table = [head, ["---"] * len(head)]
    for (cell, name), by_seed in found.items():
        logs, base = _log_traces(by_seed), _log_traces(found.get((cell, "none"), {}))
        columns = ({s: row[field] for s, row in by_seed.items()} for field in _OF_HESSIAN)
        texts = [cell[2], cell[3], name, len(by_seed), *(spread(values) for values in columns)]
        table.append([*texts, "" if name == "none" else _ratio(paired.difference(logs, base))])
    return markdown(table)


_OF_HESSIAN = ("hessian_trace", "top_eigenvalue")


def _log_traces(by_seed: Mapping[int, Row]) -> dict[int, float]:
    """Those that are positive, as traces at a minimum are."""
    traces = {seed: row["hessian_trace"] for seed, row in by_seed.items()}
    return {seed: math.log(trace) for seed, trace in traces.items() if trace > 0}


def _ratio(found: paired.Difference | None) -> str:
    if found is None:
        return ""
    if found.count == 1:
        return f"{math.exp(found.mean):.2f} (n=1)"
    low, high = (math.exp(found.mean + sign * found.half) for sign in (-1, 1))
    text = f"{math.exp(found.mean):.2f} [{low:.2f}, {high:.2f}] (n={found.count})"
    return f"**{text}**" if found.sign else text


def choices(rows: Sequence[Row]) -> str:
    """What validation saw: the mean score of every option, by cell."""
    found: dict[tuple[Cell, str, float, float, str], list[float]] = {}
    for row in rows:
        if row["split"] == "validation":
            epochs = f"{row['config']['float_epochs']} + {row['config']['epochs']}"
            rate, decay = row["learning_rate"], row["weight_decay"]
            key = (_cell(row), name_of(row), rate, decay, epochs)
            found.setdefault(key, []).append(100 * selection.score(row))
    head = ["model", "widths", "methods", "rate", "decay", "epochs", "n", "file, validation"]
    table = [head, ["---"] * len(head)]
    for (cell, *option), scores in found.items():
        mean = f"{statistics.fmean(scores):.2f}"
        table.append([cell[2], cell[3], *option, len(scores), mean])
    return markdown(table) if len(table) > 2 else ""


def means(rows: Sequence[Row]) -> str:
    """A line per quantizer and methods, a column per widths: mean and standard deviation."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        name = f"{row['quantizer']}, {row['methods']}{_computed(row['config'])}"
        groups.setdefault(name, {}).setdefault(scheme(row), []).append(row)
    schemes = sorted({widths for found in groups.values() for widths in found}, reverse=True)
    table = [["quantizer, methods", *schemes, "differing twin codes"], ["---"] * (len(schemes) + 2)]
    for name, found in groups.items():
        done = [row for group in found.values() for row in group if "failed" not in row]
        texts = [_mean_text(found.get(widths, [])) for widths in schemes]
        table.append([name, *texts, codes(done)])
    return markdown(table)


def _mean_text(rows: Sequence[Row]) -> str:
    found = {i: 100 * selection.score(row) for i, row in enumerate(rows) if "failed" not in row}
    return f"{spread(found)} (n={len(found)})" if found else "-"


def _computed(config: Mapping[str, Any]) -> str:
    """How a run computes, if not in float32 without XLA: teachers differ by it."""
    xla = ", XLA" if config.get("jit_compile") else ""
    precision = config.get("precision", "float32")
    return xla if precision == "float32" else f"{xla}, {precision}"


def codes(rows: Sequence[Row]) -> str:
    """Differing codes of twin and file, of all that were compared."""
    differing = sum(row["codes_differing"] for row in rows)
    return f"{differing} of {sum(row['codes_compared'] for row in rows):,}"


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """A line for every run that failed."""
    for row in rows:
        if "failed" in row:
            yield (
                f"{'/'.join(_cell(row)[2:])} {name_of(row)}, rate {row['learning_rate']}, seed"
                f" {row['seed']}, {row['split']}: {row['failed'].splitlines()[0]}"
            )


def markdown(table: Sequence[Sequence[Any]]) -> str:
    """Lines of cells as Markdown."""
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in table)
