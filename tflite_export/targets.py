"""What a deployment target asks of a `.tflite` file, as one record per target.

Functions say what of it a file does not meet. Needs no TensorFlow.

The facts, with the runs and sources behind them, are in docs/targets.md.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import metadata as metadata_lib
from tflite_export.flatbuffer import operator_versions
from tflite_export.lowering.io_types import IO_TYPES, IoType

_RGB = 3
_NO_METADATA = metadata_lib.Metadata()


@dataclasses.dataclass(frozen=True)
class Target:
    """What one target asks.

    Attributes:
      name: What `export(..., target=...)` and `--target` call it.
      title: What it is.
      source: Where its constraints come from.
      runtime: Release of TensorFlow Lite whose operator versions it has; None for the current one.
      per_tensor: Operators whose weights must have a single scale.
      fixed_batch: Whether a signature with the batch size -1 is a risk or refused.
      input_types: Types of inputs it takes; the first one is the default of `export`.
      output_types: Likewise for outputs.
      int4: Whether packed INT4 weights run.
      max_rank: Largest number of dimensions of an activation; None for no limit.
      same_grid: Operators whose inputs and outputs must lie on one grid.
      dense_multiple: Number of which both sizes of a Dense layer must be multiples.
      images: Whether it reads images by the file's metadata.
    """

    name: str
    title: str
    source: str
    runtime: str | None = None
    per_tensor: tuple[str, ...] = ()
    fixed_batch: bool = False
    input_types: tuple[IoType, ...] = IO_TYPES
    output_types: tuple[IoType, ...] = IO_TYPES
    int4: bool = True
    max_rank: int | None = None
    same_grid: tuple[str, ...] = ()
    dense_multiple: int = 1
    images: bool = False


@dataclasses.dataclass(frozen=True)
class Violation:
    """One thing that a target does not take: where, what, and the way out."""

    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}. {self.fix}"


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("litert", "LiteRT 2.3, every phone's CPU", "run: experiments.evidence.clients"),
        Target(
            "tflite_2_14",
            "TensorFlow Lite 2.14 (the last tflite-runtime)",
            "run: experiments.evidence.clients; op_version.cc and runtime_version.cc of TensorFlow",
            runtime="2.14.0",
        ),
        Target(
            "task_library",
            "TensorFlow Lite Task Library 0.4.4",
            "run: experiments.evidence.clients; tensorflow/tflite-support#968",
            runtime="2.14.0",
            fixed_batch=True,
            input_types=("float32", "uint8"),
            output_types=("uint8", "float32"),
            images=True,
        ),
        Target(
            "mediapipe",
            "MediaPipe Tasks 1.2",
            "run: experiments.evidence.clients; google-ai-edge/mediapipe#5583",
            fixed_batch=True,
            input_types=("float32", "uint8"),
            output_types=("uint8", "float32"),
            images=True,
        ),
        Target(
            "tflm",
            "TensorFlow Lite for Microcontrollers since September 2024",
            "run: experiments.evidence.clients; tensorflow/tflite-micro#2602, #2673",
            fixed_batch=True,
        ),
        Target(
            "tflm_2023",
            "TensorFlow Lite for Microcontrollers before September 2024",
            "tensorflow/tflite-micro#2602: FULLY_CONNECTED is per tensor",
            per_tensor=("FULLY_CONNECTED",),
            fixed_batch=True,
        ),
        Target(
            "esp_nn",
            "Espressif ESP-NN on ESP32-S3",
            "espressif/esp-nn#34 and esp_nn_esp32s3.h; espressif/esp-tflite-micro#108, #109",
            per_tensor=("FULLY_CONNECTED",),
            fixed_batch=True,
            dense_multiple=8,
        ),
        Target(
            "vela",
            "Arm Vela for Ethos-U",
            "run: experiments.evidence.clients; SUPPORTED_OPS.md of ethos-u-vela",
            fixed_batch=True,
            input_types=("int8", "uint8"),
            output_types=("int8", "uint8"),
            int4=False,
            max_rank=4,
            same_grid=("RESHAPE", "MINIMUM", "MAXIMUM"),
        ),
        Target(
            "edge_tpu",
            "Coral Edge TPU and Axis ARTPEC-7",
            "developer.axis.com, ARTPEC-7, optimization tips and supported operators",
            fixed_batch=True,
            input_types=("int8", "uint8"),
            output_types=("int8", "uint8"),
            int4=False,
            max_rank=4,
        ),
    )
}


def find(name: str) -> Target:
    """The target of a name.

    Raises:
      ValueError: If there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}. Received: target={name!r}.")
    return TARGETS[name]


