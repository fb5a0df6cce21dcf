"""What of the measurements is a failure. Needs no TensorFlow.

Judged are the constants (`parameter_checks`), the twin against the interpreter it stands for, and
each student layer on the file's own codes. How far whole networks part is mostly chaos and
reported; it fails only what nobody's arithmetic explains, or what the user forbids.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

from tflite_export import deployed as deployed_lib
from tflite_export.verification import last_bit_bounds
from tflite_export.verification.last_bit_bounds import TWINS
from tflite_export.verification.report_records import Comparison, Failure, Findings, LayerBound

# What the reports call the student with every value moved by one float ulp.
MOVED = "moved"
# All of these are chosen here, and docs/verification.md argues them. Without a limit by the user
# student and file may choose other classes on more images than this...
ASKED_AGREEMENT = 0.995
# ... as long as the outputs' values still agree: half the amplitude of the noise is the signal's at
# 6 dB, and unrelated outputs are at -3 to 3 dB,
RELATED_DB = 10.0
# or chaos alone does as much: a ulp is the smallest of moves, and ties move codes by a whole step.
CHAOS_FACTOR = 4
CHAOS_DB = 6.0
# A few images are no evidence: beside the factor, so many may change in any case.
FEW_IMAGES = 3


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the user asks for; see `verify`."""

    max_twin_codes: int = 0
    min_top1_agreement: float | None = None
    max_student_lsb: int | None = None


def twin_failures(
    report: Findings,
    unselected: Sequence[Comparison],
    model: deployed_lib.DeployedModel,
    kernels: Sequence[str],
    limit: int,
) -> list[Failure]:
    """Failures of twins that do not agree with the interpreter they stand for, within bounds.

    The first tensor in which they do not is named.

    The share of a bound is not asked of `report.tensors`, which has images that were chosen because
    they differ.
    """
    failures = []
    for name in (name for name in kernels if name in TWINS):
        pair = (TWINS[name], name)
        own = last_bit_bounds.of_tensors(model, name)
        # Behind a bounded operator outputs are judged by their operators one by one.
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
    c: Comparison, own: Mapping[str, last_bit_bounds.Bound], limit: int, share: bool
) -> bool:
    if c.differing <= limit or c.tensor not in own:
        return c.differing <= limit
    bound = own[c.tensor]
    return bound.allows(c.codes, c.differing, c.max_lsb) if share else c.max_lsb <= bound.lsb


def student_failures(
    report: Findings, unselected: Sequence[Comparison], kernels: str, limits: Limits
) -> list[Failure]:
    """Layers that are not the file's operators, and outputs too far apart; most upstream first.

    Args:
      report: The measurements.
      unselected: The operators one by one on images that nobody chose for their differences.
      kernels: The kernel set that the student is compared with.
      limits: What the user asks for.
    """
    pair = ("student", kernels)
    outputs = report.of_pair(*pair)
    layers = [c for c in unselected if (c.left, c.right) == pair]
    found = [
        *_layer_failures(report.layer_bounds, layers),
        *_lsb_failures((*report.tensors, *outputs), pair, limits.max_student_lsb),
    ]
    # Biases on a grid coarser than the output's, which no variable of the student could be moved
    # to: a bound of more than 1 LSB has let them pass, and they explain any distance behind them.
    coarse = any(c.max_lsb > 1 for c in layers)
    if coarse and limits.min_top1_agreement is None:
        return found
    return [*found, *_output_failures(report, outputs, kernels, limits.min_top1_agreement)]


def _layer_failures(
    bounds: Sequence[LayerBound], layers: Sequence[Comparison]
) -> Iterator[Failure]:
    limits = {bound.tensor: bound for bound in bounds}
    for c in layers:
        limit = limits[c.tensor]
        if last_bit_bounds.Bound(limit.lsb, limit.share).allows(c.codes, c.beyond, c.beyond_lsb):
            continue
        message = (
            f"given the same codes, student and {c.right} differ in {c.differing} of {c.codes}"
            f" codes, by up to {c.max_lsb} LSB; {c.beyond} of them lie more than {limit.slack:.2g}"
            f" steps away from a tie, which {c.kind} does not explain"
        )
        yield Failure("student", c.tensor, message)


def _lsb_failures(
    comparisons: Sequence[Comparison], pair: tuple[str, str], limit: int | None
) -> Iterator[Failure]:
    for c in comparisons:
        if (c.left, c.right) == pair and limit is not None and c.max_lsb > limit:
            message = f"student and {c.right} differ by {c.max_lsb} LSB; the budget is {limit}"
            yield Failure("student", c.tensor, message)


def _output_failures(
    report: Findings, outputs: Sequence[Comparison], kernels: str, asked: float | None
) -> Iterator[Failure]:
    for c in outputs:
        moved = next((m for m in report.of_pair("student", MOVED) if m.tensor == c.tensor), None)
        if report.output_kinds.get(c.tensor) == "classes":
            message = _other_classes(c, moved, report.images, asked)
        else:
            message = _other_values(c, moved)
        if message:
            tensor = report.first_diverging("student", kernels) or c.tensor
            where = "" if tensor == c.tensor else ". This is the first layer in which they differ"
            yield Failure("student", tensor, f"student and {kernels} {message}{where}")


def _other_classes(
    c: Comparison, moved: Comparison | None, images: int, asked: float | None
) -> str | None:
    """What is wrong with class scores, or None."""
    agreement = 1.0 if c.top1 is None else c.top1
    chaos = 1.0 if moved is None or moved.top1 is None else moved.top1
    message = (
        f"choose the same class on {agreement:.4%} of the images; at least"
        f" {ASKED_AGREEMENT if asked is None else asked:.4%} is asked for, and the student with"
        f" every value moved by one float ulp keeps {chaos:.4%}"
    )
    if asked is not None:
        return message if agreement < asked else None
    others, by_chaos = (round((1 - share) * images) for share in (agreement, chaos))
    related = c.sqnr_db is None or c.sqnr_db >= RELATED_DB
    explained = related or others <= CHAOS_FACTOR * by_chaos + FEW_IMAGES
    return None if agreement >= ASKED_AGREEMENT or explained else message


def _other_values(c: Comparison, moved: Comparison | None) -> str | None:
    """What is wrong with boxes, maps or embeddings, or None."""
    chaos = RELATED_DB if moved is None or moved.sqnr_db is None else moved.sqnr_db - CHAOS_DB
    least = min(RELATED_DB, chaos)
    if c.sqnr_db is None or c.sqnr_db >= least:
        return None
    return (
        f"have outputs with a SQNR of {c.sqnr_db:.1f} dB; nothing explains less than {least:.1f} dB"
    )
