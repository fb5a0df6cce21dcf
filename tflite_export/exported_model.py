"""`export`: a trained student in, a `.tflite` file and its integer twin out."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING, Any
import warnings

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export import targets
from tflite_export.flatbuffer import metadata as metadata_lib
from tflite_export.flatbuffer import reader, writer
from tflite_export.lowering import io_types
from tflite_export.lowering.io_types import IoType

if TYPE_CHECKING:
    from tflite_export.lowering.builder import Lowered
    from tflite_export.twin.integer_twin import IntegerTwin


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ExportedModel:
    """An exported network.

        exported = tflite_export.export(student, "x.tflite")
        exported.twin.predict(images)  # what the phone computes

    Attributes:
      path: The `.tflite` file.
      deployed: The network inside the borders: int8 in, int8 out.
      input_type: Type of the file's input: "int8", "uint8" or "float32".
      output_type: Type of the file's output.
      weights: "int8", or "int4" for packed INT4 weights where they fit.
      bytes: Size of the file.
      metadata: Class labels and input normalisation that the file holds.
    """

    path: str
    deployed: deployed_lib.DeployedModel
    input_type: IoType
    output_type: IoType
    weights: deployed_lib.WeightType
    bytes: int
    metadata: metadata_lib.Metadata = metadata_lib.Metadata()

    def __repr__(self) -> str:
        """One line; the codes are in `deployed`."""
        return (
            f"ExportedModel({self.path!r}, {self.name!r}: {len(self.deployed.operators)} operators,"
            f" {self.bytes:,} bytes, {self.weights} weights, {self.input_type} to"
            f" {self.output_type})"
        )

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.deployed.name

    @functools.cached_property
    def file_model(self) -> deployed_lib.DeployedModel:
        """The records the file holds: `deployed` with the file's types at its io_types."""
        return io_types.with_io(self.deployed, self.input_type, self.output_type)

    @functools.cached_property
    def twin(self) -> "IntegerTwin":
        """The integer twin, a Keras model from float images to float outputs.

        It computes what XNNPACK computes on the phone.
        """
        from tflite_export.twin import integer_twin

        return integer_twin.IntegerTwin(self.deployed)


