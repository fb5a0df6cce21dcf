"""What a report says to a reader who has none of this package's words yet."""

from collections.abc import Iterator

from tflite_export.verification import report_records as records
from tflite_export.verification import report_text

_RUNTIMES = {
    "student": "the student in Keras",
    "float": "the float network",
    "twin": "the integer twin",
    "twin_double": "the integer twin with double rounding",
    "xnnpack": "the file on XNNPACK, as on phones",
    "builtin": "the file on LiteRT's own kernels",
    "reference": "the file on the reference kernels",
    "tflm": "the file on TensorFlow Lite Micro",
    "moved": "the student moved by one float ulp",
}
# What each failed check means, and the way out.
_FAILED = {
    "parameters": "The file's constants are not those of this student. If the student went on"
    " training, export it again.",
    "twin": "A runtime computes other codes than the integer twin. That is a fault of this package"
    " or a new version of the runtime; please report it with the file.",
    "student": "A layer of the student computes something else than the file does. It is named"
    " below; look at layers and operators of your own first.",
    "runtime": "The file could not be run as asked, or two files differ by more than was allowed.",
}


def runtime(name: str) -> str:
    """A runtime's name in words, e.g. "the file on XNNPACK, as on phones"."""
    if name.startswith("arm:"):
        return f"the file on ARM ({name.removeprefix('arm:')}, emulated)"
    return _RUNTIMES.get(name, name)


def verdict(report: records.Findings) -> str:
    """What the verdict means, in one sentence."""
    if report.passed:
        return (
            "the file is the trained network."
            if report.parameters
            else "the files agree as far as was asked."
        )
    count = len(report.failures)
    return f"{count} condition{'s are' if count > 1 else ' is'} not met."


def reasons(report: records.Findings) -> list[str]:
    """Why: what failed and what to do, or what was compared and found right."""
    if not report.passed:
        return [_FAILED[check] for check in dict.fromkeys(f.check for f in report.failures)]
    return list(_found_right(report))


def _found_right(report: records.Findings) -> Iterator[str]:
    if report.parameters:
        yield f"All {report.parameters} constant tensors of the file are the student's, bit by bit."
    for left, right in (("twin", "xnnpack"), ("twin_double", "reference")):
        if found := report.of_pair(left, right):
            yield agreement(left, right, found)
    layers = [c for c in report.tensors if c.left == "student"]
    if layers:
        codes, differing = sum(c.codes for c in layers), sum(c.differing for c in layers)
        yield (
            f"Given the file's own input codes, the student's {len(layers)} layers give"
            + (
                f" the same on all {codes:,} codes."
                if not differing
                else f" another code in {differing:,} of {codes:,} cases, none farther from a"
                " rounding tie than the arithmetic explains."
            )
        )


def agreement(left: str, right: str, found: tuple[records.Comparison, ...]) -> str:
    """One sentence about the outputs of two runtimes."""
    codes, differing = sum(c.codes for c in found), sum(c.differing for c in found)
    one, other = runtime(left), runtime(right)
    start = f"{one[0].upper()}{one[1:]} and {other}"
    if not differing:
        return f"{start} give the same on all {codes:,} output codes."
    classes = [c.top1 for c in found if c.top1 is not None]
    same = (
        f", the same class for {report_text.percent(min(classes))} of the images" if classes else ""
    )
    share = report_text.percent(differing / codes)
    return f"{start} differ in {share} of {codes:,} output codes{same}."


def agreements(report: records.Findings) -> list[str]:
    """A sentence for each pair of runtimes whose outputs were compared."""
    return [agreement(*pair, report.of_pair(*pair)) for pair in report.pairs()]
