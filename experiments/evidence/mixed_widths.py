r"""Mixed widths beside one width, at the same bytes of weights: does `suggest_rules` pay?

For each seed a float network is trained. `tf_fpq.sensitivity` looks at calibration images out of
the training set, and `suggest_rules` chooses widths that cost no more bytes than one width for all
kernels. Both students are calibrated, trained by the plain base quantizer with the same batches,
and evaluated on the test images, before and after the training. The test images choose nothing.

Rows are appended to --json, one JSON object a line for each seed, width and way. Rows that are
there already are skipped, so an interrupted run goes on where it stopped.

Examples:

  Five seeds on digits, and the table (some minutes). With --seeds= only the table.
    python -m experiments.evidence.mixed_widths --json=experiments/results/mixed_widths.jsonl
"""

from collections.abc import Sequence
import math
from typing import Any

from absl import app, flags
import numpy as np
import tqdm

from experiments import data, paired, pipeline, records
from experiments.config import Config
from experiments.results_file import ResultsFile
import tf_fpq
from tf_fpq import programs
from tf_fpq.keras_compat import keras

Row = dict[str, Any]

WAYS = ("uniform", "mixed")
KEYS = ("dataset", "train_examples", "model", "weight_bits", "activation_bits", "seed", "widths")
# Measured widths: those that a kernel may get.
MEASURED = (2, 3, 4, 5, 6, 8)

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> None:
    """Measures what the flags name, and prints the table of all rows."""
    if len(argv) > 1 or not FLAGS.json:
        raise app.UsageError(
            "Flags only, and --json=FILE among them: the file that the rows are appended to."
        )
    results = ResultsFile(FLAGS.json, _key)
    for seed in tqdm.tqdm([int(seed) for seed in FLAGS.seeds], unit="seed"):
        _measure(results, seed)
    print(table(results.rows()))


def _measure(results: ResultsFile, seed: int) -> None:
    """Adds the rows of one seed that are not there yet."""
    keys = results.keys()
    todo = [
        (config, way)
        for config in (_config(seed, int(bits)) for bits in FLAGS.weight_bits)
        for way in WAYS
        if _key(_named(config, way)) not in keys
    ]
    if not todo:
        return
    keras.utils.set_random_seed(seed)
    dataset = pipeline.load(todo[0][0])
    teacher, _ = pipeline.float_teacher(todo[0][0], dataset)
    images = dataset.calibration_images(todo[0][0].calibration_examples, seed)
    found = tf_fpq.sensitivity(teacher, images, bits=MEASURED, verbose=0)
    for config, way in todo:
        results.add(_row(config, way, teacher, dataset, images, found))


def _row(
    config: Config,
    way: str,
    teacher: keras.Model,
    dataset: data.Dataset,
    images: np.ndarray,
    found: tf_fpq.Sensitivity,
) -> Row:
    rules = [tf_fpq.QuantRule(weight_bits=config.weight_bits, activation_bits=8)]
    student = tf_fpq.quantize_model(teacher, rules)
    if way == "mixed":
        budget = tf_fpq.summary(student).bytes
        rules = list(tf_fpq.suggest_rules(found, weight_bytes=budget).rules)
        student = tf_fpq.quantize_model(teacher, rules)
    tf_fpq.calibrate(student, images, verbose=0)
    calibrated = pipeline.accuracy(student, dataset)
    pipeline.train_student(config, student, teacher, dataset)
    return {
        **_named(config, way),
        "bytes": tf_fpq.summary(student).bytes,
        "rules": [str(rule) for rule in rules],
        "accuracy_float": pipeline.accuracy(teacher, dataset),
        "accuracy_calibrated": calibrated,
        "accuracy_student": pipeline.accuracy(student, dataset),
        "commit": records.commit(),
    }


def _config(seed: int, weight_bits: int) -> Config:
    return Config(
        dataset=FLAGS.dataset,
        train_examples=FLAGS.train_examples,
        model=FLAGS.model,
        weight_bits=weight_bits,
        activation_bits=8,
        methods=("none",),
        epochs=FLAGS.epochs,
        float_epochs=FLAGS.float_epochs,
        seed=seed,
    )


def _key(row: Row) -> str:
    return " ".join(str(row[name]) for name in KEYS)


def _named(config: Config, way: str) -> Row:
    return {name: getattr(config, name) for name in KEYS[:-1]} | {"widths": way}


def table(rows: Sequence[Row]) -> str:
    """The paired difference of mixed and uniform widths by network and width, in Markdown."""
    lines = [
        "| dataset | model | uniform | bytes, mixed/uniform | seeds | float | uniform, calibrated"
        " | mixed - uniform, calibrated | uniform, trained | mixed - uniform, trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in dict.fromkeys(tuple(row[name] for name in KEYS[:5]) for row in rows):
        by_way = {
            way: {
                row["seed"]: row
                for row in rows
                if tuple(row[name] for name in KEYS[:5]) == cell and row["widths"] == way
            }
            for way in WAYS
        }
        seeds = sorted(set(by_way["uniform"]) & set(by_way["mixed"]))
        if seeds:
            pairs = [(by_way["uniform"][seed], by_way["mixed"][seed]) for seed in seeds]
            lines.append(_line(cell, pairs))
    return "\n".join(lines)


def _line(cell: tuple[Any, ...], pairs: Sequence[tuple[Row, Row]]) -> str:
    dataset, _, model, weight_bits, activation_bits = cell
    cells = [
        dataset,
        model,
        f"W{weight_bits}A{activation_bits}",
        f"{np.mean([mixed['bytes'] / uniform['bytes'] for uniform, mixed in pairs]):.3f}",
        str(len(pairs)),
        f"{100 * np.mean([uniform['accuracy_float'] for uniform, _ in pairs]):.2f}",
    ]
    for name in ("accuracy_calibrated", "accuracy_student"):
        uniform, mixed = ({row["seed"]: 100 * row[name] for row in rows} for rows in zip(*pairs))
        cells.append(f"{np.mean(list(uniform.values())):.2f}")
        cells.append(_text(paired.difference(mixed, uniform)))
    return f"| {' | '.join(cells)} |"


def _text(found: paired.Difference | None) -> str:
    """A mean with its 95 % interval; one pair has none."""
    assert found is not None  # only cells with pairs have a line
    return f"{found.mean:+.2f}" + (f" ± {found.half:.2f}" if math.isfinite(found.half) else "")


def _define_flags() -> None:
    flags.DEFINE_string("json", None, "File that the rows are appended to, as JSON lines.")
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds; none prints the table only.")
    flags.DEFINE_list("weight_bits", ["3", "4"], "Uniform widths whose bytes are the budgets.")
    flags.DEFINE_enum("dataset", "digits", data.DATASETS, "Images.")
    flags.DEFINE_integer("train_examples", None, "Training images; all by default.", lower_bound=1)
    flags.DEFINE_string("model", "resnet8", "Network, as experiments.train has them.")
    flags.DEFINE_integer("epochs", 10, "Epochs of the students.", lower_bound=0)
    flags.DEFINE_integer("float_epochs", 20, "Epochs of the float networks.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