def violations(
    model: deployed_lib.DeployedModel,
    target: Target,
    metadata: metadata_lib.Metadata = _NO_METADATA,
) -> list[Violation]:
    """What in a file a target does not take, in the order of the target's constraints.

    Args:
      model: Records of the file, with the types at its borders.
      target: The target.
      metadata: The file's metadata.
    """
    found = [violation for check in _CHECKS for violation in check(model, target)]
    return found + (list(of_metadata(model, metadata, strict=True)) if target.images else [])


def of_metadata(
    model: deployed_lib.DeployedModel, metadata: metadata_lib.Metadata, strict: bool = False
) -> Iterator[Violation]:
    """What the readers of metadata, MediaPipe Tasks and the Task Library, would refuse.

    Args:
      model: Records of the file.
      metadata: Its metadata.
      strict: Whether what a file needs for an image classifier must be there.
    """
    tensor, output = (model.tensors[names[0]] for names in (model.inputs, model.outputs))
    if tensor.dtype not in ("uint8", "float32"):
        yield Violation(
            tensor.name,
            f"readers of metadata take uint8 or float32 images, not {tensor.dtype}",
            "Export with input_type='float32', or 'uint8' where its codes are the pixels.",
        )
    if output.dtype not in ("uint8", "float32"):
        yield Violation(
            output.name,
            f"readers of metadata take uint8 or float32 scores, not {output.dtype}",
            "Export with output_type='uint8' or 'float32'.",
        )
    if tensor.dtype == "float32" and metadata.mean is None:
        yield Violation(
            tensor.name,
            "a float32 image needs its normalization in the metadata",
            "Export with normalization=(mean, std) of the training's preprocessing.",
        )
    normalization = metadata.normalization
    if normalization is not None and len({*zip(*normalization, strict=True)}) > 1:
        yield Violation(
            tensor.name,
            "readers of metadata have no normalization per channel",
            "Train with one mean and one std for all channels, or put the normalization into the"
            " network.",
        )
    if strict and (len(tensor.shape) != 4 or tensor.shape[-1] != _RGB):
        yield Violation(
            tensor.name,
            f"readers of metadata take images of 3 channels, not {list(tensor.shape)}",
            "Train on RGB images.",
        )


def _operators(model: deployed_lib.DeployedModel, target: Target) -> Iterator[Violation]:
    """Versions that are younger than the target's runtime."""
    if target.runtime is None:
        return
    for operator in model.operators:
        number = operator.version or operator_versions.version(operator, model.tensors)
        needs = operator_versions.runtime_of(operator.kind, number)
        if operator_versions.as_numbers(needs) <= operator_versions.as_numbers(target.runtime):
            continue
        fix = "Use the layers of an older network, or a newer runtime."
        if operator.kind == "FULLY_CONNECTED" and _scales(operator, model) > 1:
            fix = _per_tensor_fix(operator)
        yield Violation(
            _name(operator),
            f"{operator.kind} version {number} needs TensorFlow Lite {needs}",
            fix,
        )


