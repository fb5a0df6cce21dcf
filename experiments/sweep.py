r"""Runs a grid of experiments over seeds.

    python -m experiments.sweep --config=experiments/configs/interpolating.py --workers=2
    python -m experiments.sweep --dataset=fashion_mnist --quantizers=lsq,pact --schemes=W4A4,W2A4 \
        --seeds=0,1,2 --results=experiments/results/quantizers.jsonl

The runs come from a file that defines a `STUDY` (see experiments/study.py), in its order, or from
the flags. Every run is a line of JSON in the results, written when the run ends; runs that are in
it already are not repeated, and one that was killed goes on from its newest checkpoint. --workers=2
lets two processes share the runs, and several sweeps may run at once on one file, also on the same
grid: each run is taken by one of them. A float teacher is trained once for all runs that agree in
everything it depends on. experiments.report makes tables of the rows.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import tqdm

from experiments import data, pipeline, records, run_folder, study, trial
from experiments.checkpoints import Checkpoints
from experiments.config import PRECISIONS, Config
from experiments.results_file import ResultsFile
from tf_fpq import programs
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import QUANTIZE_CONFIGS

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
    "validation_examples",
    "resolution",
    "shift",
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

# Seconds between two looks at runs that other processes are at.
_POLL_SECONDS = 5.0


def study_from_flags() -> study.Study:
    """The study that the flags name or describe.

    Raises:
      app.UsageError: If they do neither, or a flag is out of range.
    """
    try:
        if flags.FLAGS.config:
            found = study.load(flags.FLAGS.config)
            return dataclasses.replace(found, results=flags.FLAGS.results or found.results)
        if not flags.FLAGS.results:
            raise ValueError("--results or --config must be given. Received: neither.")
        shared = {name: flags.FLAGS[name].value for name in _SHARED}
        grid = list(configs(shared))
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error
    return study.Study(
        claim="", source="flags", results=flags.FLAGS.results, runs=lambda rows: grid
    )


def configs(shared: dict[str, Any]) -> Iterator[Config]:
    """The grid of the flags, seed by seed."""
    grid = itertools.product(
        flags.FLAGS.seeds, flags.FLAGS.schemes, flags.FLAGS.quantizers, flags.FLAGS.method_sets
    )
    for seed, scheme, quantizer, methods in grid:
        match = re.fullmatch(r"W(\d)A(\d)", scheme)
        if match is None:
            raise app.UsageError(f"--schemes must be like W4A4. Received: {scheme!r}.")
        yield Config(
            **shared,
            weight_bits=int(match[1]),
            activation_bits=int(match[2]),
            quantizer=quantizer,
            methods=tuple(methods.split("+")),
            seed=int(seed),
        )


def folder_name(config: Config) -> str:
    """Folder of a run: readable, and another one for every other configuration."""
    scheme = f"W{config.weight_bits}A{config.activation_bits}"
    parts = (config.dataset, config.model, f"seed{config.seed}", scheme, config.quantizer)
    return "_".join([*parts, "+".join(config.methods), _digest(study.key(study.plain(config)))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def teacher_path(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Where the float teacher of a run is; its folder is named by all that it depends on."""
    name = f"{config.dataset}_{config.model}_seed{config.seed}_{_digest(_identity(config))}"
    return workdir / "teachers" / name / "float.keras"


def _identity(config: Config) -> str:
    fields = study.plain(config.of_teacher())
    return json.dumps({name: fields[name] for name in _OF_TEACHER}, indent=1)


def teacher(config: Config, results: ResultsFile) -> str:
    """Path of the configuration's float teacher, trained if it is not there.

    Its folder holds all that it depends on as a file, too. While one process trains it, others that
    need it wait.
    """
    path = teacher_path(config, pathlib.Path(config.workdir).parent)
    with results.claim(f"teacher {path.parent.name}", wait=True):
        if not path.exists():
            records.prepare_workdir(str(path.parent))
            pipeline.seed_everything(config)
            model, _ = pipeline.float_teacher(
                config,
                pipeline.load(config),
                watch=False,
                checkpoints=Checkpoints(
                    path.with_name("checkpoints"), seconds=trial.SECONDS_BETWEEN_CHECKPOINTS
                ),
            )
            records.write_text(path.with_name("depends_on.json"), _identity(config) + "\n")
            records.write_whole(path, model.save)
        run_folder.remove_leftovers(path.parent)
    return str(path)


