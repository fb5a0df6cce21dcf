r"""Trains a float network, quantizes it, trains on with it as teacher, and proves the export.

Writes to --workdir: float.keras, student.keras, model.tflite, report.json, report.html and
result.json (configuration, versions, commit, metrics). The same command goes on with a run that was
killed, after its last whole epoch, and ends with the same bits.

Examples:

  The demo: digits that come with scikit-learn, W4A4, FPQ (noise and distillation).
    python -m experiments.train

  Real images, two bits, the plain base quantizer as a baseline, a float network trained before.
    python -m experiments.train --dataset=fashion_mnist --weight_bits=2 \
        --activation_bits=4 --methods=none \
        --teacher=runs/fashion/float.keras --workdir=runs/fashion_lsq_w2a4

  Half of FPQ: the noise only, after the quantizer.
    python -m experiments.train --methods=sfp --noise_position=post --noise_probability=0.3

  Look at a new setting on a few images first.
    python -m experiments.train --dataset=cifar10 --model=resnet20 --train_examples=2000 \
        --float_epochs=2 --epochs=2
"""

from collections.abc import Sequence
import dataclasses
import json
import sys
from typing import Any

from absl import app, flags

from experiments import checkpoints, data, models, pipeline, run_folder
from experiments.config import FLOAT, IO_TYPES, METHODS, PRECISIONS, Config
from tf_fpq import programs
import tflite_export


class JsonParser(flags.ArgumentParser):
    """A flag that is an object of JSON."""

    syntactic_help = "an object of JSON."

    def parse(self, argument: Any) -> dict[str, Any]:
        """The object; ValueError if it is none."""
        found = json.loads(argument) if isinstance(argument, str) else argument
        if not isinstance(found, dict):
            raise ValueError(f"must be an object of JSON. Received: {argument!r}.")
        return found

    def flag_type(self) -> str:
        """How help names the type."""
        return "JSON"


