"""How far the student may be from a file in one layer, on equal input codes. Needs no TensorFlow.

The student computes in float32 what the file computes in integers. Given the very codes that the
file had before a layer, the two can part only where a result lies beside a rounding tie, and then
by one code. How often that is depends on the operator: never where the student rounds by the
kernel's own rule, once in some thousand codes behind a long sum, more often where the runtime
rounds more coarsely than the student (a fixed-point sum of two tensors).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.verification.last_bit_bounds import LAST_BIT, Bound

# Moving, selecting and comparing codes rounds nothing; and where kernels round by a rule of their
# own, the student does too (`tf_fpq/student_layers/operator_arithmetic.py`).
EXACT = Bound(lsb=0, share=0.0)
# Float32 results beside a tie. On random grids at 2 to 8 bits 1 of 10^5 codes of a softmax, and
# none of a product or a scaling; step sizes in a small ratio to each other tie more often. The
# share is chosen here, with room for those.
NEAR_TIE = Bound(lsb=1, share=0.005)
# XNNPACK adds with 20-bit multipliers and takes ties upward. Random step sizes hardly ever tie (no
# difference in 10^5 codes), but those in a small ratio do: 94 of 16,384 codes of a sum in steps of
# round numbers (0.6 %). The share is five times the most that was seen.
FIXED_POINT = Bound(lsb=1, share=0.03)
# Kernels other than XNNPACK's round twice: 0.1 to 6 % of a layer's codes on equal input. The share
# is two and a half times the most that was seen.
ROUNDS_TWICE = 0.15

STUDENT_BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(
        (
            "AVERAGE_POOL_2D",
            "CONCATENATION",
            "LEAKY_RELU",
            "MAXIMUM",
            "MAX_POOL_2D",
            "MEAN",
            "MINIMUM",
            "PAD",
            "PRELU",
            "REDUCE_MAX",
            "RELU",
            "RELU6",
            "RESHAPE",
            "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR",
            "RSQRT",
            "SLICE",
            "TRANSPOSE",
        ),
        EXACT,
    ),
    **dict.fromkeys(
        (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "FULLY_CONNECTED",
            "TRANSPOSE_CONV",
            "MUL",
            # Exact between two grids of the student. The exporter puts another in front of an
            # operator whose operand is next to nothing.
            "QUANTIZE",
            "SOFTMAX",
        ),
        NEAR_TIE,
    ),
    "ADD": FIXED_POINT,
    "SUB": FIXED_POINT,  # exact but for one with a clamp behind it
    # The student's table is the twin's; the interpreter's has the C library's last bit.
    **dict.fromkeys(("LOGISTIC", "TANH", "GELU"), LAST_BIT),
}
# Of a kind that has no row, a layer class of the user's own: a table of 256 codes, of which a whole
# map may read the one beside a tie.
DEFAULT = Bound(lsb=1, share=0.25)

# A depthwise convolution of 1x1, which a batch norm or Rescaling of its own becomes, is such a
# table for each channel. Where scales are in a ratio like 1/2, every other code ties: 22 % of the
# codes of MobileNetV3's Rescaling differed, 36 % of a random network's.
ONE_CODE_EACH = Bound(lsb=1, share=0.5)


def of_layer(
    model: deployed_lib.DeployedModel, operators: Sequence[deployed_lib.Operator], kernels: str
) -> Bound:
    """The bound of a student layer that is several operators of a file: their bounds added up.

    A part is for biases. One that moves by a part of an output step moves as large a part of all
    results past a tie, and `export(..., round_biases=False)` leaves the student's off their grid by
    up to half a step `input scale * weight scale`. So does any export where no variable holds the
    offset, as behind a hard sigmoid's line `0.2 x + 0.5`. A step of 40 output steps, which weights
    of a few bits on inputs of a few bits can have, then moves codes by up to 20.

    Args:
      model: The file's records.
      operators: Those between the layer's input codes and its output codes.
      kernels: Kernel set that the file ran on.
    """
    bounds = [_of_operator(model, operator) for operator in operators]
    share, lsb = sum(bound.share for bound in bounds), sum(bound.lsb for bound in bounds)
    for operator in operators:
        on_average, at_most = _bias_rounding(model, operator)
        share, lsb = share + on_average, lsb + int(at_most)
        packed = any(model.tensors[name].dtype == "int4" for name in operator.inputs)
        if kernels != "xnnpack" or packed:  # XNNPACK does not take packed convolutions
            share += ROUNDS_TWICE
    return Bound(lsb or int(share > 0), min(1.0, share))


def _of_operator(model: deployed_lib.DeployedModel, operator: deployed_lib.Operator) -> Bound:
    if operator.kind == "DEPTHWISE_CONV_2D":
        if tuple(model.tensors[operator.inputs[1]].shape[1:3]) == (1, 1):
            return ONE_CODE_EACH
    return STUDENT_BOUNDS.get(operator.kind, DEFAULT)


def _bias_rounding(
    model: deployed_lib.DeployedModel, operator: deployed_lib.Operator
) -> tuple[float, float]:
    """Half a step of an operator's bias in output steps: its mean and its most over channels."""
    tensors = [model.tensors[name] for name in operator.inputs]
    output = model.tensors[operator.outputs[0]]
    steps = [np.ravel(t.scale) for t in tensors if t.dtype == "int32" and t.scale is not None]
    if not steps:
        return 0.0, 0.0
    halves = np.concatenate(steps).astype(np.float64) / 2 / float(output.one_scale)
    return float(halves.mean()), float(halves.max())


def operators_between(
    model: deployed_lib.DeployedModel, sources: Iterable[str], target: str
) -> tuple[deployed_lib.Operator, ...]:
    """The operators that compute tensor `target` from tensors `sources`, in execution order.

    Clips, steps of a requantization and moved codes are among them.
    """
    known, wanted, found = set(sources), {target}, []
    for operator in reversed(model.operators):
        if wanted.isdisjoint(operator.outputs):
            continue
        found.append(operator)
        wanted.update(name for name in operator.inputs if name not in known)
    return tuple(reversed(found))


def title(kinds: Iterable[str]) -> str:
    """What a report calls a student layer: the operator in it that rounds."""
    kinds = list(kinds) or ["INPUT"]
    rounding = [kind for kind in kinds if STUDENT_BOUNDS.get(kind, DEFAULT) != EXACT]
    return (rounding or kinds[-1:])[0]
