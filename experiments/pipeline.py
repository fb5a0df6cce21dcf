"""The whole path on real data: float teacher, quantized student, int8 TFLite model, proof; one
function per step.
"""

from collections.abc import Iterator, Sequence
import contextlib
import math
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

from experiments import data, models, records, run_folder
from experiments.checkpoints import KEPT, Checkpoints
from experiments.config import Config
import tf_fpq
from tf_fpq.conversion import loading
from tf_fpq.keras_compat import keras
import tflite_export

Result = dict[str, Any]

# The strong view of CR on images of fewer pixels a side than `SMALL_SIDE`, where the library's
# default leaves too little: of 8x8 pixels, cutout takes 16. At 14x14 the default cost a distilled
# student 3 points in a trial. Chosen here.
SMALL_SIDE = 16
SMALL_STRONG_VIEW = {"operations": 1, "magnitude": 0.3, "cutout": 0.25}


def run(config: Config, *, resume: bool = True, keep_checkpoints: int = KEPT) -> Result:
    """Trains, exports, verifies; writes `float.keras`, `student.keras`, `model.tflite`, `report.*`,
    `result.json`.

    The same configuration on the same machine gives the same figures: every random draw follows
    from `config.seed`. A run that was killed goes on after its last whole epoch, and ends with the
    same bits as one that was not. One that is finished is not repeated.

    Args:
      config: What to do.
      resume: Whether to go on with what is in the work directory; if not, the run begins anew.
      keep_checkpoints: How many checkpoints of a training stay until the run is finished.

    Returns:
      What `result.json` holds: configuration, versions, commit, metrics, seconds of each step
        (those of epochs that were trained before a kill among them), and the training history.

    Raises:
      ValueError: If `config.teacher` cannot be loaded or does not fit the dataset.
      ArithmeticError: If a training diverges.
      OSError: If the work directory cannot be written to.
      data.DatasetMissingError: If the dataset is not there.
      run_folder.OtherRunError: If the work directory holds a run of another configuration.
      tflite_export.VerificationError: If the exported model is not the trained one.
    """
    with run_folder.opened(config, resume=resume) as folder:
        if folder.result is None:
            result = {**run_folder.about(config), **_run(config, folder, keep_checkpoints)}
            folder.finish(result)
            return result
        print(f"== finished already in {folder.path}; --noresume runs it again", flush=True)
        return folder.result


def _run(config: Config, folder: run_folder.RunFolder, keep: int) -> Result:
    """All steps, each from where it was killed: metrics, seconds and history."""
    seed_everything(config)
    dataset = load(config)
    seconds: dict[str, float] = {}
    with _timed("float teacher", seconds):
        checkpoints = Checkpoints(folder.checkpoints("teacher"), keep)
        teacher, float_history = float_teacher(config, dataset, checkpoints=checkpoints)
    seconds["float teacher"] += checkpoints.seconds_before
    records.write_whole(folder.path / "float.keras", teacher.save)
    with _timed("quantize and calibrate", seconds):
        student = quantized_student(config, teacher, dataset)
        start_accuracy = accuracy(student, dataset)
    with _timed("quantization-aware training", seconds):
        checkpoints = Checkpoints(folder.checkpoints("student"), keep)
        history = train_student(config, student, teacher, dataset, checkpoints=checkpoints)
    seconds["quantization-aware training"] += checkpoints.seconds_before
    with _timed("export", seconds):
        exported = tflite_export.export(
            student,
            folder.path / "model.tflite",
            input_type=config.input_type,
            output_type=config.output_type,
        )
    # After the export, which moves the biases onto the grid of the file.
    records.write_whole(folder.path / "student.keras", student.save)
    with _timed("verify", seconds):
        report = tflite_export.verify(
            student,
            exported,
            dataset.test,
            teacher=teacher,
            kernels=config.kernels,
            min_top1_agreement=config.min_top1_agreement,
            save=(folder.path / "report.json", folder.path / "report.html"),
            verbose=_bar(),
        ).with_history(history)
    report.save(folder.path / "report.html")
    return {
        "metrics": {
            "float_accuracy": accuracy(teacher, dataset),
            "calibrated_accuracy": start_accuracy,
            **deployed_metrics(report),
        },
        "seconds": seconds,
        "history": {"float": float_history, "student": history},
    }