def _weights(model: deployed_lib.DeployedModel, target: Target) -> Iterator[Violation]:
    """Scales per channel and packed weights where the target has none."""
    for operator in model.operators:
        if operator.kind in target.per_tensor and (count := _scales(operator, model)) > 1:
            yield Violation(
                _name(operator),
                f"{operator.kind} has {count} scales of its weights where one is taken",
                _per_tensor_fix(operator),
            )
    for tensor in model.tensors.values():
        if not target.int4 and tensor.dtype == "int4":
            yield Violation(
                tensor.name, "packed INT4 weights do not run", "Export with weights='int8'."
            )


def _shapes(model: deployed_lib.DeployedModel, target: Target) -> Iterator[Violation]:
    """Batch, ranks and sizes."""
    if target.fixed_batch and not model.fixed_batch:
        yield Violation(
            ", ".join(model.inputs),
            "the signature leaves the batch size open (-1)",
            f"Export with target={target.name!r}, which fixes it at 1.",
        )
    for tensor in model.tensors.values():
        if target.max_rank and tensor.data is None and len(tensor.shape) > target.max_rank:
            yield Violation(
                tensor.name,
                f"has {len(tensor.shape)} dimensions; {target.max_rank} are taken",
                "Reshape to fewer dimensions in the network.",
            )
    for operator in model.operators:
        if operator.kind == "FULLY_CONNECTED" and operator.inputs[1]:
            sizes = model.tensors[operator.inputs[1]].shape
            if any(size % target.dense_multiple for size in sizes):
                yield Violation(
                    _name(operator),
                    f"{sizes[0]} outputs of {sizes[1]} inputs: both must be multiples of"
                    f" {target.dense_multiple}, else its results are wrong without a word",
                    "Give the Dense layer more units (outputs that nobody reads) and the layer"
                    " before it more channels.",
                )


def _borders(model: deployed_lib.DeployedModel, target: Target) -> Iterator[Violation]:
    """Types of inputs and outputs; those of images are said by `of_metadata`."""
    if target.images:
        return
    for what in ("input", "output"):
        allowed = getattr(target, f"{what}_types")
        for name in getattr(model, f"{what}s"):
            if (dtype := model.tensors[name].dtype) not in allowed:
                yield Violation(
                    name,
                    f"the {what} is {dtype}; {' or '.join(allowed)} is taken",
                    f"Export with {what}_type={allowed[0]!r}.",
                )


def _grids(model: deployed_lib.DeployedModel, target: Target) -> Iterator[Violation]:
    """Operators that must not change a grid."""
    for operator in model.operators:
        if operator.kind not in target.same_grid:
            continue
        tensors = [model.tensors[n] for n in (*operator.inputs, *operator.outputs) if n]
        quantized = [tensor for tensor in tensors if tensor.scale is not None]
        if any(not _same_grid(a, b) for a, b in itertools.pairwise(quantized)):
            yield Violation(
                _name(operator),
                f"{operator.kind} changes the grid, and so runs on the CPU",
                "Quantize its inputs and its output alike.",
            )


_CHECKS: tuple[Callable[[deployed_lib.DeployedModel, Target], Iterator[Violation]], ...] = (
    _operators,
    _weights,
    _shapes,
    _borders,
    _grids,
)


def _per_tensor_fix(operator: deployed_lib.Operator) -> str:
    layer = operator.inputs[1].removesuffix("_kernel")
    return (
        f"Quantize the student with QuantRule({layer!r}, ..., per_channel=False) and train it so;"
        " a batch norm behind a Dense layer makes it per channel again."
    )


def _scales(operator: deployed_lib.Operator, model: deployed_lib.DeployedModel) -> int:
    tensor = model.tensors.get(operator.inputs[1]) if len(operator.inputs) > 1 else None
    return 0 if tensor is None or tensor.scale is None else int(np.size(tensor.scale))


def _same_grid(a: deployed_lib.Tensor, b: deployed_lib.Tensor) -> bool:
    # Also where neither has a scale.
    scales = np.array_equal(np.asarray(a.scale), np.asarray(b.scale))
    return scales and np.array_equal(a.zero_point, b.zero_point)


def _name(operator: deployed_lib.Operator) -> str:
    return next(iter(operator.outputs), operator.kind)
