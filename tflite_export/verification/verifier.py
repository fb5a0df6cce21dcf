"""`verify`: the proof that a file computes what was trained, or the first tensor in which it does
not.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from importlib import metadata
import os
from typing import Any

from tflite_export import deployed as deployed_lib
from tflite_export import exported_model
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert
from tflite_export.verification import last_bit_bounds, measurements, parameter_checks
from tflite_export.verification import report as report_lib
from tflite_export.verification.report import Failure

_PACKAGES = ("tensorflow", "tf_keras", "ai-edge-litert", "numpy")


class VerificationError(RuntimeError):
    """The file does not compute what was trained.

    Attributes:
      report: All that was found until then.
    """

    def __init__(self, report: report_lib.Report):
        super().__init__(
            f"{report.path} is not the trained model. {parameter_checks.summary(report.failures)}"
        )
        self.report = report


def verify(
    student: Any,
    exported: "exported_model.ExportedModel | str | os.PathLike[str]",
    images: Any,
    *,
    teacher: Any = None,
    kernels: Sequence[str] = ("xnnpack", "builtin", "reference"),
    runtimes: Sequence[measurements.Runtime] = (),
    runtime_images: int = 200,
    tensor_images: int = 64,
    batch_size: int = 128,
    max_twin_codes: int = 0,
    min_top1_agreement: float = 0.995,
    max_student_lsb: int | None = None,
    verbose: int = 1,
) -> report_lib.Report:
    """Compares file, integer twin and student code for code.

    1.  Every constant, scale, zero point and operator of the file equals the student's, deployed
        afresh; weight codes equal the student's own quantizers' too.
    2.  Output codes over all images: twin = XNNPACK, and the twin with double rounding = the
        reference kernels.
    3.  Intermediate tensors of the first `tensor_images`, and of images on which step 2 found a
        difference: the same equalities, and student against XNNPACK in LSB.
    4.  Student against XNNPACK: share of images with the same best class, and largest difference in
        LSB.

    Few operators need not be equal but have a bound of 1 LSB, stated in `last_bit_bounds.BOUNDS`: those that
    tabulate the C library's `exp`, `tanh` or `erf`. It holds for the tensors that they write.
    Behind them step 3 gives the twin the interpreter's codes and asks for equality again, and a
    difference in step 2 counts only if step 3, run on images with differences, does not clear it.

    Args:
      student: The model that was exported.
      exported: Result of `export`, or the path of a file exported from `student`.
      images: Array `[images, ...]`, the pair `(images, labels)`, or a batched `tf.data.Dataset` of
        either, preprocessed as for training. Of a student with several inputs, a tuple of arrays in
        the order of its inputs, or a dict by their names; with labels `((a, b), labels)`. Memory
        does not depend on their number.
      teacher: Float model; the report then says how far each tensor is from its layer of the same
        name.
      kernels: Kernel sets to run: "xnnpack", "builtin", "reference". The reference kernels are 40
        times slower than XNNPACK.
      runtimes: Other runtimes to compare, on `runtime_images` images. They are reported, not
        judged.
      runtime_images: See `runtimes`.
      tensor_images: Number of images for the intermediate tensors; 0 leaves them out.
      batch_size: Images that student and twin compute at once.
      max_twin_codes: Output codes (of each output) and codes of each intermediate tensor that may
        differ between a twin and its interpreter.
      min_top1_agreement: Smallest share of images on which student and interpreter choose the same
        class; applies to outputs `[batch, classes]`.
      max_student_lsb: Largest difference of student and interpreter in any tensor, or None for no
        limit.
      verbose: 1 shows progress, 0 nothing.

    Returns:
      The report.

    Raises:
      VerificationError: If a condition is not met; names the first bad tensor and carries the
        report.
      ValueError: If an argument is unknown, images do not fit, or the file is no whole `.tflite`
        file.
      OSError: If the file cannot be read.
    """
    _check_arguments(kernels, tensor_images, runtime_images, min_top1_agreement)
    if not isinstance(exported, exported_model.ExportedModel):
        exported = exported_model.open_exported(student, exported)
    contents = litert.read_bytes(exported.path)
    found = reader.from_bytes(contents, exported.path)
    report = _check_parameters(student, exported, found, len(contents))
    report = dataclasses.replace(report, bounds=_operator_bounds(found, kernels))
    expected = exported.file_model
    if not parameter_checks.same_graph(expected, found):
        raise VerificationError(report)
    _check_runs(report, contents, kernels)

    run = measurements.Run(student, exported, contents, kernels, verbose)
    report = run.outputs(report, images, batch_size, runtimes, runtime_images)
    if tensor_images:
        report = run.tensors(report, images, tensor_images, teacher)
    failures = (
        *report.failures,
        *_twin_failures(report, run.unselected, exported.deployed, kernels, max_twin_codes),
        *_student_failures(report, kernels[0], min_top1_agreement, max_student_lsb),
    )
    report = dataclasses.replace(report, failures=failures)
    if not report.passed:
        raise VerificationError(report)
    return report


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_arguments(
    kernels: Sequence[str], tensor_images: int, runtime_images: int, min_top1_agreement: float
) -> None:
    unknown = [name for name in kernels if name not in litert.KERNEL_SETS]
    if unknown or not kernels or isinstance(kernels, str):
        raise ValueError(
            f"kernels must be some of {', '.join(litert.KERNEL_SETS)}. Received:"
            f" kernels={kernels!r}."
        )
    if tensor_images < 0 or runtime_images < 0:
        raise ValueError(
            "tensor_images and runtime_images must not be negative. "
            f"Received: tensor_images={tensor_images}, runtime_images={runtime_images}."
        )
    if not 0 <= min_top1_agreement <= 1:
        raise ValueError(
            "min_top1_agreement must be between 0 and 1. Received:"
            f" min_top1_agreement={min_top1_agreement}."
        )


def _check_parameters(
    student: Any,
    exported: "exported_model.ExportedModel",
    found: deployed_lib.DeployedModel,
    size: int,
) -> report_lib.Report:
    """The file against the student deployed afresh, and against the student's own codes."""
    fresh = exported_model.deployed_model(student, exported.weights)
    expected = dataclasses.replace(exported, deployed=fresh).file_model
    failures = parameter_checks.compare(expected, found)
    notes: list[str] = []
    if not failures:
        failures, unknown = parameter_checks.student_weights(student, found)
        notes += unknown
    if exported.weights == "int4":
        notes.append(
            "Packed INT4 convolutions do not run on XNNPACK but on LiteRT's own kernels, which"
            " round differently on x86 and ARM: equality holds on this kind of processor, with the"
            " reference kernels and with TensorFlow Lite Micro."
        )
        if stayed := exported_model.unpacked_weights(exported.deployed):
            notes.append(f"Weights that stay int8: {', '.join(stayed)}.")
    return report_lib.Report(
        model=exported.name,
        path=exported.path,
        bytes=size,
        parameters=len(parameter_checks.constants(expected)),
        operators=tuple((operator.kind, operator.outputs[0]) for operator in found.operators),
        failures=failures,
        notes=tuple(notes),
        versions=versions(),
    )