def export(
    student: Any,
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    input_type: IoType | None = None,
    output_type: IoType | None = None,
    weights: deployed_lib.WeightType = "int8",
    round_biases: bool = True,
    labels: Sequence[str] | None = None,
    normalization: tuple[Any, Any] | None = None,
) -> ExportedModel:
    """Writes a student as a `.tflite` file whose integers are the trained ones.

        exported = tflite_export.export(model.student, "x.tflite", target="mediapipe")

    The deployed model holds biases as int32 multiples of `input scale * weight scale`. With
    `round_biases` the student's own biases move onto that grid too, by at most half a step, so that
    from then on the student computes what the file does: at low widths nearly every code is equal
    (see `lowering.builder.Lowered.round_biases`). Weights that came to rest within a few float ulps
    of a rounding threshold move off it, so that no other way to compute their codes finds others
    (see `lowering.weight_ties`). The file is the same either way.

    Args:
      student: A model from `tf_fpq.quantize_model` (of a `QatModel`, its `student`).
      path: File to write, whole or not at all.
      target: Where the file shall run, a name of `tflite_export.targets.TARGETS` such as
        "tflite_2_14", "mediapipe", "tflm", "esp_nn" or "vela". It sets border types and the batch
        size where the target wants them, and refuses, with the way out, what does not run there.
        None is LiteRT, which takes all that is written here.
      input_type: Type of the file's input; None for the target's, or "int8". "int8" takes codes,
        `clip(round(x / scale) + zero_point)`; "uint8" the same codes 128 higher; "float32" the
        preprocessed images themselves.
      output_type: Type of the file's output, likewise.
      weights: "int8" containers at every bit width: equal on every phone. "int4" packs the weights
        of convolutions and Dense layers whose codes fit 4 bits: half the bytes, but convolutions
        then run on kernels that round differently across processors.
      round_biases: Move the student's biases onto their deployed grid, and its weights off rounding
        thresholds, in place. False leaves the student as it is, and then its outputs differ from
        the file's by what the rounding tips over.
      labels: Class names in the order of the outputs, embedded as TFLite metadata for the Task
        Library and ML Kit.
      normalization: `(mean, std)` of the training's preprocessing `x = (pixel - mean) / std` of
        pixels 0..255, each a number or one per channel; embedded likewise. Readers apply it to a
        float32 input. Into a uint8 input they put the pixels as they are: right only if the input's
        grid is that of the pixels, scale `1 / std` and zero point `mean`; a warning says so.

    Returns:
      The exported model; `tflite_export.verify` proves it equal to its twin.

    Raises:
      TypeError: If `student` is no Keras 2 model.
      ValueError: If it is no quantized student, an argument is unknown, or the file would not run
        on the target.
      OSError: If the path cannot be written.
    """
    profile = targets.find("litert" if target is None else target)
    input_type = input_type or profile.input_types[0]
    output_type = output_type or profile.output_types[0]
    _check_arguments(input_type, output_type, weights)
    found = lowered(student, weights)
    deployed = dataclasses.replace(found.deployed, fixed_batch=profile.fixed_batch)
    metadata = metadata_lib.make(deployed, labels, normalization)
    file_model = io_types.with_io(deployed, input_type, output_type)
    _check_target(file_model, profile, metadata)
    if metadata.normalization is not None and input_type == "uint8":
        _warn_unless_pixels(deployed.tensors[deployed.inputs[0]], *metadata.normalization)
    data = writer.to_bytes(file_model, metadata_lib.entries(file_model, metadata))
    size = writer.write_bytes(metadata_lib.append_files(data, metadata), path)
    if round_biases:
        from tflite_export.lowering import weight_ties

        found.round_biases()
        weight_ties.leave(student)
    return ExportedModel(
        os.fspath(path), deployed, input_type, output_type, weights, size, metadata
    )


def deployed_model(
    student: Any, weights: deployed_lib.WeightType = "int8"
) -> deployed_lib.DeployedModel:
    """The deployed model of a student, with packed weights where asked; see `export`."""
    return lowered(student, weights).deployed


def lowered(student: Any, weights: deployed_lib.WeightType = "int8") -> "Lowered":
    """What one walk over a student finds; arguments and errors are those of `export`."""
    from tf_fpq.keras_compat import keras
    from tflite_export.lowering import builder, signature

    if not isinstance(student, keras.Model):
        raise TypeError(
            "student must be a model from tf_fpq.quantize_model (Keras 2, tf_keras). "
            f"Received: student of type {type(student).__module__}.{type(student).__name__}."
        )
    if isinstance(getattr(student, "student", None), keras.Model):
        raise ValueError(f"student is a {type(student).__name__}; export its `.student` instead.")
    if not getattr(student, "_is_graph_network", False):
        raise ValueError(
            "student must be a functional model from tf_fpq.quantize_model. "
            f"Received: a subclassed or unbuilt {type(student).__name__} {student.name!r}."
        )
    found = builder.lower(student, weights)
    if weights == "int4" and not any(
        tensor.dtype == "int4" for tensor in found.deployed.tensors.values()
    ):
        raise ValueError(
            f"No weight of {student.name!r} fits INT4: it needs a convolution or Dense layer with"
            " weight_bits of 4 or less. Received: weights='int4'."
        )
    input_keys, output_keys = signature.keys(student)
    named = dataclasses.replace(found.deployed, input_keys=input_keys, output_keys=output_keys)
    return dataclasses.replace(found, deployed=named)


