"""A report as one self-contained HTML page.

The verdict and its reasons come first, then accuracy and size, then the layers that cost most;
runtimes and tensors, one by one, fold away below.
"""

from collections.abc import Sequence

from tflite_export.verification import report_records as records
from tflite_export.verification import report_text
from tflite_export.verification.page import elements, plots, words

# Layers in the tables at the top of the page; the folded ones have all.
MAX_LAYERS = 12


def render(report: records.Findings) -> str:
    """The page."""
    verdict = "passed" if report.passed else "failed"
    parts = [
        f"<h1>{elements.html.escape(report.model)}</h1>",
        elements.banner(verdict, words.verdict(report), words.reasons(report)),
        elements.figures([*_accuracy(report), *_size(report)]),
        _failures(report),
        _lost_to_float(report),
        _differing_layers(report),
        elements.section("Training", plots.curves(report.history)),
        _costs(report),
        elements.section(
            "Details",
            _runtimes(report),
            *_tensors(report),
            _notes(report),
            _provenance(report),
        ),
    ]
    return elements.page(f"{report.model}: {verdict}", parts)


def _accuracy(report: records.Findings) -> list[tuple[str, str, str]]:
    """Accuracy of float network, student and file; without labels how close the file is."""
    labels = {"float": "float network", "student": "student", "xnnpack": "file on a phone"}
    found = [
        (f"accuracy, {label}", f"{100 * report.accuracy[name]:.2f} %", "")
        for name, label in labels.items()
        if name in report.accuracy
    ]
    if found:
        return found
    for pair in report.of_pair("student", "xnnpack"):
        remark = "student and file, end to end"
        if pair.top1 is not None:
            found.append(("same class", f"{100 * pair.top1:.2f} %", remark))
        if pair.sqnr_db is not None:
            found.append((f"SQNR of {pair.tensor}", f"{pair.sqnr_db:.1f} dB", remark))
    if report.float_errors:
        last = report.float_errors[-1]
        number = report_text.decibels(last.sqnr_db)
        found.append((f"SQNR of {last.layer}", f"{number} dB", "student and float network"))
    return found


def _size(report: records.Findings) -> list[tuple[str, str, str]]:
    found = [("file", f"{report.bytes:,} B", report.path)]
    widths = [cost.weight_bits for cost in report.costs if cost.weight_bits is not None]
    if widths:
        macs = sum(cost.macs for cost in report.costs)
        remark = f"{len(widths)} layers with weights"
        found.append(("bits of the weights", ", ".join(map(str, sorted(set(widths)))), remark))
        found.append(("multiply-adds", f"{macs:,}", "for one input"))
    return found


def _failures(report: records.Findings) -> str:
    rows = [(f.check, f.tensor, f.message) for f in report.failures]
    return elements.section("Not met", elements.table(("check", "tensor", "what"), rows))


def _lost_to_float(report: records.Findings) -> str:
    """Where the quantized network loses precision, the largest loss first."""
    ranked = [(e, lost) for e, lost in losses(report.float_errors) if lost > 0][:MAX_LAYERS]
    rows = [
        (error.layer, error.tensor, report_text.decibels(error.sqnr_db), f"{lost:.1f}")
        for error, lost in ranked
    ]
    noisy = [(e.layer, e.sqnr_db) for e in report.float_errors if e.sqnr_db is not None]
    return elements.section(
        "The layers that hurt",
        elements.sentence(
            "SQNR is signal over quantization error, against the float network. A layer's loss is"
            " how much lower it is than at the tensor before, in execution order. Give the layers"
            " at the top more bits first.",
            "grey",
        )
        if rows
        else "",
        elements.table(
            ("layer", "tensor", "SQNR dB", "lost here, dB"),
            rows,
            bars=[lost / ranked[0][1] for _, lost in ranked],
        ),
        elements.folded(
            "All tensors in execution order",
            plots.line([n for n, _ in noisy], [db for _, db in noisy], "SQNR against float, dB"),
        ),
    )


def losses(
    errors: Sequence[records.FloatError],
) -> list[tuple[records.FloatError, float]]:
    """Errors with the decibels lost since the tensor before, most first.

    A worked number: tensors at 40, 25 and 24 dB lose nothing, 15 and 1 dB, so the second is first.
    The tensor before the first one is taken to be as good as the first.
    """
    known = [(error, error.sqnr_db) for error in errors if error.sqnr_db is not None]
    before = [known[0], *known[:-1]] if known else []
    found = [(error, last - sqnr) for (_, last), (error, sqnr) in zip(before, known)]
    return sorted(found, key=lambda pair: -pair[1])


