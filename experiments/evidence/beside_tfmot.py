r"""tfmot beside us: one trained float network, one set of images, both ways to an int8 file, W8A8.

From one float network both libraries make a quantized network, train it with the same optimizer,
batches and epochs, and write an int8 `.tflite` file. Measured over all test images: how many output
codes of the Keras model are the file's, the accuracies of both, how often both choose the same
class, bytes and latency.

Rows are appended to --json, one JSON object a line for each network and seed. Rows that are there
already are skipped, so an interrupted run goes on where it stopped.

Examples:

  Three seeds of a small network (about two minutes each on two cores), and the page.
    python -m experiments.evidence.beside_tfmot --json=experiments/results/beside_tfmot.jsonl \
        --markdown=docs/beside_tfmot.md --seeds=0,1,2

  The page from the rows that are there.
    python -m experiments.evidence.beside_tfmot --json=experiments/results/beside_tfmot.jsonl \
        --markdown=docs/beside_tfmot.md --networks=

  A look in half a minute.
    python -m experiments.evidence.beside_tfmot --json=/tmp/rows.jsonl --dataset=digits --width=8
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import tempfile
from typing import Any

from absl import app, flags
import numpy as np

from experiments import data, fitting, pipeline, records
from experiments.config import Config
from experiments.evidence import beside_tfmot_table
from tf_fpq import programs
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import latency, litert
from tflite_export.verification import code_differences

# What makes two rows the same measurement.
SETTINGS = (
    "dataset",
    "width",
    "train_examples",
    "float_epochs",
    "epochs",
    "batch_size",
    "learning_rate",
)
# The two files take turns, so that both see the same noise of the machine.
LATENCY_TURNS, LATENCY_RUNS = 7, 200
# Images that Keras and the interpreter compute at once.
BATCH = 250

FLAGS = flags.FLAGS

Row = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Measures what the flags name."""
    if len(argv) > 1 or not FLAGS.json:
        raise app.UsageError(
            "Flags only, and --json=FILE among them: the file that the rows are appended to."
        )
    path = pathlib.Path(FLAGS.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {key(row) for row in beside_tfmot_table.read(path)}
    for network in filter(None, FLAGS.networks):
        for seed in map(int, FLAGS.seeds):
            config = _config(network, seed)
            if key(_named(config)) in done:
                continue
            row = measure(config)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(beside_tfmot_table.summary(row), flush=True)
    if FLAGS.markdown:
        beside_tfmot_table.write_page(pathlib.Path(FLAGS.markdown), beside_tfmot_table.read(path))


def measure(config: Config) -> Row:
    """Trains the float network and takes both ways from it.

    Args:
      config: Network, data, epochs and seed; W8A8 without methods. Nothing is written to its
        `workdir`.

    Returns:
      The row. A side that refuses the network has one entry, "refused".
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(config.seed)
    dataset = pipeline.load(config)
    teacher, _ = pipeline.float_teacher(config, dataset)
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: pathlib.Path(folder) / f"{side}.tflite" for side in ("ours", "tfmot")}
        sides = {"ours": _ours(config, teacher, dataset, paths["ours"])}
        try:
            sides["tfmot"] = _tfmot(config, teacher, dataset, paths["tfmot"])
        # tfmot and the converter raise whatever their layers raise; a network they refuse is a
        # result.
        except Exception as error:
            sides["tfmot"] = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        latencies = median_latencies({side: path for side, path in paths.items() if path.exists()})
    for side, milliseconds in latencies.items():
        sides[side]["latency_ms"] = milliseconds
    return {
        **_named(config),
        "float_accuracy": pipeline.accuracy(teacher, dataset),
        **sides,
        **_origin(),
    }


def _ours(config: Config, teacher: keras.Model, dataset: data.Dataset, path: pathlib.Path) -> Row:
    student = pipeline.quantized_student(config, teacher, dataset)
    pipeline.train_student(config, student, teacher, dataset)
    tflite_export.export(student, path, round_biases=False)
    unrounded = compare(student, path, dataset)["differing"]
    exported = tflite_export.export(student, path)
    report = tflite_export.verify(
        student,
        exported,
        dataset.test,
        kernels=("xnnpack",),
        tensor_images=0,
        min_top1_agreement=0,
        verbose=0,
    )
    return {
        **compare(student, path, dataset),
        "unrounded_differing": unrounded,
        "twin_differing": report.output("twin", "xnnpack").differing,
    }


def _tfmot(config: Config, teacher: keras.Model, dataset: data.Dataset, path: pathlib.Path) -> Row:
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    model = tfmot.quantization.keras.quantize_model(teacher)
    fitting.fit(model, config, dataset, config.learning_rate, config.epochs)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path.write_bytes(converter.convert())
    return compare(model, path, dataset)


def compare(model: keras.Model, path: pathlib.Path, dataset: data.Dataset) -> Row:
    """Output codes of a quantized Keras model and of its int8 file over all test images.

    The Keras model's outputs are put on the file's output grid, `clip(rint(y / s) + z)`, where they
    lie already but for float32.

    Args:
      model: From images to logits.
      path: Its file, int8 in and int8 out.
      dataset: The images and labels.

    Returns:
      Counts of codes, largest difference in LSB, accuracies, agreement, bytes.
    """
    runner = litert.Interpreter(path)
    output = reader.read(path)
    grid = output.tensors[output.outputs[0]]
    counts = code_differences.Difference(grid, "Keras", "TFLite")
    right = {"keras": 0, "tflite": 0}
    images, labels = dataset.test
    for start in range(0, len(images), BATCH):
        batch, truth = images[start : start + BATCH], labels[start : start + BATCH]
        values = model.predict_on_batch(batch)
        (codes,) = runner.run(batch).values()
        counts.add(
            litert.quantize(values, float(np.reshape(grid.scale, ())), grid.zero_point), codes
        )
        right["keras"] += int((values.argmax(-1) == truth).sum())
        right["tflite"] += int((codes.argmax(-1) == truth).sum())
    found = counts.result()
    return {
        "images": len(images),
        "codes": found.codes,
        "differing": found.differing,
        "max_lsb": found.max_lsb,
        "top1_agreement": found.top1,
        **{f"{name}_accuracy": count / len(images) for name, count in right.items()},
        "bytes": path.stat().st_size,
    }


def median_latencies(paths: Mapping[str, pathlib.Path]) -> dict[str, list[float]]:
    """Median milliseconds of one image on XNNPACK with one thread, of each turn; the files take
    turns.
    """
    found: dict[str, list[float]] = {side: [] for side in paths}
    for _ in range(LATENCY_TURNS):
        for side, path in paths.items():
            found[side].append(round(latency.measure(path, side, runs=LATENCY_RUNS).median_ms, 4))
    return found


def key(row: Row) -> str:
    """What identifies a measurement."""
    return json.dumps([row[name] for name in ("network", "seed", *SETTINGS)])


def _named(config: Config) -> Row:
    return {
        "network": config.model,
        "seed": config.seed,
        **{name: getattr(config, name) for name in SETTINGS},
    }


def _config(network: str, seed: int) -> Config:
    return Config(
        **{name: FLAGS[name].value for name in SETTINGS},
        data_dir=FLAGS.data_dir,
        model=network,
        seed=seed,
        weight_bits=8,
        activation_bits=8,
        methods=("none",),
        augment=False,
    )


def _origin() -> Row:
    return {
        "commit": records.commit(),
        "versions": records.versions(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_string("json", None, "JSON lines to append to.")
    flags.DEFINE_string("markdown", None, "Page to write from all rows.")
    flags.DEFINE_list(
        "networks", ["resnet8"], "Networks of experiments.models; none for an empty list."
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initial weights and data order.")
    flags.DEFINE_string("dataset", "fashion_mnist", "Images, as in experiments.train.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory.")
    flags.DEFINE_integer("width", Config.width, "Channels of a network's first stage.")
    flags.DEFINE_integer("train_examples", 12_800, "Training images.")
    flags.DEFINE_integer("float_epochs", 2, "Epochs of the float network.")
    flags.DEFINE_integer("epochs", 1, "Epochs of quantization-aware training, on both sides.")
    flags.DEFINE_integer("batch_size", Config.batch_size, "Images per step.")
    flags.DEFINE_float(
        "learning_rate", Config.learning_rate, "First rate of quantization-aware training."
    )


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
