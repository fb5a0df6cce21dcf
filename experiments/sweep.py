r"""Runs a grid of experiments over seeds and prints mean and standard deviation.

    python -m experiments.sweep --dataset=fashion_mnist --quantizers=lsq,pact --schemes=W4A4,W2A4 \
        --seeds=0,1,2 --results=experiments/results/quantizers.jsonl

Every run is a line of JSON in --results, written when the run ends; runs that are in it already are
not repeated, so a sweep that was stopped goes on where it was. Several sweeps may run at once on
one file, one for each core, also on the same grid: each run is taken by one of them. A float
teacher is trained once for all runs that agree in everything it depends on. --table prints the
table of what is there and runs nothing.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import statistics
import sys
import time
from typing import Any

from absl import app, flags
import tqdm

from experiments import pipeline, records
from experiments.config import PRECISIONS, Config
from experiments.results_file import ResultsFile
from tf_fpq import programs
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import QUANTIZE_CONFIGS
import tflite_export

_SHARED = (
    "dataset",
    "model",
    "data_dir",
    "fashion_mnist_dir",
    "train_examples",
    "width",
    "float_epochs",
    "epochs",
    "batch_size",
    "learning_rate",
    "jit_compile",
    "precision",
)

# What a float teacher depends on.
_OF_TEACHER = (
    "dataset",
    "train_examples",
    "model",
    "width",
    "float_epochs",
    "float_learning_rate",
    "batch_size",
    "weight_decay",
    "augment",
    "jit_compile",
    "precision",
    "seed",
)

# What makes two runs the same run.
_KEY = (
    "dataset",
    "model",
    "train_examples",
    "width",
    "float_epochs",
    "epochs",
    "batch_size",
    "learning_rate",
    "quantizer",
    "methods",
    "weight_bits",
    "activation_bits",
    "seed",
    "jit_compile",
    "precision",
)


def configs(shared: dict[str, Any], workdir: pathlib.Path) -> Iterator[Config]:
    """The grid, seed by seed."""
    grid = itertools.product(
        flags.FLAGS.seeds, flags.FLAGS.schemes, flags.FLAGS.quantizers, flags.FLAGS.method_sets
    )
    for seed, scheme, quantizer, methods in grid:
        match = re.fullmatch(r"W(\d)A(\d)", scheme)
        if match is None:
            raise app.UsageError(f"--schemes must be like W4A4. Received: {scheme!r}.")
        config = Config(
            **shared,
            weight_bits=int(match[1]),
            activation_bits=int(match[2]),
            quantizer=quantizer,
            methods=tuple(methods.split("+")),
            seed=int(seed),
            kernels=("xnnpack",),
            min_top1_agreement=0.0,
            workdir=str(workdir),
        )
        yield dataclasses.replace(config, workdir=str(workdir / folder_name(config)))


def _scale_of(config: dict[str, Any]) -> str:
    """How a run computes, if not in float32 without XLA: teachers differ by it."""
    xla = "_xla" if config.get("jit_compile") else ""
    precision = config.get("precision", Config.precision)
    return xla if precision == Config.precision else f"{xla}_{precision}"


def key(config: dict[str, Any]) -> str:
    """What identifies a run; a line that was written before a field existed has its default."""
    return json.dumps([config.get(name, getattr(Config, name, None)) for name in _KEY])


def results_file(path: str) -> ResultsFile:
    """The rows of sweeps, by the key of their configuration."""
    return ResultsFile(path, lambda row: key(row["config"]))


def folder_name(config: Config) -> str:
    """Folder of a run: readable, and another one for every other configuration."""
    scheme = f"W{config.weight_bits}A{config.activation_bits}"
    parts = (config.dataset, config.model, f"seed{config.seed}", scheme, config.quantizer)
    return "_".join([*parts, "+".join(config.methods), _digest(key(_plain(config)))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plain(config: Config) -> dict[str, Any]:
    """The configuration as a line of results holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def teacher(config: Config, results: ResultsFile) -> str:
    """Path of the configuration's float teacher, trained if it is not there.

    Its folder is named by everything that the teacher depends on, and holds that as a file, too.
    While one process trains it, others that need it wait.
    """
    identity = json.dumps({name: _plain(config)[name] for name in _OF_TEACHER}, indent=1)
    name = f"{config.dataset}_{config.model}_seed{config.seed}_{_digest(identity)}"
    folder = pathlib.Path(config.workdir).parent / "teachers" / name
    path = folder / "float.keras"
    with results.claim(f"teacher {name}", wait=True):
        if not path.exists():
            records.prepare_workdir(str(folder))
            keras.utils.set_random_seed(config.seed)
            keras.mixed_precision.set_global_policy(config.precision)
            model, _ = pipeline.float_teacher(config, pipeline.load(config))
            records.write_text(folder / "depends_on.json", identity + "\n")
            records.write_whole(path, model.save)
    return str(path)


