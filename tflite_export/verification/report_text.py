"""A report as aligned text."""

from tflite_export import text_tables
from tflite_export.verification import report_records as records

# Failures that are listed; the rest is in the JSON and HTML reports.
MAX_FAILURES = 10
# Rows of the table of operators, those with most differing codes first; likewise.
MAX_OPERATORS = 25


LAYER_HEADER = ("operator", "differing", "max LSB", "at ties within", "others", "SQNR dB")
# What a reader must know of the table of whole networks.
CHAOS = (
    "moved: the student itself with every value moved by one float ulp. That is chaos: a deep"
    " network carries rounding ties on and amplifies them, whoever computes it."
)


def render(report: records.Findings) -> str:
    """Verdict, accuracies, who agrees with whom, the per-tensor table, failures and notes."""
    sections = [
        _heading(report),
        _failures(report),
        _accuracy(report),
        _end_to_end(report),
        _outputs(report),
        _layers(report),
        _tensors(report),
        _float_errors(report),
        bounds(report),
        "\n".join(f"Note: {note}" for note in report.notes),
    ]
    return "\n\n".join(section for section in sections if section)


def bounds(report: records.Findings) -> str:
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


def _heading(report: records.Findings) -> str:
    verdict = "PASSED" if report.passed else f"FAILED ({len(report.failures)} conditions not met)"
    return (
        f"{report.model}: {verdict}\n{report.path}, {report.bytes:,} bytes; {report.parameters}"
        f" constant tensors compared, outputs on {report.images:,} images, intermediate tensors on"
        f" {report.tensor_images:,}"
    )


def _failures(report: records.Findings) -> str:
    lines = [f"  {f.check}: {f.tensor}: {f.message}" for f in report.failures[:MAX_FAILURES]]
    hidden = len(report.failures) - len(lines)
    if hidden > 0:
        lines.append(f"  ... and {hidden} more")
    return "\n".join(["Not met:", *lines]) if lines else ""


def _accuracy(report: records.Findings) -> str:
    if not report.accuracy:
        return ""
    cells = [f"{100 * value:.2f}%" for value in report.accuracy.values()]
    return text_tables.table(("accuracy", *report.accuracy), [("top-1", *cells)])


def _end_to_end(report: records.Findings) -> str:
    rows = end_to_end(report)
    header = ("end to end", "output", "compared by", "same top-1", "SQNR dB")
    if not rows:
        return ""
    return f"{text_tables.table(header, rows)}\n{CHAOS}"


def end_to_end(report: records.Findings) -> list[tuple[str, ...]]:
    """Rows of whole networks.

    They are student against file, beside what chaos alone does, and kernel sets among each other.
    """
    chosen = [c for c in report.outputs if "student" in (c.left, c.right)]
    chosen += [c for c in report.outputs if {c.left, c.right} == {"xnnpack", "reference"}]
    return [
        (
            f"{c.left} : {c.right}",
            c.tensor,
            report.output_kinds.get(c.tensor, "-"),
            "-" if c.top1 is None else percent(c.top1),
            decibels(c.sqnr_db),
        )
        for c in chosen
        if "twin" not in c.right + c.left
    ]


def _outputs(report: records.Findings) -> str:
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


def layers(report: records.Findings, limit: int | None = None) -> list[tuple[str, ...]]:
    """Rows of student layers that differ from the file on equal input codes, most damage first."""
    bounds = {bound.tensor: bound for bound in report.layer_bounds}
    rows = []
    for c in [c for c in report.tensors if c.left == "student" and c.differing]:
        bound = bounds.get(c.tensor)
        rows.append((c, "-" if bound is None else f"{bound.slack:.2g} steps"))
    rows.sort(key=lambda row: (-row[0].share, -row[0].max_lsb))
    return [
        (c.tensor, c.kind, percent(c.share), f"{c.max_lsb}", bound, f"{c.beyond}")
        + (decibels(c.sqnr_db),)
        for c, bound in rows[:limit]
    ]


def _layers(report: records.Findings) -> str:
    chosen = [c for c in report.tensors if c.left == "student"]
    if not chosen:
        return ""
    runtime, rows = chosen[0].right, layers(report, MAX_OPERATORS)
    total, differing = sum(c.codes for c in chosen), sum(c.differing for c in chosen)
    lines = [
        f"Operators one by one, on {runtime}'s own codes: the student's {len(chosen)} layers differ"
        f" in {differing:,} of {total:,} codes ({percent(differing / total)})"
    ]
    if rows:
        lines.append(text_tables.table((f"student against {runtime}", *LAYER_HEADER), rows))
    if first := report.first_diverging("student", runtime):
        lines.append(f"first diverging tensor: {first}")
    if hidden := sum(c.differing > 0 for c in chosen) - len(rows):
        lines.append(f"... and {hidden} more layers with fewer differing codes")
    return "\n".join(lines)


def _tensors(report: records.Findings) -> str:
    sections = []
    pairs = dict.fromkeys((c.left, c.right) for c in report.tensors if c.left != "student")
    for left, right in pairs:
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
            for c in report.by_damage(left, right)[:MAX_OPERATORS]
        ]
        header = (f"{left} against {right}", "operator", "differing", "max LSB", "SQNR dB")
        sections.append(f"{text_tables.table(header, rows)}\nfirst diverging tensor: {first}")
    return "\n\n".join(sections)


def _float_errors(report: records.Findings) -> str:
    if not report.float_errors:
        return ""
    rows = [(e.tensor, e.layer, decibels(e.sqnr_db)) for e in report.float_errors]
    return text_tables.table(("quantized against float", "layer", "SQNR dB"), rows)
