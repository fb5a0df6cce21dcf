"""One run of a grid: a student trained from its teacher, and every figure of a row of results.

The figures are those of the float network, the student and the deployed file. The latter two are
measured twice, as trained and once more with batch norms re-estimated on training images (section
4.1 of arXiv 2203.11086), which changes rankings at low widths. The file is measured on XNNPACK, as
a phone runs it, and its codes are compared with the integer twin's.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf

from experiments import data, pipeline, records, run_folder
from experiments.checkpoints import Checkpoints
from experiments.config import FLOAT, Config
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.runtimes import litert

Row = dict[str, Any]

# Batches that batch norms are re-estimated from; `callbacks.reestimate_batch_norm` says that a
# dozen suffices.
REESTIMATION_BATCHES = 20
# A grid's runs take less than a minute; one that is killed repeats no more than this.
SECONDS_BETWEEN_CHECKPOINTS = 10.0
# Images on which every code of the twin is compared with the file's. All of the test images would
# cost as much as a quarter of the training.
TWIN_IMAGES = 1000


def run(config: Config) -> Row:
    """Trains and measures.

    Every random draw follows from `config.seed`: the teacher, the calibration images, the order of
    the training images, their augmentation and the methods' noise. Runs that differ in their
    methods or rates alone are therefore pairs. A run that was killed goes on from its newest
    checkpoint.

    Args:
      config: What to do; with `workdir` the trained student is kept there as `student.keras`.

    Returns:
      Figures by their names in a row. Accuracies are shares, those of a student that does not exist
      (`methods=("float",)`) are None. `seconds` are those of the CPU, and those of epochs that were
      trained before a kill are among them.
    """
    started = time.process_time()
    with run_folder.opened(config, resume=True) as folder:
        checkpoints = Checkpoints(
            folder.checkpoints("student"),
            seconds=SECONDS_BETWEEN_CHECKPOINTS,
            clock=time.process_time,
        )
        figures = _run(config, checkpoints)
        run_folder.remove_leftovers(folder.path)
    seconds = time.process_time() - started + checkpoints.seconds_before
    return {**figures, "seconds": round(seconds, 1)}


def _run(config: Config, checkpoints: Checkpoints) -> Row:
    pipeline.seed_everything(config)
    dataset = _dataset(config)
    teacher, _ = pipeline.float_teacher(config, dataset, watch=False)
    figures = {"accuracy_float": pipeline.accuracy(teacher, dataset)}
    if config.methods == (FLOAT,):
        pipeline.fit(
            teacher,
            config,
            dataset,
            config.learning_rate,
            config.epochs,
            watch=False,
            checkpoints=checkpoints,
        )
        return {**figures, **_float_figures(teacher, dataset)}
    student = pipeline.quantized_student(config, teacher, dataset)
    pipeline.train_student(config, student, teacher, dataset, watch=False, checkpoints=checkpoints)
    figures |= _deployed_figures(student, dataset)
    figures["train_accuracy"] = _train_accuracy(student, dataset)
    records.write_whole(pathlib.Path(config.workdir) / "student.keras", student.save)
    tf_fpq.callbacks.reestimate_batch_norm(student, _reestimation_batches(config, dataset))
    again = _deployed_figures(student, dataset)
    figures |= {
        f"{name}_reestimated": again[name] for name in ("accuracy_student", "accuracy_tflite")
    }
    for name in ("codes_differing", "codes_compared"):
        figures[name] += again[name]
    return figures


def _float_figures(model: keras.Model, dataset: data.Dataset) -> Row:
    return {
        "train_accuracy": _train_accuracy(model, dataset),
        "accuracy_student": pipeline.accuracy(model, dataset),
        "accuracy_tflite": None,
        "accuracy_student_reestimated": None,
        "accuracy_tflite_reestimated": None,
        "codes_differing": 0,
        "codes_compared": 0,
    }


def _train_accuracy(model: keras.Model, dataset: data.Dataset) -> float:
    """On training images that are not augmented."""
    images = dataset.normalize(dataset.train_images)
    return pipeline.accuracy_on(model, images, dataset.train_labels)


def _deployed_figures(student: keras.Model, dataset: data.Dataset) -> Row:
    """Exports and runs the file on all images, the twin on the first of them.

    The export moves the student's biases onto the file's grid; the student is measured after that.
    """
    images, labels = dataset.test
    with tempfile.TemporaryDirectory() as folder:
        exported = tflite_export.export(student, pathlib.Path(folder) / "model.tflite")
        (outputs,) = litert.Interpreter(exported.path).run(images).values()
    (name,) = exported.deployed.outputs
    codes = _twin_codes(exported.twin, images[:TWIN_IMAGES], name)
    return {
        "accuracy_student": pipeline.accuracy(student, dataset),
        "accuracy_tflite": float(np.mean(np.argmax(outputs, axis=-1) == labels)),
        "codes_differing": int(np.count_nonzero(codes != outputs[:TWIN_IMAGES])),
        "codes_compared": int(codes.size),
    }


def _twin_codes(twin: Any, images: np.ndarray, name: str) -> np.ndarray:
    run = tf.function(lambda batch: twin.codes(batch)[name])
    batches = np.array_split(images, -(-len(images) // 250))
    return np.concatenate([run(tf.constant(batch)).numpy() for batch in batches])


def _reestimation_batches(config: Config, dataset: data.Dataset) -> tf.data.Dataset:
    batches = dataset.train_batches(config.batch_size, config.seed, config.augment)
    return batches.take(REESTIMATION_BATCHES)


def _dataset(config: Config) -> data.Dataset:
    """The images, which the runs of a process mostly share: the last ones are kept."""
    fields = (
        *("dataset", "data_dir", "fashion_mnist_dir", "train_examples", "validation_examples"),
        *("resolution", "shift"),
    )
    return _loaded(json.dumps({name: getattr(config, name) for name in fields}))


@functools.lru_cache(maxsize=2)
def _loaded(fields: str) -> data.Dataset:
    return pipeline.load(dataclasses.replace(Config(), **json.loads(fields)))