def run(config: Config, results: ResultsFile) -> dict[str, Any]:
    """One run's line."""
    started = time.time()
    line: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "commit": records.commit(),
        "status": "verified",
    }
    try:
        line["metrics"] = pipeline.run(
            dataclasses.replace(config, teacher=teacher(config, results))
        )["metrics"]
    except (tflite_export.VerificationError, ValueError) as error:
        line |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    keras.backend.clear_session()
    return {**line, "seconds": round(time.time() - started, 1)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: test accuracy in %, mean and standard deviation over seeds; a row per quantizer and
    methods.
    """
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for line in lines:
        config = line["config"]
        scheme = f"W{config['weight_bits']}A{config['activation_bits']}"
        row = (
            config["quantizer"],
            "+".join(config["methods"]) + _scale_of(config).replace("_", " ", 1),
        )
        groups.setdefault(row, {}).setdefault(scheme, []).append(line)
    schemes = sorted({scheme for row in groups.values() for scheme in row}, reverse=True)
    teachers = {
        (line["config"]["seed"], line["metrics"]["float_accuracy"])
        for line in lines
        if line["status"] == "verified"
    }
    rows = [
        ["quantizer", "methods", *schemes, "differing twin codes"],
        ["---"] * (len(schemes) + 3),
    ]
    rows.append(
        ["float", "", *[_spread([accuracy for _, accuracy in teachers])] * len(schemes), ""]
    )
    for (quantizer, methods), by_scheme in groups.items():
        cells = [_spread(_accuracies(by_scheme.get(scheme, []))) for scheme in schemes]
        done = [
            line["metrics"]
            for found in by_scheme.values()
            for line in found
            if line["status"] == "verified"
        ]
        differing = sum(metrics["codes_differing"] for metrics in done)
        compared = sum(metrics["codes_compared"] for metrics in done)
        rows.append([quantizer, methods, *cells, f"{differing} of {compared:,}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _accuracies(lines: Sequence[dict[str, Any]]) -> list[float]:
    return [line["metrics"]["tflite_accuracy"] for line in lines if line["status"] == "verified"]


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return "-"
    percent = [100 * share for share in shares]
    deviation = f" ± {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.2f}{deviation} (n={len(percent)})"


def main(argv: Sequence[str]) -> None:
    """Runs what is missing and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    shared = {name: flags.FLAGS[name].value for name in _SHARED}
    try:
        grid = list(configs(shared, pathlib.Path(flags.FLAGS.sweep_workdir)))
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    results = results_file(flags.FLAGS.results)
    if not flags.FLAGS.table:
        run_missing(grid, results)
    print(table(results.rows()))


def run_missing(grid: Sequence[Config], results: ResultsFile) -> None:
    """Runs what is in no row yet and what no other process is at."""
    for config in tqdm.tqdm(grid, unit="run", file=sys.stderr):
        name = key(_plain(config))
        with results.claim(name) as mine:
            if mine and name not in results.keys():
                results.add(run(config, results))


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("results", None, "JSON lines to append to.", required=True)
    flags.DEFINE_list("quantizers", list(QUANTIZE_CONFIGS), "Base quantizers.")
    flags.DEFINE_list("method_sets", ["none"], "Sets of methods, joined by +, as fpq or fpq+cr.")
    flags.DEFINE_list("schemes", ["W4A4"], "Bit widths, as W4A4.")
    flags.DEFINE_list(
        "seeds", ["0", "1", "2", "3", "4"], "Seeds; each has its own teacher, data order and noise."
    )
    flags.DEFINE_string("sweep_workdir", "runs/sweep", "Folder for teachers and exported models.")
    flags.DEFINE_bool("table", False, "Only print the table.")
    flags.DEFINE_string("dataset", "fashion_mnist", "Dataset.")
    flags.DEFINE_string("model", "resnet8", "Network.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory.")
    flags.DEFINE_string(
        "fashion_mnist_dir",
        Config.fashion_mnist_dir,
        "Folder with the four IDX files of Fashion-MNIST.",
    )
    flags.DEFINE_integer("train_examples", None, "Use only so many training images.")
    flags.DEFINE_integer("width", Config.width, "Channels of the first stage.")
    flags.DEFINE_integer("float_epochs", 4, "Epochs of the float teacher.")
    flags.DEFINE_integer("epochs", 2, "Epochs of quantization-aware training.")
    flags.DEFINE_integer("batch_size", 128, "Images per step.")
    flags.DEFINE_bool("jit_compile", False, "Compile the training steps with XLA.")
    flags.DEFINE_enum("precision", Config.precision, PRECISIONS, "Mixed precision policy.")
    flags.DEFINE_float(
        "learning_rate", Config.learning_rate, "First rate of quantization-aware training."
    )


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
