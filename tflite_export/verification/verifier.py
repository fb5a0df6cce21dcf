"""`verify`: the proof that a file computes what was trained.

Without a proof it names the first tensor in which it does not.
"""

from collections.abc import Sequence
import dataclasses
from importlib import metadata
import os
from typing import Any

from tflite_export import deployed as deployed_lib
from tflite_export import exported_model
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import file_summary, reader
from tflite_export.runtimes import litert
from tflite_export.verification import judgement, last_bit_bounds, measurements, parameter_checks
from tflite_export.verification import report as report_lib
from tflite_export.verification.report_records import Failure

_PACKAGES = ("tensorflow", "tf_keras", "ai-edge-litert", "numpy")


class VerificationError(RuntimeError):
    """The file does not compute what was trained.

        except tflite_export.VerificationError as error:
            error.report.save("report.html")

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
    kernels: Sequence[litert.KernelSet] = ("xnnpack", "builtin", "reference"),
    runtimes: Sequence[measurements.Runtime] = (),
    runtime_images: int = 200,
    reference_images: int | None = None,
    tensor_images: int | None = None,
    batch_size: int | None = None,
    max_twin_codes: int = 0,
    min_top1_agreement: float | None = None,
    max_student_lsb: int | None = None,
    save: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]" = (),
    verbose: int = 1,
) -> report_lib.Report:
    """Proves that a file computes what was trained, code for code, or names what does not.

    1.  Every constant, scale, zero point and operator of the file equals the student's, deployed
        afresh; weight codes equal the student's own quantizers' too.
    2.  Output codes over all images: twin = XNNPACK, and the twin with double rounding = the
        reference kernels.
    3.  Operator by operator, on the first `tensor_images` and on images on which step 2 found a
        difference: given the interpreter's own codes before an operator, the twin computes the
        interpreter's codes behind it, all of them.
    4.  Layer by layer on the same codes: the student's layer (e.g. convolution, batch norm, ReLU
        and quantizer) gives the file's codes but for rounding ties: where a code differs, its value
        is so near a tie that float32, or the rounding of the bias, decides (`student_bounds.slack`,
        some thousandths of a step).
    5.  End to end, reported beside what chaos alone would give. A tie of one code in 10^5, which
        float32 and integers break differently, grows with depth: student and file of a right
        EfficientNet-Lite0 choose the same class on 96 % of the images, as do XNNPACK and the
        reference kernels on the same file. So the report shows student against file beside the
        student against itself with every value moved by one float ulp. Class scores are compared by
        best class; boxes, maps and embeddings by SQNR.

    Without `min_top1_agreement`, step 5 fails only where nothing explains it: class scores if fewer
    than 99.5 % of the images keep their class, and the SQNR is below 10 dB, and more than four
    times as many images (and three more) change than by the ulp; values if their SQNR is below 10
    dB and 6 dB below that of the ulp. A layer whose biases lie on a grid coarser than its output's
    explains any distance behind it.

    Few operators need not be equal in steps 2 and 3 but have a bound of 1 LSB, stated in
    `last_bit_bounds.BOUNDS`: those that tabulate the C library's `exp`, `tanh` or `erf`. Behind
    them, a difference in step 2 counts only if step 3 does not clear it.

        exported = tflite_export.export(student, "model.tflite")
        report = tflite_export.verify(student, exported, images, save="report.html")

    Args:
      student: The model that was exported.
      exported: Result of `export`, or the path of a file exported from `student`.
      images: Array `[images, ...]`, the pair `(images, labels)`, or a batched `tf.data.Dataset` of
        either, preprocessed as for training. Of a student with several inputs, a tuple of arrays in
        the order of its inputs, or a dict by their names; with labels `((a, b), labels)`. Labels
        give the accuracy of float network, student and file. Memory does not depend on the number
        of images.
      teacher: Float model; the report then says how far each tensor is from its layer of the same
        name, and with labels how accurate it is.
      kernels: Kernel sets to run: "xnnpack", "builtin", "reference". The student is compared with
        the first one.
      runtimes: Other runtimes to compare, on `runtime_images` images. They are reported, not
        judged.
      runtime_images: See `runtimes`.
      reference_images: Number of images for the reference kernels, which are 40 times slower than
        XNNPACK. None: as many as take half a minute, e.g. 9 of 224x224 for EfficientNet-Lite0.
      tensor_images: Number of images for steps 3 and 4; 0 leaves them out. None: as many as take
        some ten seconds, from 4 to 64.
      batch_size: Images that student and twin compute at once. None: as many as need some hundred
        MiB, up to 128.
      max_twin_codes: Output codes (of each output) and codes of each intermediate tensor that may
        differ between a twin and its interpreter.
      min_top1_agreement: Smallest share of images on which student and interpreter choose the same
        class, for outputs that are class scores. None: see above.
      max_student_lsb: Largest difference of student and interpreter in any layer or output, or None
        for no limit beyond the bounds of step 4.
      save: Where to write the report, `x.html`, `x.json` or `x.txt`, or several such paths; also
        when a condition is not met.
      verbose: 1 shows progress, 0 nothing.

    Returns:
      The report.

    Raises:
      VerificationError: If a condition is not met; names the first bad tensor and carries the
        report.
      ValueError: If an argument is unknown, images do not fit, or the file is no whole `.tflite`
        file.
      OSError: If the file cannot be read, or the report not be written.
    """
    litert.check_kernels(kernels)
    kernels = tuple(dict.fromkeys(kernels))
    limits = judgement.Limits(max_twin_codes, min_top1_agreement, max_student_lsb)
    _check_arguments(
        limits,
        tensor_images=tensor_images,
        reference_images=reference_images,
        runtime_images=runtime_images,
    )
    paths = [save] if isinstance(save, str | os.PathLike) else list(save)
    for path in paths:
        report_lib.check_path(path)
    if not isinstance(exported, exported_model.ExportedModel):
        exported = exported_model.open_exported(student, exported)
    sizes = measurements.Sizes.of(
        exported.file_model, batch_size, tensor_images, reference_images, runtime_images
    )
    report = _verified(
        student, exported, images, _flat(teacher), kernels, runtimes, sizes, limits, verbose
    )
    for path in paths:
        report.save(path)
    if not report.passed:
        raise VerificationError(report)
    return report


def _verified(
    student: Any,
    exported: "exported_model.ExportedModel",
    images: Any,
    teacher: Any,
    kernels: Sequence[litert.KernelSet],
    runtimes: Sequence[measurements.Runtime],
    sizes: measurements.Sizes,
    limits: judgement.Limits,
    verbose: int,
) -> report_lib.Report:
    """All measurements and what is wrong with them; fewer where the file cannot be run."""
    contents = litert.read_bytes(exported.path)
    found = reader.from_bytes(contents, exported.path)
    lowered = exported_model.lowered(student, exported.weights)
    report = _check_parameters(student, exported, lowered.deployed, found, len(contents))
    report = dataclasses.replace(report, bounds=_operator_bounds(found, kernels))
    if not parameter_checks.same_graph(exported.file_model, found):
        # The file may be right, and yet not the one that `exported` describes.
        wrong = report.failures or parameter_checks.compare(exported.file_model, found)
        return dataclasses.replace(report, failures=wrong)
    if crash := _crash(report.model, contents, kernels):
        return dataclasses.replace(report, failures=(*report.failures, crash))
    run = measurements.Run(student, exported, contents, kernels, sizes, lowered.float_sums, verbose)
    report = run.outputs(report, images, teacher, runtimes)
    if sizes.tensor_images:
        report = run.tensors(report, images, teacher)
    failures = (
        *report.failures,
        *judgement.twin_failures(
            report, run.unselected, exported.deployed, kernels, limits.max_twin_codes
        ),
        *judgement.student_failures(report, run.unselected, kernels[0], limits),
    )
    return dataclasses.replace(report, failures=failures)


def _flat(teacher: Any) -> Any:
    """The float network with the layers that the student was made of."""
    if teacher is None:
        return None
    from tf_fpq.conversion.prepare import prepare

    return prepare(teacher)


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_arguments(limits: judgement.Limits, **counts: int | None) -> None:
    counts |= {"max_twin_codes": limits.max_twin_codes, "max_student_lsb": limits.max_student_lsb}
    for name, value in counts.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative. Received: {name}={value}.")
    share = limits.min_top1_agreement
    if share is not None and not 0 <= share <= 1:
        raise ValueError(
            "min_top1_agreement must be a share between 0 and 1, or None. Received:"
            f" min_top1_agreement={share}."
        )


def _check_parameters(
    student: Any,
    exported: "exported_model.ExportedModel",
    fresh: deployed_lib.DeployedModel,
    found: deployed_lib.DeployedModel,
    size: int,
) -> report_lib.Report:
    """The file against the student deployed afresh, and against the student's own codes."""
    fresh = dataclasses.replace(fresh, fixed_batch=exported.deployed.fixed_batch)
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
        costs=file_summary.operator_costs(found),
        failures=failures,
        notes=tuple(notes),
        versions=versions(),
    )


def _crash(model: str, contents: bytes, kernels: Sequence[str]) -> Failure | None:
    """Tries the kernels in a process of its own.

    A crash there ends the verification, not this process.
    """
    try:
        litert.probe(contents, kernels)
    except InterpreterError as error:
        return Failure("runtime", model, str(error))
    return None


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