flags.DEFINE_string(
    "dataset",
    Config.dataset,
    f"Images to train and test on: {', '.join(data.DATASETS)}, imagenet2012, or folder:PATH with"
    " train/CLASS/*.jpg and test/CLASS/*.jpg.",
)
flags.DEFINE_string(
    "data_dir", Config.data_dir, "TFDS data directory; ~/tensorflow_datasets by default."
)
flags.DEFINE_string(
    "fashion_mnist_dir",
    Config.fashion_mnist_dir,
    "Folder with the four IDX files of Fashion-MNIST.",
)
flags.DEFINE_integer(
    "train_examples", Config.train_examples, "Use only so many training images; all by default."
)
flags.DEFINE_integer(
    "validation_examples",
    Config.validation_examples,
    "Training images that are held out and measured on, instead of the test images.",
)
flags.DEFINE_integer(
    "resolution",
    Config.resolution,
    "Side that square images are pooled to; those of a folder and of ImageNet are cropped and"
    " resized to it, by default to 224.",
)
flags.DEFINE_integer(
    "shift", Config.shift, "Pixels that augmentation moves an image by, at most; by dataset."
)
flags.DEFINE_enum("model", Config.model, list(models.BUILDERS), "Network.")
flags.DEFINE_integer("width", Config.width, "Channels of the network's first stage.")
flags.DEFINE_integer(
    "weight_bits", Config.weight_bits, "2 to 8; the first and the last layer stay at 8."
)
flags.DEFINE_integer(
    "activation_bits", Config.activation_bits, "2 to 8, of what these layers read."
)
flags.DEFINE_string("quantizer", Config.quantizer, "Base quantizer of tf_fpq.quantize_model.")
flags.DEFINE_list(
    "methods",
    ",".join(Config.methods),
    f"Training methods, out of {', '.join(METHODS)}: sfp is noise at the inputs of convolutions,"
    " csd is distillation of their outputs, fpq is both, kd is distillation of the logits, squat is"
    " distillation of features on the student's grid, cr is consistency with a moving average of"
    " the student on two views, sam is sharpness-aware minimization, dampening and freezing are"
    " against oscillating weights, none is the plain base quantizer.",
)
flags.DEFINE(
    JsonParser(), "method_arguments", "{}", 'Arguments of methods, as {"kd": {"temperature": 2}}.'
)
flags.DEFINE(
    JsonParser(),
    "schedules",
    "{}",
    'Coefficients over the training, as {"csd.weight": [[0, 1], [0.6, 0]]}: share done, value.',
)
flags.DEFINE_float(
    "noise_probability", Config.noise_probability, "sfp: probability per layer and step."
)
flags.DEFINE_enum(
    "noise_position", Config.noise_position, ["pre", "post"], "sfp: before or after the quantizer."
)
flags.DEFINE_float("csd_weight", Config.csd_weight, "csd: weight of the loss.")
flags.DEFINE_integer("epochs", Config.epochs, "Epochs of quantization-aware training.")
flags.DEFINE_integer("float_epochs", Config.float_epochs, "Epochs of the float teacher.")
flags.DEFINE_integer("batch_size", Config.batch_size, "Images per step.")
flags.DEFINE_float(
    "learning_rate",
    Config.learning_rate,
    "First rate of quantization-aware training; a cosine ends at 0.",
)
flags.DEFINE_float(
    "float_learning_rate", Config.float_learning_rate, "First rate of the float teacher, likewise."
)
flags.DEFINE_float(
    "step_size_learning_rate_factor",
    Config.step_size_learning_rate_factor,
    "Step sizes learn at this fraction of the learning rate.",
)
flags.DEFINE_float(
    "weight_decay",
    Config.weight_decay,
    "Decoupled weight decay. The coupled 5e-4 of the papers corresponds to about 5e-3 here, because"
    " their momentum of 0.9 multiplies it by 10.",
)
flags.DEFINE_float(
    "float_weight_decay",
    Config.float_weight_decay,
    "That of the float teacher; by default the same.",
)
flags.DEFINE_float(
    "task_weight", Config.task_weight, "Weight of the labels' loss beside those of the methods."
)
flags.DEFINE_float(
    "mixup", Config.mixup, "Mixes images of the student's training, by shares of Beta(a, a)."
)
flags.DEFINE_float(
    "average_from", Config.average_from, "Averages the student's weights from this share on."
)
flags.DEFINE_list("stages", ",".join(Config.stages), "Widths the student trains at first, as W4A4.")
flags.DEFINE_bool("augment", Config.augment, "Shift and flip training images.")
flags.DEFINE_bool("jit_compile", Config.jit_compile, "Compile the training steps with XLA.")
flags.DEFINE_enum(
    "precision",
    Config.precision,
    PRECISIONS,
    "Mixed precision policy; it holds for the float teacher, a student computes in float32.",
)
flags.DEFINE_integer(
    "calibration_examples",
    Config.calibration_examples,
    "Training images the step sizes start from.",
)
flags.DEFINE_integer("seed", Config.seed, "Of everything random.")
flags.DEFINE_string("workdir", Config.workdir, "Folder to write to.")
RESUME = flags.DEFINE_bool(
    "resume",
    True,
    "Go on with a run of the same configuration in --workdir; without it such a run is removed.",
)
KEEP_CHECKPOINTS = flags.DEFINE_integer(
    "keep_checkpoints",
    checkpoints.KEPT,
    "Checkpoints of a training that stay until the run is finished; one is written every epoch.",
    lower_bound=1,
)
flags.DEFINE_string(
    "teacher", Config.teacher, "A saved float.keras to load instead of training one."
)
flags.DEFINE_enum("input_type", Config.input_type, IO_TYPES, "Input type of model.tflite.")
flags.DEFINE_enum("output_type", Config.output_type, IO_TYPES, "Output type of model.tflite.")
flags.DEFINE_list(
    "kernels",
    ",".join(Config.kernels),
    "Kernel sets that verification runs over the test set; xnnpack alone is fastest, reference is"
    " 40 times slower.",
)
flags.DEFINE_float(
    "min_top1_agreement",
    Config.min_top1_agreement,
    "Share of test images on which student and model.tflite must choose the same class; by default"
    " verify asks for what is left of chaos.",
)


# What a run may end with: a line each.
EXPECTED_ERRORS = (
    data.DatasetMissingError,
    run_folder.OtherRunError,
    tflite_export.VerificationError,
    ArithmeticError,
    ImportError,
    OSError,
    ValueError,
)


def config_from_flags() -> Config:
    """The experiment that the flags describe; every field of `Config` is a flag.

    Raises:
      app.UsageError: If a flag is out of range.
    """
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Config)}
    try:
        config = Config(**values)
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error
    if config.methods == (FLOAT,):
        raise app.UsageError(
            "methods=float has no student to export; experiments.sweep runs it for its tables."
        )
    return config


def main(argv: Sequence[str]) -> None:
    """Runs the experiment and prints its table."""
    try:
        if len(argv) > 1:
            raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
        config = config_from_flags()
    except app.UsageError as error:
        # absl would print the help of all flags before it.
        sys.exit(f"error: {error}")
    try:
        result = pipeline.run(config, resume=RESUME.value, keep_checkpoints=KEEP_CHECKPOINTS.value)
    except EXPECTED_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(pipeline.table(result))
    print(
        f"Written to {config.workdir}: model.tflite, report.html, result.json, float.keras,"
        " student.keras"
    )


if __name__ == "__main__":
    programs.run(main)