def _check_runs(report: report_lib.Report, contents: bytes, kernels: Sequence[str]) -> None:
    """Tries the kernels in a process of its own; a crash there ends the verification, not this
    process.
    """
    try:
        litert.probe(contents, kernels)
    except InterpreterError as error:
        failure = Failure("runtime", report.model, str(error))
        raise VerificationError(
            dataclasses.replace(report, failures=(*report.failures, failure))
        ) from error


def _twin_failures(
    report: report_lib.Report,
    unselected: Sequence[report_lib.Comparison],
    model: deployed_lib.DeployedModel,
    kernels: Sequence[str],
    limit: int,
) -> list[Failure]:
    """A twin and the interpreter it stands for must agree, within bounds; the first tensor in which
    they do not is named.

    The share of a bound is not asked of `report.tensors`, which has images that were chosen because
    they differ.
    """
    failures = []
    for name in (name for name in kernels if name in measurements.TWINS):
        pair = (measurements.TWINS[name], name)
        own = last_bit_bounds.of_tensors(model, name)
        # Behind a bounded operator outputs are judged by their tensors, which start anew from the
        # interpreter's codes.
        cleared = last_bit_bounds.behind(model, own) if report.tensor_images else set()
        outputs = [c for c in report.outputs if c.tensor not in cleared]
        bad = [c for c in report.tensors if not _within(c, own, limit, share=False)]
        bad += [c for c in (*unselected, *outputs) if not _within(c, own, limit, share=True)]
        bad = [c for c in bad if (c.left, c.right) == pair]
        if bad:
            c, count = bad[0], len({c.tensor for c in bad})
            message = (
                f"{c.differing} of {c.codes} codes differ between twin and {name}, by up to"
                f" {c.max_lsb} LSB"
            )
            budget = f"the budget of {limit} codes" + (
                f" and the bound of {c.kind}" if c.tensor in own else ""
            )
            failures.append(Failure("twin", c.tensor, f"{message}; {count} tensors over {budget}"))
    return failures


def _within(
    c: report_lib.Comparison, own: Mapping[str, last_bit_bounds.Bound], limit: int, share: bool
) -> bool:
    if c.differing <= limit:
        return True
    return c.tensor in own and own[c.tensor].allows(c.codes, c.differing if share else 0, c.max_lsb)


def _operator_bounds(
    model: deployed_lib.DeployedModel, kernels: Sequence[str]
) -> tuple[report_lib.OperatorBound, ...]:
    """The bounds of the operators in a file."""
    kinds = dict.fromkeys(operator.kind for operator in model.operators)
    return tuple(
        report_lib.OperatorBound(kind, name, bound.lsb, bound.share)
        for kind in kinds
        for name, bound in last_bit_bounds.BOUNDS.get(kind, {}).items()
        if name in kernels
    )


def _student_failures(
    report: report_lib.Report, kernels: str, min_top1_agreement: float, max_lsb: int | None
) -> list[Failure]:
    failures = []
    pair = ("student", kernels)
    for c in (*report.tensors, *report.outputs):
        if (c.left, c.right) == pair and max_lsb is not None and c.max_lsb > max_lsb:
            message = f"student and {kernels} differ by {c.max_lsb} LSB; the budget is {max_lsb}"
            failures.append(Failure("student", c.tensor, message))
    for c in report.outputs:
        if (c.left, c.right) == pair and c.top1 is not None and c.top1 < min_top1_agreement:
            tensor = report.first_diverging(*pair) or c.tensor
            message = (
                f"student and {kernels} choose the same class on {c.top1:.4%} of the images; at"
                f" least {min_top1_agreement:.4%} is asked for. This is the first tensor in which"
                " they differ"
            )
            failures.append(Failure("student", tensor, message))
    return failures
