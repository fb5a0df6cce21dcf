"""One application model through the whole path: quantize, calibrate, one FPQ step, export, verify;
and tfmot's answer.

The weights are random, so the accuracies mean nothing; what is proven is that the path takes the
model and that the file computes what its integer twin computes, on every output code, on XNNPACK
and on the reference kernels.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import re
import tempfile
import time
from typing import Any
import zlib

import numpy as np
import tensorflow as tf

from experiments.evidence import process_memory
import tf_fpq
from tf_fpq.conversion import keras3
from tf_fpq.keras_compat import keras
import tflite_export

SOURCES = ("tf_keras", "keras")
CLASSES = 10
# The smallest model of each family.
SMALLEST = (
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ResNet50",
    "ResNet50V2",
    "ResNetRS50",
    "RegNetX002",
    "RegNetY002",
    "DenseNet121",
    "NASNetMobile",
    "InceptionV3",
    "InceptionResNetV2",
    "Xception",
    "VGG16",
    "ConvNeXtTiny",
)
# Tried in order: the smallest input that a builder allows.
SIZES = (32, 71, 75, 96, 224, 331)
IMAGES = 16
BATCH = 8
SEED = 0
# Each twin and the interpreter it must equal, as `tflite_export.verify` names them.
TWINS = (("twin", "xnnpack"), ("twin_double", "reference"))
STAGES = ("build", "quantize", "calibrate", "train", "export", "verify", "tfmot")

Row = dict[str, Any]


def builders(source: str) -> dict[str, Callable[..., Any]]:
    """The builders of `keras.applications` by name.

    Args:
      source: "tf_keras" or "keras" (Keras 3).
    """
    if source == "tf_keras":
        applications = keras.applications
    else:
        from keras import applications
    return {
        name: getattr(applications, name) for name in sorted(dir(applications)) if name[0].isupper()
    }


def run(name: str, source: str) -> Iterator[Row]:
    """Takes one model through the stages; yields the row as it stands before and after each.

    A row says in `status` "passed", "failed" or, until all is done, "unfinished"; `stage` is where
    it is or stopped, `reason` why, `seconds` the time of each stage, `cpu_seconds` that of all of
    them but tfmot's on the processors.
    """
    row: Row = {
        "name": name,
        "source": source,
        "status": "unfinished",
        "reason": "",
        "stage": "",
        "tfmot": "",
        "seconds": {},
    }
    case, cpu = Case(name, source), time.process_time()
    for stage in STAGES[:-1]:
        row |= {"stage": stage}
        yield row
        start = time.perf_counter()
        try:
            getattr(case, stage)()
        except Exception as error:
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {_one_line(error)}"}
        row["seconds"][stage] = round(time.perf_counter() - start, 2)
        row["cpu_seconds"] = round(time.process_time() - cpu, 1)
        row |= case.facts | {"memory_mib": process_memory.peak_mib()}
        if row["status"] == "failed":
            break
    else:
        row["status"] = "passed"
    row["tfmot"] = "no answer"
    yield row
    start = time.perf_counter()
    row["tfmot"] = case.tfmot()
    row["seconds"]["tfmot"] = round(time.perf_counter() - start, 2)
    yield row


class Case:
    """The stages of one model; each leaves what the next needs.

    Attributes:
      facts: What the stages found out, for the row.
    """

    def __init__(self, name: str, source: str):
        self._builder, self._source = builders(source)[name], source
        self.facts: Row = {}
        self._model: Any = None
        self._asked: Any = None

    def build(self) -> None:
        """The float model with random weights, its batch norms settled on random images.

        A Keras 3 model is converted before that, with the check that both compute the same;
        settling makes a random network so sensitive that the order of float sums shows.
        """
        keras.utils.set_random_seed(SEED)
        self._asked = self._model = smallest(self._builder)
        if keras3.is_keras3_model(self._model):
            self._model = keras3.from_keras3(self._model)
        self.facts |= {
            "input": self._model.input_shape[1],
            "parameters": int(self._model.count_params()),
        }
        self._images = random_images(self._model)
        settle(self._model, self._images)

    def quantize(self) -> None:
        """W4A4, the first and the last layer W8A8."""
        kernels = list(kernel_names(self._model))
        ends = "|".join(re.escape(name) for name in (kernels[0], kernels[-1]))
        rules = [
            tf_fpq.QuantRule(ends, weight_bits=8, activation_bits=8),
            tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4),
        ]
        self._student = tf_fpq.quantize_model(self._model, rules)

    def calibrate(self) -> None:
        """Step sizes from all images."""
        tf_fpq.calibrate(self._student, self._images, verbose=0)

    def train(self) -> None:
        """One step of FPQ: noise at the convolutions' inputs, distillation of their outputs."""
        methods = [
            tf_fpq.FeaturePerturbation(probability=0.5),
            tf_fpq.ChannelStandardizedDistillation(weight=0.1),
        ]
        trainer = tf_fpq.QatModel(self._student, teacher=self._model, methods=methods)
        # Eagerly: tracing a step of a deep model takes minutes, and it runs once.
        optimizer, loss = keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy"
        trainer.compile(optimizer=optimizer, loss=loss, run_eagerly=True)
        before = self._checksums()
        labels = np.arange(BATCH) % CLASSES
        logs = trainer.train_on_batch(self._images[:BATCH], labels, return_dict=True)
        if not np.isfinite(list(logs.values())).all():
            raise ValueError(f"the training step's losses are not finite: {logs}")
        if self._checksums() == before:
            raise ValueError("the training step changed no weight")

    def _checksums(self) -> list[int]:
        """Of the trained weights, which a large model holds often enough without a copy."""
        return [zlib.crc32(weight.numpy().tobytes()) for weight in self._student.trainable_weights]

    def export(self) -> None:
        """The `.tflite` file."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            self._exported = tflite_export.export(
                self._student, os.path.join(folder, "model.tflite")
            )
            self._folder = stack.pop_all()
        self.facts |= {
            "bytes": self._exported.bytes,
            "operators": len(self._exported.deployed.operators),
        }

    def verify(self) -> None:
        """Twin against XNNPACK and the reference kernels, all output codes and the tensors of two
        images.
        """
        with self._folder, eagerly():
            report = tflite_export.verify(
                self._student,
                self._exported,
                self._images,
                kernels=("xnnpack", "reference"),
                tensor_images=2,
                batch_size=BATCH,
                min_top1_agreement=0.0,  # random weights: the classes are as good as tied
                verbose=0,
            )
        twins = [found for found in report.outputs if (found.left, found.right) in TWINS]
        self.facts["output_codes"] = sum(found.codes for found in twins)

    def tfmot(self) -> str:
        """What `tfmot.quantization.keras.quantize_model` says to the same model: "ok" or its
        message.
        """
        import tensorflow_model_optimization as tfmot

        if self._asked is None:
            return "not asked"
        try:
            tfmot.quantization.keras.quantize_model(self._asked)
        except Exception as error:
            return f"{type(error).__name__}: {_one_line(error, 200)}"
        return "ok"


def smallest(builder: Callable[..., Any]) -> Any:
    """The builder's model with the smallest input it allows, random weights and 10 classes.

    Raises:
      ValueError: The builder's own, if it allows none of `SIZES`.
    """
    for size in SIZES:
        try:
            return builder(weights=None, classes=CLASSES, input_shape=(size, size, 3))
        except ValueError:
            if size == SIZES[-1]:
                raise
    raise AssertionError("unreachable: the last size returns or raises")


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Runs graph functions step by step: faster where each runs once or twice."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def kernel_names(model: Any) -> Iterator[str]:
    """Names of the layers with a kernel, nested ones too."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from kernel_names(layer)
        elif type(layer).__name__ in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense"):
            yield layer.name


