"""A report as aligned text."""

from tflite_export import text_tables
from tflite_export.verification import report as report_lib

# Rows of the per-tensor table; the rest is in the JSON and HTML reports.
MAX_FAILURES = 10


def render(report: report_lib.Report) -> str:
    """Verdict, accuracies, who agrees with whom, the per-tensor table, failures and notes."""
    sections = [
        _heading(report),
        _failures(report),
        _accuracy(report),
        _outputs(report),
        _tensors(report),
        _float_errors(report),
        bounds(report),
        "\n".join(f"Note: {note}" for note in report.notes),
    ]
    return "\n\n".join(section for section in sections if section)


def bounds(report: report_lib.Report) -> str:
    """Which operators need not be equal, in one sentence; empty where all must be."""
    if not report.bounds:
        return ""
    lines = [
        f"{b.kind} on {b.kernels} {b.lsb} LSB in at most {b.share:.0%} of the codes"
        for b in report.bounds
    ]
    return (
        "Bounds between twin and interpreter, for the last bit of the C library's exp, tanh and"
        f" erf: {'; '.join(lines)}. Every other operator must be exact; behind these, intermediate"
        " tensors are computed from the interpreter's codes."
    )


def decibels(value: float | None) -> str:
    """A SQNR, or "exact"."""
    return "exact" if value is None else f"{value:.1f}"


def percent(share: float) -> str:
    """A share in percent, never rounded to 0 or 100 when it is not."""
    if 0 < share < 5e-6:
        return "<0.001%"
    if 1 - 5e-6 < share < 1:
        return ">99.999%"
    return f"{100 * share:.3f}%"


def _heading(report: report_lib.Report) -> str:
    verdict = "PASSED" if report.passed else f"FAILED ({len(report.failures)} conditions not met)"
    return (
        f"{report.model}: {verdict}\n{report.path}, {report.bytes:,} bytes; {report.parameters}"
        f" constant tensors compared, outputs on {report.images:,} images, intermediate tensors on"
        f" {report.tensor_images:,}"
    )


def _failures(report: report_lib.Report) -> str:
    lines = [f"  {f.check}: {f.tensor}: {f.message}" for f in report.failures[:MAX_FAILURES]]
    hidden = len(report.failures) - len(lines)
    if hidden > 0:
        lines.append(f"  ... and {hidden} more")
    return "\n".join(["Not met:", *lines]) if lines else ""


def _accuracy(report: report_lib.Report) -> str:
    if not report.accuracy:
        return ""
    return text_tables.table(
        ("runtime", "top-1"),
        [(name, f"{100 * value:.2f}%") for name, value in report.accuracy.items()],
    )


def _outputs(report: report_lib.Report) -> str:
    rows = [
        (
            f"{c.left} = {c.right}" if not c.differing else f"{c.left} : {c.right}",
            c.tensor,
            f"{c.codes}",
            f"{c.differing}",
            c.difference.removesuffix(" LSB"),
            decibels(c.sqnr_db),
            "-" if c.top1 is None else percent(c.top1),
        )
        for c in report.outputs
    ]
    header = (
        "output codes (= equal)",
        "tensor",
        "codes",
        "differing",
        "max LSB" if all(c.max_abs is None for c in report.outputs) else "max difference",
        "SQNR dB",
        "same top-1",
    )
    return text_tables.table(header, rows) if rows else ""


def _tensors(report: report_lib.Report) -> str:
    sections = []
    for left, right in dict.fromkeys((c.left, c.right) for c in report.tensors):
        chosen = [c for c in report.tensors if (c.left, c.right) == (left, right)]
        first = report.first_diverging(left, right)
        if first is None:
            sections.append(
                f"{left} = {right} on all {sum(c.codes for c in chosen):,} codes of {len(chosen)}"
                " tensors"
            )
            continue
        rows = [
            (c.tensor, c.kind, percent(c.share), f"{c.max_lsb}", decibels(c.sqnr_db))
            for c in chosen
        ]
        header = (f"{left} against {right}", "operator", "differing", "max LSB", "SQNR dB")
        sections.append(f"{text_tables.table(header, rows)}\nfirst diverging tensor: {first}")
    return "\n\n".join(sections)


def _float_errors(report: report_lib.Report) -> str:
    if not report.float_errors:
        return ""
    rows = [(e.tensor, e.layer, decibels(e.sqnr_db)) for e in report.float_errors]
    return text_tables.table(("quantized against float", "layer", "SQNR dB"), rows)
