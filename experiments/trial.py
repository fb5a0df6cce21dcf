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

from experiments import fitting, pipeline, records, run_folder
from experiments.checkpoints import CheckpointsByName
from experiments.config import FLOAT, Config
from experiments.streamed import Images
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.runtimes import litert

Row = dict[str, Any]

# A grid's runs take less than a minute; one that is killed repeats no more than this.
SECONDS_BETWEEN_CHECKPOINTS = 10.0
# Images on which every code of the twin is compared with the file's. All of the test images would
# cost as much as a quarter of the training.
TWIN_IMAGES = 1000
TWIN_BATCH = 250


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
        checkpoints = CheckpointsByName(
            folder.checkpoints, seconds=SECONDS_BETWEEN_CHECKPOINTS, clock=time.process_time
        )
        figures = _run(config, checkpoints)
        run_folder.remove_leftovers(folder.path)
    seconds = time.process_time() - started + checkpoints.seconds_before
    return {**figures, "seconds": round(seconds, 1)}


def _run(config: Config, checkpoints: CheckpointsByName) -> Row:
    pipeline.seed_everything(config)
    dataset = _dataset(config)
    teacher, _ = pipeline.float_teacher(config, dataset, watch=False)
    figures = {"accuracy_float": pipeline.accuracy(teacher, dataset)}
    if config.methods == (FLOAT,):
        fitting.fit(
            teacher,
            config,
            dataset,
            config.learning_rate,
            config.epochs,
            watch=False,
            checkpoints=checkpoints("student"),
        )
        return {**figures, **_float_figures(teacher, dataset)}
    network, last = pipeline.after_stages(config, teacher, dataset, checkpoints)
    student = pipeline.quantized_student(config, network, dataset)
    saved = checkpoints("student")
    pipeline.train_student(last, student, teacher, dataset, watch=False, checkpoints=saved)
    figures |= _deployed_figures(student, dataset)
    figures["train_accuracy"] = _train_accuracy(student, dataset)
    records.write_whole(pathlib.Path(config.workdir) / "student.keras", student.save)
    tf_fpq.callbacks.reestimate_batch_norm(student, fitting.reestimation_batches(config, dataset))
    again = _deployed_figures(student, dataset)
    figures |= {
        f"{name}_reestimated": again[name] for name in ("accuracy_student", "accuracy_tflite")
    }
    for name in ("codes_differing", "codes_compared"):
        figures[name] += again[name]
    return figures


def _float_figures(model: keras.Model, dataset: Images) -> Row:
    return {
        "train_accuracy": _train_accuracy(model, dataset),
        "accuracy_student": pipeline.accuracy(model, dataset),
        "accuracy_tflite": None,
        "accuracy_student_reestimated": None,
        "accuracy_tflite_reestimated": None,
        "codes_differing": 0,
        "codes_compared": 0,
    }


def _train_accuracy(model: keras.Model, dataset: Images) -> float:
    """On training images that are not augmented."""
    return pipeline.accuracy_on(model, dataset.plain_train_batches())


def _deployed_figures(student: keras.Model, dataset: Images) -> Row:
    """Exports and runs the file on all images, the twin on the first of them.

    The export moves the student's biases onto the file's grid; the student is measured after that.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported = tflite_export.export(student, pathlib.Path(folder) / "model.tflite")
        file = litert.Interpreter(exported.path)
    (name,) = exported.deployed.outputs
    twin_codes = tf.function(lambda batch: exported.twin.codes(batch)[name])
    right = seen = differing = compared = 0
    for images, labels in dataset.test_batches(TWIN_BATCH).as_numpy_iterator():
        (outputs,) = file.run(images).values()
        right += int(np.count_nonzero(np.argmax(outputs, axis=-1) == labels))
        if seen < TWIN_IMAGES:
            differing += int(np.count_nonzero(twin_codes(images).numpy() != outputs))
            compared += outputs.size
        seen += len(labels)
    return {
        "accuracy_student": pipeline.accuracy(student, dataset),
        "accuracy_tflite": right / seen,
        "codes_differing": differing,
        "codes_compared": compared,
    }


def _dataset(config: Config) -> Images:
    """The images, which the runs of a process mostly share: the last ones are kept."""
    fields = (
        *("dataset", "data_dir", "fashion_mnist_dir", "train_examples", "validation_examples"),
        *("resolution", "shift"),
    )
    return _loaded(json.dumps({name: getattr(config, name) for name in fields}))


@functools.lru_cache(maxsize=2)
def _loaded(fields: str) -> Images:
    return pipeline.load(dataclasses.replace(Config(), **json.loads(fields)))
