r"""Runs a grid of experiments over seeds.

    python -m experiments.sweep --config=experiments/configs/interpolating.py --workers=2
    python -m experiments.sweep --dataset=fashion_mnist --quantizers=lsq,pact --schemes=W4A4,W2A4 \
        --seeds=0,1,2 --results=experiments/results/quantizers.jsonl

The runs come from a file that defines a `STUDY` (see experiments/study.py), in its order, or from
the flags. Every run is a line of JSON in the results, written when the run ends; runs that are in
it already are not repeated, and one that was killed goes on from its newest checkpoint. --workers=2
lets two processes share the runs, and several sweeps may run at once on one file, also on the same
grid: each run is taken by one of them. With --launcher=ray the runs are tasks of a Ray cluster. A
float teacher is trained once for all runs that agree in everything it depends on.
experiments.report makes tables of the rows.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import pathlib
import re
import sys
from typing import Any

from absl import app, flags

from experiments import data, launchers, run_folder, study
from experiments.config import PRECISIONS, Config
from tf_fpq import programs
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


def main(argv: Sequence[str]) -> int:
    """Runs what is missing."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    found = study_from_flags()
    try:
        well = _launch(found)
    except (data.DatasetMissingError, run_folder.OtherRunError, ImportError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{found.results}: {len(found.open_results().rows())} rows.")
    return 0 if well else 1


def _launch(found: study.Study) -> bool:
    """Lets the launcher of the flags do the runs; returns whether all went well."""
    workdir, workers = pathlib.Path(flags.FLAGS.sweep_workdir), flags.FLAGS.workers
    if flags.FLAGS.launcher == "processes":
        return launchers.in_processes(found, workdir, workers, flags.FLAGS.minutes)
    launchers.on_ray(
        found,
        workdir,
        workers,
        config=flags.FLAGS.config,
        address=flags.FLAGS.ray_address,
        gpus=flags.FLAGS.ray_gpus,
        minutes=flags.FLAGS.minutes,
    )
    return True


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("config", None, "A file that defines a STUDY; the flags of the grid rest.")
    flags.DEFINE_string("results", None, "JSON lines to append to; by default the study's.")
    flags.DEFINE_integer("workers", 1, "Runs at the same time.", lower_bound=1)
    flags.DEFINE_enum(
        "launcher",
        "processes",
        ["processes", "ray"],
        "Who does the runs: processes of this machine, or a Ray cluster.",
    )
    flags.DEFINE_string(
        "ray_address",
        None,
        "Of the Ray cluster, or auto for the one this machine is part of; without it one is started"
        " on this machine.",
    )
    flags.DEFINE_float("ray_gpus", 0.0, "GPUs that a run asks Ray for.", lower_bound=0.0)
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