def seed_everything(config: Config) -> None:
    """Makes every random draw from here on follow from `config.seed`."""
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(config.precision)


def float_teacher(
    config: Config,
    dataset: data.Dataset,
    *,
    watch: bool = True,
    checkpoints: Checkpoints | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Loads `config.teacher`, or trains a float network by SGD with a cosine schedule.

    Args:
      config: What to do.
      dataset: The images.
      watch: See `fit`.
      checkpoints: See `fit`.

    Returns:
      The model and its history by epoch (empty if it was loaded).

    Raises:
      ArithmeticError: If the training diverges.
      ValueError: If the model cannot be loaded, does not read the dataset's images or has another
        number of classes.
    """
    if config.teacher is not None:
        teacher = loading.load(config.teacher)
        expected = ((None, *dataset.image_shape), (None, dataset.num_classes))
        if (teacher.input_shape, teacher.output_shape) != expected:
            raise ValueError(
                f"teacher must map {expected[0]} to {expected[1]} for {dataset.name}. Received:"
                f" {teacher.input_shape} to {teacher.output_shape}, teacher={config.teacher!r}."
            )
        return teacher, {}
    model = models.build(config.model, dataset.image_shape, dataset.num_classes, config.width)
    history = fit(
        model,
        config.of_teacher(),
        dataset,
        config.float_learning_rate,
        config.float_epochs,
        watch=watch,
        checkpoints=checkpoints,
    )
    return model, history


def quantized_student(config: Config, teacher: keras.Model, dataset: data.Dataset) -> keras.Model:
    """Quantizes the teacher by `config.rules()` and calibrates the result on training images."""
    student = tf_fpq.quantize_model(teacher, rules=config.rules(), quantizer=config.quantizer)
    tf_fpq.calibrate(
        student, dataset.calibration_images(config.calibration_examples, config.seed), verbose=0
    )
    return student


def train_student(
    config: Config,
    student: keras.Model,
    teacher: keras.Model,
    dataset: data.Dataset,
    *,
    watch: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
) -> dict[str, list[float]]:
    """Trains the student in place with the configured methods and returns the history by epoch.

    Args:
      config: What to do.
      student: The quantized and calibrated student.
      teacher: Its float network.
      dataset: The images.
      watch: See `fit`.
      callbacks: More callbacks, behind those of the schedules.
      checkpoints: See `fit`.
    """
    methods = config.make_methods()
    model = tf_fpq.QatModel(
        student,
        teacher=teacher,
        methods=methods,
        step_size_learning_rate_factor=config.step_size_learning_rate_factor,
    )
    callbacks = [*config.schedule_callbacks(methods), *callbacks]
    return fit(
        model,
        config,
        dataset,
        config.learning_rate,
        config.epochs,
        watch=watch,
        callbacks=callbacks,
        checkpoints=checkpoints,
    )


def _two_views(config: Config, dataset: data.Dataset) -> tf.data.Dataset:
    """Batches with two views for CR: the EMA teacher sees the weak one (usual augmentation),
    student and teacher the strong one.
    """
    batches = dataset.train_batches(config.batch_size, config.seed, augment=False)
    if not config.augment:
        return batches
    info = dataset.info
    weak = tf_fpq.WeakAugmentation(shift=info.shift / dataset.image_shape[0], flip=info.flip)
    small = SMALL_STRONG_VIEW if dataset.image_shape[0] < SMALL_SIDE else {}
    strong = tf_fpq.StrongAugmentation(weak=weak, **small)
    return tf_fpq.two_views(batches, weak=weak, strong=strong, seed=config.seed)


def load(config: Config) -> data.Dataset:
    """The images that a configuration names."""
    return data.load(
        config.dataset,
        config.data_dir,
        fashion_mnist_dir=config.fashion_mnist_dir,
        train_examples=config.train_examples,
        validation_examples=config.validation_examples,
        resolution=config.resolution,
        shift=config.shift,
    )


def fit(
    model: keras.Model,
    config: Config,
    dataset: data.Dataset,
    learning_rate: float,
    epochs: int,
    *,
    watch: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
) -> dict[str, list[float]]:
    """SGD with momentum and a cosine to 0.

    Args:
      model: A float model or a `QatModel`.
      config: Recipe.
      dataset: The images.
      learning_rate: The first rate.
      epochs: How long.
      watch: Whether the test accuracy is shown after every epoch; nothing is chosen by it.
      callbacks: More callbacks.
      checkpoints: What the training goes on from, and writes to.

    Returns:
      The history by epoch.

    Raises:
      ArithmeticError: If the loss is not finite.
    """
    batches = dataset.train_batches(config.batch_size, config.seed, config.augment)
    if "cr" in config.methods and isinstance(model, tf_fpq.QatModel):
        batches = _two_views(config, dataset)
    if not epochs:
        return {}
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * len(batches))
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=config.weight_decay),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=config.jit_compile or None,
    )
    done = checkpoints.restore(model) if checkpoints else 0
    for _ in range(done):
        iter(batches)  # each iteration has an order and an augmentation of its own
    # In this order: an epoch that diverged is not kept.
    own = [_StopIfNotFinite(learning_rate), *([checkpoints] if checkpoints else [])]
    fitted = model.fit(
        batches,
        validation_data=dataset.test_batches() if watch else None,
        initial_epoch=done,
        epochs=epochs,
        verbose=(1 if _bar() else 2) if watch else 0,
        callbacks=[*callbacks, *own],
    )
    if checkpoints:
        return checkpoints.history
    return {name: [float(value) for value in values] for name, values in fitted.history.items()}


class _StopIfNotFinite(keras.callbacks.Callback):
    """Stops a training whose loss is not finite: a float network has no guard of its own."""

    def __init__(self, learning_rate: float):
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the epoch's mean loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ArithmeticError(
                f"Training of {self.model.name!r} diverged in epoch {epoch + 1}: its loss is"
                f" {loss}. Train with a lower learning rate. Received:"
                f" learning_rate={self._learning_rate}."
            )


def accuracy(model: keras.Model, dataset: data.Dataset) -> float:
    """Share of test images whose largest output is the label's."""
    return accuracy_on(model, *dataset.test)


def accuracy_on(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of normalised images whose largest output is the label's."""
    classes = np.argmax(model.predict(images, batch_size=256, verbose=0), axis=-1)
    return float(np.mean(classes == labels))


def deployed_metrics(report: tflite_export.Report) -> Result:
    """What the verification over the test set says about student, twin and the `.tflite` file on
    XNNPACK.
    """
    codes = report.output("twin", "xnnpack")
    return {
        "student_accuracy": report.accuracy["student"],
        "twin_accuracy": report.accuracy["twin"],
        "tflite_accuracy": report.accuracy["xnnpack"],
        "codes_differing": codes.differing,
        "codes_compared": codes.codes,
        "student_agreement": report.output("student", "xnnpack").top1,
        "bytes": report.bytes,
    }


def table(result: Result) -> str:
    """The result as a few lines of text."""
    config, metrics, seconds = result["config"], result["metrics"], result["seconds"]
    title = (
        f"{config['dataset']}, {config['model']},"
        f" W{config['weight_bits']}A{config['activation_bits']}, {'+'.join(config['methods'])},"
        f" seed {config['seed']}"
    )
    rows = [
        ("test accuracy, float teacher", f"{metrics['float_accuracy']:.2%}"),
        ("  calibrated, not trained", f"{metrics['calibrated_accuracy']:.2%}"),
        ("  student", f"{metrics['student_accuracy']:.2%}"),
        ("  integer twin", f"{metrics['twin_accuracy']:.2%}"),
        ("  TFLite (XNNPACK)", f"{metrics['tflite_accuracy']:.2%}"),
        (
            "output codes differing, twin and TFLite",
            f"{metrics['codes_differing']} of {metrics['codes_compared']}",
        ),
        ("top-1 agreement, student and TFLite", f"{metrics['student_agreement']:.2%}"),
        ("bytes of model.tflite", f"{metrics['bytes']:,}"),
        *[(f"seconds, {name}", f"{value:.1f}") for name, value in seconds.items()],
    ]
    left = max(len(name) for name, _ in rows)
    right = max(len(value) for _, value in rows)
    rule = "-" * max(left + right + 2, len(title))
    return "\n".join(
        [title, rule, *(f"{name:<{left}}  {value:>{right}}" for name, value in rows), rule]
    )


def _bar() -> bool:
    """Whether somebody watches, so that progress bars are welcome; a log gets one line per
    epoch.
    """
    return sys.stdout.isatty()


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