def run(config: Config, results: ResultsFile, regime: str = "") -> dict[str, Any]:
    """One run's row: what it is, its figures, and the whole configuration."""
    # Not of the run: the teacher's time, which the first run of a seed would have alone.
    path = teacher(config, results)
    started = time.process_time()
    row = {**labels(config, regime), "commit": records.commit(), "config": study.plain(config)}
    try:
        row |= trial.run(dataclasses.replace(config, teacher=path))
    except (ValueError, ArithmeticError) as error:
        row["failed"] = f"{type(error).__name__}: {error}"
        row["seconds"] = round(time.process_time() - started, 1)
    keras.backend.clear_session()
    return row


def labels(config: Config, regime: str) -> dict[str, Any]:
    """What a row's run is, for tables."""
    return {
        "dataset": config.dataset,
        "split": "validation" if config.validation_examples else "test",
        "regime": regime,
        "model": config.model,
        "quantizer": config.quantizer,
        "methods": "+".join(config.methods),
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
    }


def run_missing(found: study.Study, workdir: pathlib.Path, minutes: float | None = None) -> None:
    """Runs what is in no row yet and no other process is at, until all rows are there.

    Args:
      found: The study. Its runs are asked for again after each one, as some follow from others.
      workdir: Folder of teachers and students.
      minutes: No run is begun after so many minutes; None for no end.
    """
    results = found.open_results()
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with tqdm.tqdm(unit="run", file=sys.stderr, smoothing=0) as bar:
        while end is None or time.monotonic() < end:
            rows = results.rows()
            missing = found.missing(rows)
            _show(bar, len(found.known(rows)), len(missing))
            if not missing:
                return
            if not run_one(missing, results, found.regime, workdir):
                time.sleep(_POLL_SECONDS)


def run_one(
    missing: Sequence[Config], results: ResultsFile, regime: str, workdir: pathlib.Path
) -> bool:
    """Runs the first that no other process is at; returns whether there was one."""
    for config in missing:
        name = study.key(study.plain(config))
        with results.claim(name) as mine:
            if mine and name not in results.keys():
                placed = dataclasses.replace(config, workdir=str(workdir / folder_name(config)))
                results.add(run(placed, results, regime))
                return True
    return False


def _show(bar: tqdm.tqdm, known: int, missing: int) -> None:
    """Puts all processes' progress into the bar, whose ETA follows from it."""
    if bar.total is None:
        bar.initial = bar.n = known - missing
    bar.total = known
    bar.update(known - missing - bar.n)
    bar.refresh()


def main(argv: Sequence[str]) -> int:
    """Runs what is missing."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    found = study_from_flags()
    others = [_other_worker() for _ in range(flags.FLAGS.workers - 1)]
    try:
        run_missing(found, pathlib.Path(flags.FLAGS.sweep_workdir), flags.FLAGS.minutes)
    except (data.DatasetMissingError, run_folder.OtherRunError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    finally:
        codes = [process.wait() for process in others]
    print(f"{found.results}: {len(found.open_results().rows())} rows.")
    return 1 if any(codes) else 0


def _other_worker() -> subprocess.Popen:
    """The same command as one worker, whose progress our own bar shows."""
    command = [sys.executable, "-m", "experiments.sweep", *sys.argv[1:], "--workers=1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("config", None, "A file that defines a STUDY; the flags of the grid rest.")
    flags.DEFINE_string("results", None, "JSON lines to append to; by default the study's.")
    flags.DEFINE_integer("workers", 1, "Processes that share the runs.", lower_bound=1)
    flags.DEFINE_float("minutes", None, "Begin no run after so many minutes.")
    flags.DEFINE_list("quantizers", list(QUANTIZE_CONFIGS), "Base quantizers.")
    flags.DEFINE_list("method_sets", ["none"], "Sets of methods, joined by +, as fpq or fpq+cr.")
    flags.DEFINE_list("schemes", ["W4A4"], "Bit widths, as W4A4.")
    flags.DEFINE_list(
        "seeds", ["0", "1", "2", "3", "4"], "Seeds; each has its own teacher, data order and noise."
    )
    flags.DEFINE_string("sweep_workdir", "runs/sweep", "Folder for teachers and exported models.")
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
