r"""Exactness at scale: every code of 10,000 test images, in twin, file and runtimes.

For each network and scheme: a float network trained on some images, quantized, calibrated, trained
on the same images once more and exported. Compared are the output codes of all test images (twin
and XNNPACK, double-rounding twin and reference kernels), all tensors of 64 images, and the runtimes
elsewhere (ARM, TensorFlow Lite Micro) on 200 images. A scheme of 4 bits or less is exported with
packed INT4 weights too, on 1,000 images.

Rows are appended to --json, one JSON object a line. Rows that are there already are skipped, so an
interrupted run goes on where it stopped; the float networks are kept in --workdir.

Examples:

  Everything (about an hour on two cores), and the table.
    pip install --pre tflite-micro; python -m tflite_export.runtimes.arm_rig
    python -m experiments.evidence.exactness --json=experiments/results/exactness.jsonl \
        --markdown=docs/exactness.md

  Seconds and memory of export and verification, on 1,000 and on 10,000 images.
    python -m experiments.evidence.exactness --networks=resnet20 --schemes=W4A4 --cost \
        --json=experiments/results/exactness.jsonl

  A look at one network.
    python -m experiments.evidence.exactness --networks=resnet8 --schemes=W4A4 \
        --json=/tmp/rows.jsonl --images=500 --runtimes=
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import re
import shlex
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from experiments import records
from experiments.evidence import exactness_table, process_memory
from tf_fpq import programs

NETWORKS = ("resnet8", "resnet20", "mobilenet_v2_tiny")
SCHEMES = ("W8A8", "W4A4", "W2A2")
RUNTIMES = ("arm", "tflm")
INT4_IMAGES = 1000
COST_IMAGES = (1000, 10_000)

FLAGS = flags.FLAGS


Row = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Runs what the flags name."""
    if len(argv) > 1 or not FLAGS.json:
        raise app.UsageError(
            "Flags only, and --json=FILE among them: the file that the rows are appended to."
        )
    path = pathlib.Path(FLAGS.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [
        (network, scheme) for network in FLAGS.networks if network for scheme in FLAGS.schemes
    ]
    if FLAGS.cost:
        _measure_costs(path, wanted)
    else:
        _compare(path, wanted)
    if FLAGS.markdown:
        text = exactness_table.table(exactness_table.read(path))
        records.write_section(pathlib.Path(FLAGS.markdown), exactness_table.SECTION, text)


def _compare(path: pathlib.Path, wanted: Sequence[tuple[str, str]]) -> None:
    done = {
        (row["network"], row["scheme"])
        for row in exactness_table.read(path)
        if row["kind"] == "codes"
    }
    for network, scheme in wanted:
        if (network, scheme) not in done:
            config = _config(network, scheme)
            dataset = load(config)
            student = trained_student(config, dataset, FLAGS.float_examples, FLAGS.train_examples)
            test = tuple(part[: FLAGS.images] for part in dataset.test)
            for row in compare(student, config, test, _runtimes):
                _append(path, row)
                print(exactness_table.summary(row), flush=True)


def _config(network: str, scheme: str) -> Any:
    from experiments.config import Config

    if not (match := re.fullmatch(r"W([2-8])A([2-8])", scheme)):
        raise app.UsageError(f"--schemes must be written W4A4. Received: {scheme}.")
    return Config(
        dataset=FLAGS.dataset,
        model=network,
        width=FLAGS.width,
        weight_bits=int(match[1]),
        activation_bits=int(match[2]),
        methods=("none",),
        train_examples=max(FLAGS.float_examples, FLAGS.train_examples),
        float_epochs=1,
        epochs=1,
        augment=False,
        workdir=FLAGS.workdir,
    )


def _runtimes(exported: Any) -> list[Any]:
    """The runtimes elsewhere that --runtimes names; packed INT4 convolutions run on LiteRT's own
    kernels there too.
    """
    from tflite_export.runtimes import arm_rig, micro

    root = pathlib.Path(FLAGS.arm_root) if FLAGS.arm_root else None
    found: list[Any] = []
    if "arm" in FLAGS.runtimes:
        found += [arm_rig.ArmInterpreter(exported.path, cpu, root=root) for cpu in arm_rig.CPUS]
    if "tflm" in FLAGS.runtimes:
        found.append(micro.MicroInterpreter(exported.path))
    return found


def trained_student(config: Any, dataset: Any, float_examples: int, train_examples: int) -> Any:
    """The trained student of a configuration; the float network is trained once and kept in
    `config.workdir`.
    """
    from experiments import pipeline
    from tf_fpq.keras_compat import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(config.seed)
    saved = (
        records.prepare_workdir(config.workdir)
        / f"{config.dataset}_{config.model}_{config.width}.keras"
    )
    if saved.is_file():
        config = dataclasses.replace(config, teacher=str(saved))
    teacher, _ = pipeline.float_teacher(config, _first(dataset, float_examples))
    if not saved.is_file():
        records.write_whole(saved, teacher.save)
    student = pipeline.quantized_student(config, teacher, dataset)
    pipeline.train_student(config, student, teacher, _first(dataset, train_examples))
    return student


def _first(dataset: Any, examples: int) -> Any:
    """The first training images, and a few test images for training to watch."""
    train = {
        "train_images": dataset.train_images[:examples],
        "train_labels": dataset.train_labels[:examples],
    }
    test = {"test_images": dataset.test_images[:256], "test_labels": dataset.test_labels[:256]}
    return dataclasses.replace(dataset, **train, **test)


def load(config: Any) -> Any:
    """The dataset of a configuration."""
    from experiments import pipeline

    return pipeline.load(config)


def compare(
    student: Any, config: Any, test: tuple[Any, Any], runtimes: Any = lambda exported: []
) -> list[Row]:
    """Exports and compares one network at one scheme.

    Args:
      student: The trained network.
      config: What it is.
      test: Images and labels.
      runtimes: `runtimes(exported)` gives the runtimes elsewhere.

    Returns:
      A row for the int8 file and, at 4 weight bits or less, one for the file with packed INT4
      weights.
    """
    import tflite_export

    rows = []
    for weights in ("int8", "int4")[: 1 + (config.weight_bits <= 4)]:
        count = len(test[0]) if weights == "int8" else INT4_IMAGES
        name = f"{config.model}_w{config.weight_bits}a{config.activation_bits}_{weights}.tflite"
        exported = tflite_export.export(
            student, pathlib.Path(config.workdir) / name, weights=weights
        )
        report = _verify(student, exported, (test[0][:count], test[1][:count]), runtimes(exported))
        rows.append(_row(config, report, weights))
    return rows


def _verify(student: Any, exported: Any, test: tuple[Any, Any], runtimes: Sequence[Any]) -> Any:
    """The report, also of a file that is not the trained one."""
    import tflite_export

    kernels = (
        ("xnnpack", "reference")
        if exported.weights == "int8"
        else ("xnnpack", "builtin", "reference")
    )
    try:
        return tflite_export.verify(
            student,
            exported,
            test,
            kernels=kernels,
            runtimes=runtimes,
            batch_size=200,
            min_top1_agreement=0,
            verbose=0,
        )
    except tflite_export.VerificationError as error:
        return error.report


def _row(config: Any, report: Any, weights: str) -> Row:
    pairs = [(c.left, c.right) for c in report.tensors]
    return {
        "kind": "codes",
        "network": config.model,
        "scheme": f"W{config.weight_bits}A{config.activation_bits}",
        "weights": weights,
        "dataset": config.dataset,
        "images": report.images,
        "tensor_images": report.tensor_images,
        "bytes": report.bytes,
        "accuracy": dict(report.accuracy),
        "outputs": [_counts(c) | {"top1": c.top1} for c in report.outputs],
        "tensors": [_sum(report.tensors, pair) for pair in dict.fromkeys(pairs)],
        "failures": [f"{failure.tensor}: {failure.message}" for failure in report.failures],
        "notes": list(report.notes),
        "seconds": dict(report.seconds),
        **_origin(),
    }


def _counts(c: Any) -> Row:
    return {
        "left": c.left,
        "right": c.right,
        "codes": c.codes,
        "differing": c.differing,
        "max_lsb": c.max_lsb,
    }


def _sum(comparisons: Sequence[Any], pair: tuple[str, str]) -> Row:
    mine = [c for c in comparisons if (c.left, c.right) == pair]
    return {
        "left": pair[0],
        "right": pair[1],
        "tensors": len(mine),
        "codes": sum(c.codes for c in mine),
        "differing": sum(c.differing for c in mine),
        "max_lsb": max(c.max_lsb for c in mine),
    }


def _origin() -> Row:
    command = f"python -m experiments.evidence.exactness {shlex.join(sys.argv[1:])}"
    return {
        "command": command,
        "commit": records.commit(),
        "versions": records.versions(),
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def _measure_costs(path: pathlib.Path, wanted: Sequence[tuple[str, str]]) -> None:
    """Each measurement in a process of its own, so that one's memory is not another's."""
    import subprocess

    for network, scheme in wanted:
        config = _config(network, scheme)
        dataset = load(config)
        saved = pathlib.Path(config.workdir) / f"{network}_{scheme}_student.keras"
        if not saved.is_file():
            student = trained_student(config, dataset, FLAGS.float_examples, FLAGS.train_examples)
            records.write_whole(saved, student.save)
        for count in COST_IMAGES:
            code = (
                f"from experiments import exactness; exactness.print_cost({str(saved)!r},"
                f" {config.dataset!r}, {count})"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
            )
            row = {
                "kind": "cost",
                "network": network,
                "scheme": scheme,
                **json.loads(done.stdout.splitlines()[-1]),
            }
            _append(path, row | _origin())
            print(json.dumps(row), flush=True)


def print_cost(student_path: str, dataset_name: str, count: int) -> None:
    """Prints what `cost` measures, as a line of JSON."""
    from experiments import data
    from tf_fpq import graph
    from tf_fpq.keras_compat import keras

    with graph.deep_recursion():
        student = keras.models.load_model(student_path, compile=False)
    images = data.load(dataset_name).test[0][:count]
    print(json.dumps(cost(student, images)))


def cost(student: Any, images: Any) -> Row:
    """Seconds (wall and processor) and peak memory of export and verification on XNNPACK.

    Args:
      student: What is exported.
      images: What it is verified on.

    Returns:
      `beyond_*` is without the interpreter's own running over the images; `mib_before` is the
      process' peak before the export.
    """
    import tflite_export

    before = process_memory.peak_mib()
    wall, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        exported = tflite_export.export(student, os.path.join(folder, "model.tflite"))
        report = tflite_export.verify(
            student, exported, images, kernels=("xnnpack",), min_top1_agreement=0, verbose=0
        )
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    own = report.seconds["xnnpack"]
    return {
        "images": report.images,
        "wall_s": round(wall, 2),
        "interpreter_s": round(own, 2),
        "beyond_wall_s": round(wall - own, 2),
        "beyond_processor_s": round(processor - own, 2),
        "mib_before": before,
        "mib_peak": process_memory.peak_mib(),
        "seconds": dict(report.seconds),
    }


def _append(path: pathlib.Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _define_flags() -> None:
    flags.DEFINE_string("json", None, "File that the rows are appended to.")
    flags.DEFINE_string("markdown", None, "File whose table is written anew.")
    flags.DEFINE_string(
        "workdir", "runs/exactness", "Folder of the float networks and the exported files."
    )
    flags.DEFINE_list(
        "networks", ",".join(NETWORKS), "Networks of experiments.models; none for an empty list."
    )
    flags.DEFINE_list(
        "schemes",
        ",".join(SCHEMES),
        "Widths between the first and the last layer, which have 8 bits.",
    )
    flags.DEFINE_list("runtimes", ",".join(RUNTIMES), "Runtimes elsewhere: arm, tflm.")
    flags.DEFINE_string(
        "arm_root", None, "Folder of tflite_export.runtimes.arm_rig, if it is not the default one."
    )
    flags.DEFINE_string("dataset", "fashion_mnist", "Images, as in experiments.train.")
    flags.DEFINE_integer("images", None, "Compare only so many test images; all by default.")
    flags.DEFINE_integer(
        "float_examples", 12_800, "Training images that the float network sees, once, 64 a step."
    )
    flags.DEFINE_integer(
        "train_examples", 3200, "Training images that the quantized network sees, likewise."
    )
    flags.DEFINE_integer("width", 16, "Channels of a network's first stage.")
    flags.DEFINE_bool(
        "cost", False, "Measure seconds and memory of export and verification on XNNPACK instead."
    )


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