def _differing_layers(report: records.Findings) -> str:
    """The student's layers on the file's own codes, most damage first."""
    rows = report_text.layers(report, MAX_LAYERS)
    if not rows:
        return ""
    shares = {c.tensor: c.share for c in report.tensors if c.left == "student"}
    most = max(shares[row[0]] for row in rows)
    return elements.section(
        "Student layers that differ from the file",
        elements.sentence(
            "Each layer reads the file's own codes, so a difference belongs to the layer in which"
            " it shows. 1 LSB is one step of the grid; rounding ties give as much.",
            "grey",
        ),
        elements.table(
            ("layer", *report_text.LAYER_HEADER),
            rows,
            bars=[shares[row[0]] / most for row in rows],
        ),
    )


def _costs(report: records.Findings) -> str:
    chosen = [cost for cost in report.costs if cost.weight_bits is not None]
    rows = [
        (c.tensor, c.kind, f"{c.weight_bits}", f"{c.weight_bytes:,}", f"{c.macs:,}") for c in chosen
    ]
    most = max((cost.macs for cost in chosen), default=0)
    header = ("writes", "operator", "bits", "bytes of weights", "multiply-adds")
    bars = [cost.macs / most if most else 0.0 for cost in chosen]
    return elements.section("Sizes", elements.table(header, rows, bars=bars))


def _runtimes(report: records.Findings) -> str:
    rows = [
        (
            f"{c.left}, {c.right}",
            c.tensor,
            f"{c.codes:,}",
            f"{c.differing:,}",
            f"{c.max_lsb}",
            report_text.decibels(c.sqnr_db),
            "-" if c.top1 is None else report_text.percent(c.top1),
        )
        for c in report.outputs
    ]
    header = ("runtimes", "output", "codes", "differing", "max LSB", "SQNR dB", "same top-1")
    marked = [not c.differing for c in report.outputs]
    return elements.folded(
        "Which runtimes agree on the outputs",
        elements.bullets(words.agreements(report)),
        elements.sentence(report_text.CHAOS, "grey") if rows else "",
        elements.table(header, rows, marked=marked),
    )


def _tensors(report: records.Findings) -> list[str]:
    """A folded part for each pair of runtimes whose tensors were compared."""
    parts = []
    for left, right in dict.fromkeys((c.left, c.right) for c in report.tensors):
        chosen = [c for c in report.tensors if (c.left, c.right) == (left, right)]
        title = f"Tensor by tensor: {words.runtime(left)}, and {words.runtime(right)}"
        first = report.first_diverging(left, right)
        if first is None:
            total = sum(c.codes for c in chosen)
            text = f"Equal on all {total:,} codes of {len(chosen)} tensors."
            parts.append(elements.folded(title, elements.sentence(text, "passed")))
            continue
        noisy = [(c.tensor, c.sqnr_db) for c in chosen if c.sqnr_db is not None]
        parts.append(
            elements.folded(
                title,
                elements.sentence(f"First diverging tensor: {first}"),
                _tensor_table(chosen),
                plots.line([n for n, _ in noisy], [db for _, db in noisy], "SQNR, dB"),
                plots.histograms(chosen),
            )
        )
    return parts


def _tensor_table(chosen: Sequence[records.Comparison]) -> str:
    rows = [
        (
            c.tensor,
            c.kind,
            f"{c.codes:,}",
            report_text.percent(c.share),
            f"{c.max_lsb}",
            report_text.decibels(c.sqnr_db),
        )
        for c in chosen
    ]
    header = ("tensor", "operator", "codes", "differing", "max LSB", "SQNR dB")
    return elements.table(header, rows, marked=[not c.differing for c in chosen])


def _notes(report: records.Findings) -> str:
    notes = [*filter(None, [report_text.bounds(report)]), *report.notes]
    return elements.folded("Notes", elements.bullets(notes))


def _provenance(report: records.Findings) -> str:
    scope = (
        f"Outputs on {report.images:,} images, tensors one by one on {report.tensor_images:,}."
        if report.images
        else ""
    )
    accuracies = [f"accuracy, {n}: {100 * value:.2f} %" for n, value in report.accuracy.items()]
    times = [f"{name}: {value:.1f} s" for name, value in report.seconds.items()]
    versions = [f"{name} {version}" for name, version in report.versions.items()]
    return elements.folded(
        "How this was measured",
        elements.sentence(scope),
        elements.bullets([*accuracies, *times, *versions]),
    )
