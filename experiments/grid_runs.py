"""One run of a grid: its folder, its float teacher, and the row that it becomes."""

import dataclasses
import hashlib
import json
import pathlib
import re
import time
from typing import Any

from experiments import pipeline, records, run_folder, study, trial
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.results_file import ResultsFile
from tf_fpq.keras_compat import keras

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


def folder_name(config: Config) -> str:
    """Folder of a run: readable, and another one for every other configuration."""
    scheme = f"W{config.weight_bits}A{config.activation_bits}"
    parts = (
        _plain_name(config.dataset),
        config.model,
        f"seed{config.seed}",
        scheme,
        config.quantizer,
    )
    return "_".join([*parts, "+".join(config.methods), _digest(study.key(study.plain(config)))])


def placed(config: Config, workdir: pathlib.Path) -> Config:
    """A run that has its folder in `workdir`."""
    return dataclasses.replace(config, workdir=str(workdir / folder_name(config)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def teacher_path(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Where the float teacher of a run is; its folder is named by all that it depends on."""
    name = "_".join(
        [
            _plain_name(config.dataset),
            config.model,
            f"seed{config.seed}",
            _digest(_identity(config)),
        ]
    )
    return workdir / "teachers" / name / "float.keras"


def _plain_name(dataset: str) -> str:
    """A dataset's name as part of a folder's: "folder:/home/birds" is "folder-home-birds"."""
    return re.sub(r"[^\w.]+", "-", dataset)


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
