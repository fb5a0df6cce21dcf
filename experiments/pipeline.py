"""The whole path on real data: float teacher, quantized student, int8 TFLite model, proof; one
function per step.
"""

from collections.abc import Iterator, Sequence
import contextlib
import time
from typing import Any

import numpy as np
import tensorflow as tf

from experiments import data, fitting, models, records, run_folder, streamed
from experiments.checkpoints import KEPT, Checkpoints, CheckpointsByName
from experiments.config import Config
from experiments.streamed import Images
import tf_fpq
from tf_fpq import roles
from tf_fpq.conversion import loading
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import quantized_weights
import tflite_export

Result = dict[str, Any]


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
      ImagesMissingError: If the dataset is not there.
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
    network, last = teacher, config
    if config.stages:
        with _timed("training at other widths", seconds):
            several = CheckpointsByName(folder.checkpoints, keep=keep)
            network, last = after_stages(config, teacher, dataset, several)
        seconds["training at other widths"] += several.seconds_before
    with _timed("quantize and calibrate", seconds):
        student = quantized_student(config, network, dataset)
        start_accuracy = accuracy(student, dataset)
    with _timed("quantization-aware training", seconds):
        checkpoints = Checkpoints(folder.checkpoints("student"), keep)
        history = train_student(last, student, teacher, dataset, checkpoints=checkpoints)
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
            verbose=fitting.on_terminal(),
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
    dataset: Images,
    *,
    watch: bool = True,
    checkpoints: Checkpoints | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Loads `config.teacher`, or trains a float network by SGD with a cosine schedule.

    Args:
      config: What to do.
      dataset: The images.
      watch: See `fitting.fit`.
      checkpoints: See `fitting.fit`.

    Returns:
      The model and its history by epoch (empty if it was loaded).

    Raises:
      ArithmeticError: If the training diverges.
      ValueError: If the model cannot be loaded, does not read the dataset's images or has another
        number of classes.
    """
    if config.teacher is not None:
        teacher = loading.load_model(config.teacher)
        expected = ((None, *dataset.image_shape), (None, dataset.num_classes))
        if (teacher.input_shape, teacher.output_shape) != expected:
            raise ValueError(
                f"teacher must map {expected[0]} to {expected[1]} for {dataset.name}. Received:"
                f" {teacher.input_shape} to {teacher.output_shape}, teacher={config.teacher!r}."
            )
        return teacher, {}
    model = models.build(config.model, dataset.image_shape, dataset.num_classes, config.width)
    history = fitting.fit(
        model,
        config.of_teacher(),
        dataset,
        config.float_learning_rate,
        config.float_epochs,
        watch=watch,
        checkpoints=checkpoints,
    )
    return model, history


def after_stages(
    config: Config,
    teacher: keras.Model,
    dataset: Images,
    checkpoints: CheckpointsByName,
) -> tuple[keras.Model, Config]:
    """Trains students at the widths of `config.stages`, each on the weights of the one before.

    Args:
      config: What to do.
      teacher: Where the first one starts, and the teacher of all.
      dataset: The images.
      checkpoints: The checkpoints of a training, by its name.

    Returns:
      The float network that the last student starts from, and what is left to do with it.
    """
    network = teacher
    *stages, last = config.in_stages()
    for number, stage in enumerate(stages):
        student = quantized_student(stage, network, dataset)
        saved = checkpoints(f"stage{number}")
        train_student(stage, student, teacher, dataset, watch=False, checkpoints=saved)
        network = unquantized(student, network)
    return network, last


def unquantized(student: keras.Model, network: keras.Model) -> keras.Model:
    """A float network with a student's weights as they are before they are rounded.

    Args:
      student: The student.
      network: The network that it was quantized from, or another one of the same layers.
    """
    copy = keras.models.clone_model(network)
    for layer in copy.layers:
        if not layer.weights:
            continue
        trained = student.get_layer(layer.name)
        layer.set_weights(roles.inner(trained).get_weights())
        for name, weight, quantizer, variables in quantized_weights(trained):
            getattr(layer, name).assign(quantizer.unrounded(weight, variables))
    return copy


def quantized_student(config: Config, network: keras.Model, dataset: Images) -> keras.Model:
    """Quantizes a network by `config.rules()` and calibrates the result on training images."""
    student = tf_fpq.quantize_model(network, rules=config.rules(), quantizer=config.quantizer)
    tf_fpq.calibrate(
        student, dataset.calibration_images(config.calibration_examples, config.seed), verbose=0
    )
    return student


def train_student(
    config: Config,
    student: keras.Model,
    teacher: keras.Model,
    dataset: Images,
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
      watch: See `fitting.fit`.
      callbacks: More callbacks, behind those of the schedules.
      checkpoints: See `fitting.fit`.
    """
    methods = config.make_methods()
    model = tf_fpq.QatModel(
        student,
        teacher=teacher,
        methods=methods,
        step_size_learning_rate_factor=config.step_size_learning_rate_factor,
    )
    callbacks = [*config.schedule_callbacks(methods), *callbacks]
    return fitting.fit(
        model,
        config,
        dataset,
        config.learning_rate,
        config.epochs,
        watch=watch,
        callbacks=callbacks,
        checkpoints=checkpoints,
    )


def load(config: Config) -> Images:
    """The images that a configuration names: in memory, or streamed."""
    fields = ("train_examples", "validation_examples", "resolution", "shift")
    chosen = {name: getattr(config, name) for name in fields}
    if streamed.is_streamed(config.dataset):
        return streamed.load(config.dataset, config.data_dir, **chosen)
    return data.load(
        config.dataset, config.data_dir, fashion_mnist_dir=config.fashion_mnist_dir, **chosen
    )


def accuracy(model: keras.Model, dataset: Images) -> float:
    """Share of test images whose largest output is the label's."""
    return accuracy_on(model, dataset.test_batches())


def accuracy_on(model: keras.Model, batches: tf.data.Dataset) -> float:
    """Share of images in batches `(images, labels)` whose largest output is the label's."""
    labels = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
    classes = np.argmax(model.predict(batches, verbose=0), axis=-1)
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


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