def random_images(model: Any) -> np.ndarray:
    """Random images in the range the model takes: pixels if it preprocesses them itself, else
    -1..1.
    """
    own = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    size = model.input_shape[1]
    noise = np.random.default_rng(SEED).uniform(0, 1, (IMAGES, size, size, 3))
    return ((noise * 255) if own else (noise * 2 - 1)).astype(np.float32)


def settle(model: Any, images: np.ndarray) -> None:
    """Sets the batch norms' moving statistics to those of `images`, so that signals neither die nor
    explode.

    Nothing is dropped meanwhile: statistics behind a dropout are not those of inference.
    """
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    dropouts = [layer for layer in model.layers if "Dropout" in type(layer).__name__]
    momenta, rates = [layer.momentum for layer in norms], [layer.rate for layer in dropouts]
    for layer in norms:
        layer.momentum = 0.0
    for layer in dropouts:
        layer.rate = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate


def _one_line(error: Exception, limit: int = 1000) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with the counts before it."""
    lines = []
    for source in SOURCES:
        mine = [row for row in rows if row["source"] == source]
        passed = sum(row["status"] == "passed" for row in mine)
        ok = sum(row["tfmot"] == "ok" for row in mine)
        lines.append(
            f"- {source}: {len(mine)} of {len(builders(source))} run: {passed} pass; tfmot"
            f" quantizes {ok}."
        )
    lines += [
        "",
        "| model | source | status | seconds | MiB | tfmot | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (SOURCES.index(row["source"]), row["name"])):
        seconds = sum(value for stage, value in row["seconds"].items() if stage != "tfmot")
        cells = (
            row["name"],
            row["source"],
            row["status"],
            f"{seconds:.0f}",
            str(row.get("memory_mib", "")),
            _cell(row["tfmot"]),
            _cell(f"{row['stage']}: {row['reason']}" if row["reason"] else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str, limit: int = 160) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= limit else f"{text[:limit]} ..."