def open_exported(student: Any, path: str | os.PathLike[str]) -> ExportedModel:
    """The `ExportedModel` of a student and a file that was exported from it earlier.

        exported = tflite_export.open_exported(student, "x.tflite")

    Nothing is compared here; that is what `verify` does.

    Raises:
      ValueError: If the file is no whole `.tflite` file or has border types that no export has.
      OSError: If it cannot be read.
    """
    found = reader.read(path)
    input_type, output_type = (
        _io_type(path, {found.tensors[name].dtype for name in names})
        for names in (found.inputs, found.outputs)
    )
    packed = any(tensor.dtype == "int4" for tensor in found.tensors.values())
    weights: deployed_lib.WeightType = "int4" if packed else "int8"
    size = pathlib.Path(path).stat().st_size
    deployed, metadata = deployed_model(student, weights), metadata_lib.read_metadata(path)
    deployed = dataclasses.replace(deployed, fixed_batch=found.fixed_batch)
    return ExportedModel(
        os.fspath(path), deployed, input_type, output_type, weights, size, metadata
    )


def _io_type(path: str | os.PathLike[str], dtypes: set[str]) -> IoType:
    """The one type of a file's inputs or outputs."""
    for io_type in io_types.IO_TYPES:
        if dtypes == {io_type}:
            return io_type
    raise ValueError(
        f"{os.fspath(path)!r} was not exported by tflite_export: its borders are"
        f" {sorted(dtypes)}; expected one of {io_types.IO_TYPES}."
    )


def unpacked_weights(deployed: deployed_lib.DeployedModel) -> list[str]:
    """Names of weights that are int8 in a model exported with `weights="int4"`."""
    kinds = (*deployed_lib.INT4_KINDS, "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
    names = [operator.inputs[1] for operator in deployed.operators if operator.kind in kinds]
    return [
        name
        for name in names
        if deployed.tensors[name].data is not None and deployed.tensors[name].dtype == "int8"
    ]


def quant_params(path: str | os.PathLike[str]) -> dict[str, deployed_lib.Tensor]:
    """Shape, type, scale, zero point, axis and codes of every tensor of a `.tflite` file, by name.

        tflite_export.quant_params("x.tflite")["conv_kernel"].scale

    Raises:
      ValueError: If the file is no whole `.tflite` file.
      OSError: If it cannot be read.
    """
    return dict(reader.read(path).tensors)


def _check_target(
    model: deployed_lib.DeployedModel, target: targets.Target, metadata: metadata_lib.Metadata
) -> None:
    """Refuses what does not run on the target; warns of metadata that its readers would refuse."""
    if found := targets.violations(model, target, metadata):
        lines = "".join(f"\n  {violation}" for violation in found)
        raise ValueError(
            f"The file would not do on {target.title}. Received: target={target.name!r}.{lines}"
        )
    for violation in targets.of_metadata(model, metadata) if metadata else ():
        warnings.warn(
            f"MediaPipe Tasks and the Task Library would refuse this file. {violation}",
            stacklevel=3,
        )


def _warn_unless_pixels(
    tensor: deployed_lib.Tensor, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Warns where a raw pixel is not the code of its normalised value in a uint8 input."""
    pixels = np.arange(256.0)[:, None]
    values = (pixels - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
    codes = np.clip(
        np.rint(values / np.float64(tensor.one_scale)) + tensor.zero_point + 128, 0, 255
    )
    if (worst := np.abs(codes - pixels).max()) > 0:
        warnings.warn(
            f"The input's uint8 codes are not the pixels (up to {worst:.0f} apart), but the Task"
            " Library and ML Kit put pixels into a uint8 input as they are. Export with"
            " input_type='float32' for them, or quantize the images yourself.",
            stacklevel=3,
        )


def _check_arguments(input_type: str, output_type: str, weights: str) -> None:
    for argument, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in io_types.IO_TYPES:
            raise ValueError(
                f"{argument} must be one of {', '.join(io_types.IO_TYPES)}. Received:"
                f" {argument}={value!r}."
            )
    if weights not in ("int8", "int4"):
        raise ValueError(f"weights must be 'int8' or 'int4'. Received: weights={weights!r}.")
