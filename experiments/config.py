"""What one experiment is: a frozen record that checks itself, and that `result.json` repeats."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import re
from typing import Any

from experiments import data, models, streamed
from experiments.datasets import fashion_mnist_idx
import tf_fpq
from tf_fpq.methods import presets
from tf_fpq.methods.base import Method
from tf_fpq.methods.distillation import TUNED_CSD_WEIGHT
from tf_fpq.placement.quantize_configs import config_maker

# The float network itself goes on training, by the student's recipe: what "above float" is beside.
FLOAT = "float"
METHODS = (*presets.GROUPS, *presets.METHODS, FLOAT)
IO_TYPES = ("int8", "uint8", "float32")
KERNELS = ("xnnpack", "builtin", "reference")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")

# Layers that stay at 8 bits, as in the paper: the first convolution and the head.
FIRST_AND_LAST = r"stem_conv|logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An experiment: a float teacher, and a student trained from it.

    Attributes:
      dataset: One of `data.DATASETS`, "imagenet2012", or "folder:" and the path of a folder of
        images (see `streamed`).
      data_dir: TFDS data directory, or None for TFDS's default.
      fashion_mnist_dir: Folder with the four IDX files of Fashion-MNIST.
      train_examples: Number of training images to use, or None for all.
      validation_examples: Number of training images that are held out and take the place of the
        test images; 0 measures on the test images.
      resolution: Side to which square images are pooled, or None; of what is streamed, the side to
        which images are cropped and resized, 224 for None.
      shift: Pixels by which augmentation moves an image at most, or None for the dataset's.
      model: One of `models.BUILDERS`.
      width: Channels of the network's first stage.
      weight_bits: Width of the kernels, except in the first and the last layer (8).
      activation_bits: Width of the tensors that these layers read.
      quantizer: Base quantizer, as in `tf_fpq.quantize_model`.
      methods: Names out of `METHODS`; "fpq" is "sfp" and "csd", "none" is the plain base quantizer,
        "float" is no quantization: the teacher goes on training as a student would.
      method_arguments: Arguments of methods by their names, such as `{"kd": {"temperature": 2}}`.
      schedules: Coefficients that change in training, such as `{"csd.weight": [[0, 1], [0.6, 0]]}`:
        points of share of the training and value, with straight lines between.
      noise_probability: Probability of the perturbation (SFP), per layer and step.
      noise_position: "pre" or "post" the activation's quantizer (SFP).
      csd_weight: Weight of the distillation loss (CSD).
      epochs: Epochs of quantization-aware training.
      float_epochs: Epochs of the float teacher.
      batch_size: Images per step.
      learning_rate: First learning rate of quantization-aware training; a cosine takes it to 0.
      float_learning_rate: First learning rate of the float teacher, likewise.
      step_size_learning_rate_factor: Step sizes learn at this fraction of the learning rate.
      weight_decay: Decoupled weight decay of SGD with momentum 0.9, `w <- w - learning_rate *
        weight_decay * w`.
      float_weight_decay: That of the float teacher; None for the same.
      augment: Whether training images are shifted and flipped.
      jit_compile: Whether XLA compiles the training steps of teacher and student.
      precision: Keras' mixed precision policy, one of `PRECISIONS`. It holds for the teacher; a
        student computes in float32.
      task_weight: Weight of the labels' loss in the student's training; with 0 the losses of the
        methods are alone.
      mixup: Images of the student's training are mixtures of two, by shares of Beta(mixup, mixup);
        0 for none.
      average_from: Share of the student's training from which on its weights are averaged; None for
        the last weights.
      stages: Widths that the student trains at before its own, such as `("W4A4",)`. The epochs are
        shared equally.
      calibration_examples: Training images that the step sizes start from.
      seed: Of the initial weights, the data order, the augmentation and the noise.
      workdir: Folder for everything the experiment writes.
      teacher: A saved float model to load instead of training one, or None.
      input_type: Type of the exported model's input.
      output_type: Type of the exported model's output.
      kernels: Kernel sets of the interpreter that verification runs over the test set, "xnnpack"
        among them.
      min_top1_agreement: Share of test images on which student and exported model must choose the
        same class; None leaves it to `tflite_export.verify`, which knows what chaos alone does.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    fashion_mnist_dir: str = str(fashion_mnist_idx.DEBIAN_DIR)
    train_examples: int | None = None
    validation_examples: int = 0
    resolution: int | None = None
    shift: int | None = None
    model: str = "resnet8"
    width: int = 16
    weight_bits: int = 4
    activation_bits: int = 4
    quantizer: str = "lsq"
    methods: tuple[str, ...] = ("fpq",)
    method_arguments: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    schedules: Mapping[str, Sequence[Sequence[float]]] = dataclasses.field(default_factory=dict)
    noise_probability: float = 0.1
    noise_position: str = "pre"
    csd_weight: float = TUNED_CSD_WEIGHT
    epochs: int = 20
    float_epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.01
    float_learning_rate: float = 0.1
    step_size_learning_rate_factor: float = 0.1
    weight_decay: float = 5e-3
    float_weight_decay: float | None = None
    augment: bool = True
    jit_compile: bool = False
    precision: str = "float32"
    task_weight: float = 1.0
    mixup: float = 0.0
    average_from: float | None = None
    stages: tuple[str, ...] = ()
    calibration_examples: int = 100
    seed: int = 0
    workdir: str = "runs/train"
    teacher: str | None = None
    input_type: str = "int8"
    output_type: str = "int8"
    kernels: tuple[str, ...] = KERNELS
    min_top1_agreement: float | None = None

    def __post_init__(self) -> None:
        """Checks everything that can be checked before hours of training.

        Raises:
          ValueError: If an argument is out of range or unknown.
          FileNotFoundError: If `teacher` is not a file.
        """
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "kernels", tuple(self.kernels))
        object.__setattr__(self, "stages", tuple(self.stages))
        _check_dataset(self.dataset)
        _check_choice("model", self.model, models.BUILDERS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("input_type", self.input_type, IO_TYPES)
        _check_choice("output_type", self.output_type, IO_TYPES)
        for method in self.methods:
            _check_choice("methods", method, METHODS)
        alone = {"none", FLOAT} & set(self.methods)
        if not self.methods or (alone and len(self.methods) > 1):
            raise ValueError(
                "methods must be 'none' alone, 'float' alone, or some of the others. Received:"
                f" methods={self.methods}."
            )
        for kernels in self.kernels:
            _check_choice("kernels", kernels, KERNELS)
        if "xnnpack" not in self.kernels:
            raise ValueError(
                f"kernels must contain xnnpack, what phones run. Received: kernels={self.kernels}."
            )
        self._check_numbers()
        self.in_stages()
        config_maker(self.quantizer)
        self.rules()
        self.schedule_callbacks(self.make_methods())
        if self.teacher is not None and not pathlib.Path(self.teacher).is_file():
            raise FileNotFoundError(
                f"teacher must be a saved Keras model. Received: teacher={self.teacher!r}."
            )

    def of_teacher(self) -> "Config":
        """The configuration as its float teacher's training reads it."""
        decay = self.weight_decay if self.float_weight_decay is None else self.float_weight_decay
        return dataclasses.replace(
            self,
            weight_decay=decay,
            float_weight_decay=None,
            task_weight=1.0,
            mixup=0.0,
            average_from=None,
            stages=(),
        )

    def in_stages(self) -> list["Config"]:
        """The trainings of the student one after the other, each without stages; the last one has
        the widths of this configuration, and the epochs that are left.
        """
        found = []
        share = self.epochs // (len(self.stages) + 1)
        for stage in self.stages:
            match = re.fullmatch(r"W([2-8])A([2-8])", stage)
            if match is None:
                raise ValueError(f"stages must be like W4A4. Received: stages={self.stages}.")
            bits = {"weight_bits": int(match[1]), "activation_bits": int(match[2])}
            found.append(dataclasses.replace(self, stages=(), epochs=share, **bits))
        left = self.epochs - share * len(self.stages)
        return [*found, dataclasses.replace(self, stages=(), epochs=left) if found else self]

    def _check_numbers(self) -> None:
        for name in ("width", "batch_size", "calibration_examples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1. Received: {name}={getattr(self, name)}."
                )
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(
                "train_examples must be at least 1, or None. Received:"
                f" train_examples={self.train_examples}."
            )
        for name in (
            *("epochs", "float_epochs", "weight_decay", "seed", "validation_examples"),
            *("task_weight", "mixup"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must not be negative. Received: {name}={getattr(self, name)}."
                )
        for name in ("learning_rate", "float_learning_rate", "step_size_learning_rate_factor"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite. Received: {name}={value}.")
        if self.float_weight_decay is not None and not self.float_weight_decay >= 0:
            raise ValueError(
                "float_weight_decay must not be negative. Received:"
                f" float_weight_decay={self.float_weight_decay}."
            )
        if self.average_from is not None and not 0 <= self.average_from < 1:
            raise ValueError(
                "average_from must be at least 0 and below 1, or None. Received:"
                f" average_from={self.average_from}."
            )
        if self.min_top1_agreement is not None and not 0 <= self.min_top1_agreement <= 1:
            raise ValueError(
                "min_top1_agreement must be between 0 and 1. Received:"
                f" min_top1_agreement={self.min_top1_agreement}."
            )

    def rules(self) -> list[tf_fpq.QuantRule]:
        """Bit widths per layer: 8 in the first and the last, the chosen ones between."""
        return [
            tf_fpq.QuantRule(FIRST_AND_LAST, weight_bits=8, activation_bits=8),
            tf_fpq.QuantRule(
                r".*", weight_bits=self.weight_bits, activation_bits=self.activation_bits
            ),
        ]

    def make_methods(self) -> list[Method]:
        """New method objects for `tf_fpq.QatModel`; those without a flag of their own have their
        default arguments.
        """
        arguments: dict[str, Mapping[str, Any]] = {
            "sfp": {"probability": self.noise_probability, "position": self.noise_position},
            "csd": {"weight": self.csd_weight},
        }
        for name, more in self.method_arguments.items():
            arguments[name] = {**arguments.get(name, {}), **more}
        names = [name for name in self.methods if name != FLOAT]
        try:
            return tf_fpq.methods_from_names(names, **arguments)
        except TypeError as error:
            raise ValueError(
                f"method_arguments must be arguments of their methods ({error}). Received:"
                f" method_arguments={self.method_arguments}."
            ) from error

    def schedule_callbacks(self, methods: Sequence[Method]) -> list[tf_fpq.callbacks.Schedule]:
        """The callbacks that change coefficients of `methods` as `schedules` says.

        Raises:
          ValueError: If a schedule is of no method of this experiment, or its points are no pairs.
        """
        names = {method.name for method in methods}
        for target, points in self.schedules.items():
            name, _, _ = target.partition(".")
            if name not in names or any(len(point) != 2 for point in points) or not points:
                raise ValueError(
                    "schedules must map 'method.coefficient' of a method in methods to pairs of"
                    f" share and value. Received: schedules={{{target!r}: {points}}} with"
                    f" methods={self.methods}."
                )
        by_name = {method.name: method for method in methods}
        targets = [(target.partition("."), points) for target, points in self.schedules.items()]
        return [
            tf_fpq.callbacks.Schedule(
                by_name[name], coefficient, tf_fpq.callbacks.piecewise(points)
            )
            for (name, _, coefficient), points in targets
        ]


def _check_dataset(name: str) -> None:
    if not streamed.is_streamed(name):
        _check_choice(
            "dataset", name, (*data.DATASETS, streamed.IMAGENET, f"{streamed.FOLDER}PATH")
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}. Received: {name}={value!r}.")
