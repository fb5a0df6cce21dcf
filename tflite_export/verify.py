r"""Proves that a .tflite file computes what was trained, or compares two .tflite files.

  tf-fpq verify STUDENT.keras MODEL.tflite --images=test.npz \
      [--teacher=FLOAT.keras] [--save=report.html]

  tf-fpq verify LEFT.tflite RIGHT.tflite [--images=test.npz] [--max_lsb=0]

The first form deploys the student afresh and compares every constant of the file with it, then
runs integer twin and interpreter on all images: not one output code may differ. Each layer of the
student must give the file's codes on the file's own input codes, but for rounding ties. The second
form needs neither TensorFlow nor a student; without --images it runs on random codes. Images are
x.npy, or x.npz with `images` and `labels`, preprocessed as for training; for a network of several
inputs x.npz with an array by the name of each (of the left file's tensors, where there is no
student).

Exit code: 0 the conditions are met, 1 they are not (the first bad tensor is named), 2 a file cannot
be read or run.

This is a program; the function is `tflite_export.verify`.
"""

import sys

from absl import flags

from tflite_export import command_line
from tflite_export.verification import report as report_lib

if __name__ not in ("__main__", "__mp_main__"):
    # Imported, it would hide the function `tflite_export.verify`.
    raise ImportError(
        "tflite_export.verify is a program (python -m tflite_export.verify) and a function, not a"
        " module to import."
    )

_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "x.npy with images, or x.npz with `images` (or an array by the name of each input) and"
    " `labels`.",
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "Float model (.keras): adds each tensor's distance from the float network."
)
_KERNELS = flags.DEFINE_list(
    "kernels",
    None,
    "Kernel sets: xnnpack, builtin, reference. A pair of files runs on xnnpack by default.",
)
_TENSOR_IMAGES = flags.DEFINE_integer(
    "tensor_images",
    None,
    "Images for the operators one by one (default: half a minute's, at most 64).",
    lower_bound=0,
)
_REFERENCE_IMAGES = flags.DEFINE_integer(
    "reference_images",
    None,
    "Images for the reference kernels (default: half a minute's).",
    lower_bound=0,
)
_MAX_TWIN_CODES = flags.DEFINE_integer(
    "max_twin_codes", 0, "Codes of a tensor that may differ between twin and interpreter."
)
_AGREEMENT = flags.DEFINE_float(
    "min_top1_agreement",
    None,
    "Smallest share of images with the same best class. A student's is by default judged by what"
    " explains it, that of two files must be 0.995.",
)
_MAX_LSB = flags.DEFINE_integer(
    "max_lsb",
    None,
    "Largest difference: of student and file in any tensor (default: no limit), of two files in any"
    " output (default: 0).",
)
_MAX_ABS = flags.DEFINE_float(
    "max_abs", 0.0, "Largest difference of two files in any output value that has no 8-bit grid."
)
_ALLOW_OTHER_CONSTANTS = flags.DEFINE_bool(
    "allow_other_constants",
    False,
    "Two files of one graph may have different constants, as of two trainings.",
)
_SAVE = flags.DEFINE_multi_string(
    "save", [], "Write the report: x.html, x.json or x.txt. May be repeated."
)
_OVERLAY = flags.DEFINE_string(
    "overlay", None, "Write an overlay for Google's Model Explorer: x.json."
)
_TRUST = flags.DEFINE_bool("trust", False, command_line.TRUST)
_JSON = flags.DEFINE_bool("json", False, "Print the report as one JSON line instead of tables.")


def main(arguments: list[str]) -> int:
    """Verifies."""
    left, right = command_line.positional(
        arguments, ["student.keras or left.tflite", "model.tflite"]
    )
    for path in _SAVE.value:
        report_lib.check_path(path)
    command_line.check_exists(left, right)
    report = _pair(left, right) if left.endswith(".tflite") else _student(left, right)
    for path in _SAVE.value:
        report.save(path)
    if _OVERLAY.value:
        sides = (
            {}
            if not report.tensors
            else {"left": report.tensors[-1].left, "right": report.tensors[-1].right}
        )
        report.save_overlay(_OVERLAY.value, **sides)
    if _JSON.value:
        command_line.print_json(report.to_dict())
    else:
        print(report)
    return 0 if report.passed else command_line.EXIT_FAILED


def _pair(left: str, right: str) -> report_lib.Report:
    from tflite_export.verification import file_pair

    return file_pair.compare_files(
        left,
        right,
        None if _IMAGES.value is None else command_line.load_images(_IMAGES.value),
        kernels=("xnnpack",) if _KERNELS.value is None else _KERNELS.value,
        tensor_images=64 if _TENSOR_IMAGES.value is None else _TENSOR_IMAGES.value,
        max_abs=_MAX_ABS.value,
        allow_other_constants=_ALLOW_OTHER_CONSTANTS.value,
        max_lsb=0 if _MAX_LSB.value is None else _MAX_LSB.value,
        min_top1_agreement=0.995 if _AGREEMENT.value is None else _AGREEMENT.value,
        verbose=int(sys.stderr.isatty()),
    )


def _student(student: str, path: str) -> report_lib.Report:
    if _IMAGES.value is None:
        raise ValueError("A student is verified on images. Received: --images=None.")
    images = command_line.load_images(_IMAGES.value)
    model = command_line.load_keras(student, trust=_TRUST.value)
    teacher = None
    if _TEACHER.value:
        teacher = command_line.load_keras(_TEACHER.value, trust=_TRUST.value)
    from tflite_export.runtimes import litert
    from tflite_export.verification import verifier

    try:
        return verifier.verify(
            model,
            path,
            images,
            teacher=teacher,
            kernels=tuple(litert.KERNEL_SETS) if _KERNELS.value is None else _KERNELS.value,
            tensor_images=_TENSOR_IMAGES.value,
            reference_images=_REFERENCE_IMAGES.value,
            max_twin_codes=_MAX_TWIN_CODES.value,
            min_top1_agreement=_AGREEMENT.value,
            max_student_lsb=_MAX_LSB.value,
        )
    except verifier.VerificationError as error:
        return error.report


if __name__ == "__main__":
    command_line.start(main)
