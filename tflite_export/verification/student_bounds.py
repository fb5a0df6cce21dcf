"""How far the student may be from a file in one layer, on equal input codes. Needs no TensorFlow.

The student computes in float32 what the file computes in integers. Given the very codes that the
file had before a layer, the two can part only where a result lies beside a rounding tie. How near
that is follows from the arithmetic of both (`slack`): float32 sums, rounded biases, the phone's own
multipliers. How often it happens does not: a layer that maps every code onto a tie, as a scaling by
1/2 does, may differ in half of its codes and yet be right, and one whose weights are wrong may
differ in few.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import TYPE_CHECKING

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.verification.last_bit_bounds import Bound

if TYPE_CHECKING:
    from tflite_export.lowering.records import FloatSum

# Moving, selecting and comparing codes rounds nothing.
MOVING_KINDS = frozenset(
    (
        "CONCATENATION",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MINIMUM",
        "PAD",
        "REDUCE_MAX",
        "RESHAPE",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "TRANSPOSE",
    )
)
# Where kernels round by a rule of their own, the student does too
# (`tf_fpq/student_layers/operator_arithmetic.py`).
EXACT_KINDS = MOVING_KINDS | {
    "AVERAGE_POOL_2D",
    "LEAKY_RELU",
    "MEAN",
    "PRELU",
    "RELU",
    "RELU6",
    "RESIZE_BILINEAR",
    "RSQRT",
}
KERNEL_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
SUM_KINDS = ("ADD", "SUB")
# One float operation, or a table of 256. QUANTIZE is exact between two grids of the student.
TABLE_KINDS = ("GELU", "LOGISTIC", "MUL", "QUANTIZE", "SOFTMAX", "TANH")

# Half of float32's last bit, relative.
FLOAT_ERROR = 2.0**-24
# A batch norm and a bias behind a short sum are some float operations more: as many as 16 products.
FEWEST_TERMS = 16
# A few float operations at 255 steps are off by 2^-15 steps each, and the student puts values
# 2^-13 steps inside the cells of its tables (`numerics.CELL_MARGIN`). Twice as much is chosen here.
TABLE_SLACK = 2.0**-12
# A softmax adds up to some thousand exponentials before it divides by their sum.
SOFTMAX_SLACK = 2.0**-10
# XNNPACK adds with multipliers of 20 bits, each off by up to 2^-21 of the larger: two operands of
# 255 steps, 255 * 2^-20.
SUM_SLACK = 2.0**-12

# What ties do not explain: nothing on XNNPACK.
NONE = Bound(lsb=0, share=0.0)
# Other kernels than XNNPACK's round twice, or by fewer bits: 0.1 to 6 % of a layer's codes on equal
# input. The share is two and a half times the most that was seen.
ROUNDS_TWICE = Bound(lsb=1, share=0.15)
# Of a kind that has no row, a layer class of the user's own: a table of 256 codes, of which a whole
# map may read the one beside a tie.
OWN_KIND = Bound(lsb=1, share=0.25)


def slack(
    model: deployed_lib.DeployedModel,
    operators: Sequence[deployed_lib.Operator],
    float_sums: "Mapping[str, FloatSum]",
    kernels: str,
) -> np.ndarray:
    """How far from a tie student and file may round a layer's values differently, in output steps.

    float32, a scalar or one value for each channel of the layer's output.

    Args:
      model: The file's records.
      operators: Those between the layer's input codes and its output codes.
      float_sums: How exactly the student can have each kernel's sums, by the bias' name.
      kernels: Kernel set that the file ran on.
    """
    if not operators:
        return np.asarray(TABLE_SLACK, np.float32)
    *_, last = operators
    found, shape = np.zeros(()), _written(model, last).shape
    coarser = {name for o in operators if o.kind == "QUANTIZE" for name in o.outputs}
    for operator in operators:
        own = _of_operator(model, operator, float_sums, kernels, coarser)
        same = _written(model, operator).shape == shape
        found = np.maximum(found, own if same else own.max())
    return found.astype(np.float32)


def _written(
    model: deployed_lib.DeployedModel, operator: deployed_lib.Operator
) -> deployed_lib.Tensor:
    """The tensor that an operator writes, its first."""
    first, *_ = operator.outputs
    return model.tensors[first]


def _of_operator(
    model: deployed_lib.DeployedModel,
    operator: deployed_lib.Operator,
    float_sums: "Mapping[str, FloatSum]",
    kernels: str,
    coarser: set[str],
) -> np.ndarray:
    kind = operator.kind
    if kind in EXACT_KINDS:
        return np.zeros(())
    if kind in KERNEL_KINDS:
        return _of_kernel(model, operator, float_sums, kernels)
    if kind in SUM_KINDS or kind == "MUL":
        return _of_operands(model, operator, kernels, coarser)
    return np.asarray(SOFTMAX_SLACK if kind == "SOFTMAX" else TABLE_SLACK)


def _of_kernel(
    model: deployed_lib.DeployedModel,
    operator: deployed_lib.Operator,
    float_sums: "Mapping[str, FloatSum]",
    kernels: str,
) -> np.ndarray:
    """Of sums of products.

    Each of n float32 additions is off by up to 2^-24 of the partial sum, either way: all of them by
    `2^-24 sqrt(n)` of its magnitude. Kernels that round twice first round to a multiple of `2^-k`
    output steps, which is less than two steps of the sum.

    A worked number: partial sums of 700 output steps, of 1152 products, are off by `700 * 34 *
    2^-24`, 0.0014 steps.
    """
    name = next(name for name in operator.inputs if name in float_sums)
    sums, bias = float_sums[name], model.tensors[name]
    terms = math.sqrt(max(sums.terms, FEWEST_TERMS))
    error = sums.move + FLOAT_ERROR * terms * sums.magnitude
    packed = any(model.tensors[name].dtype == "int4" for name in operator.inputs)
    if kernels != "xnnpack" or packed:  # XNNPACK does not take packed convolutions
        assert bias.scale is not None  # the grid of the products
        error = error + bias.scale
    return TABLE_SLACK + error / float(_written(model, operator).one_scale)


def _of_operands(
    model: deployed_lib.DeployedModel,
    operator: deployed_lib.Operator,
    kernels: str,
    coarser: set[str],
) -> np.ndarray:
    """Of a sum or product of two tensors.

    Those that the exporter put on a coarser grid (`lowering.network`) are off by half its step.
    """
    left, right = (float(model.tensors[name].one_scale) for name in operator.inputs)
    step = float(_written(model, operator).one_scale)
    of_left, of_right = (
        float(model.tensors[name].one_scale) / 2 if name in coarser else 0.0
        for name in operator.inputs
    )
    if operator.kind == "MUL":
        rounded = left * right if kernels != "xnnpack" else 0.0
        moved = 255 * (of_left * right + of_right * left)
    else:
        rounded, moved = SUM_SLACK * max(left, right), of_left + of_right
    return np.asarray(TABLE_SLACK + (rounded + moved) / step)


def beyond_ties(kinds: Sequence[str], kernels: str) -> Bound:
    """How far student and file may be apart where no tie explains it.

    Args:
      kinds: The operators of a layer.
      kernels: Kernel set that the file ran on.
    """
    known = (*EXACT_KINDS, *KERNEL_KINDS, *SUM_KINDS, *TABLE_KINDS)
    if any(kind not in known for kind in kinds):
        return OWN_KIND
    if kernels != "xnnpack" and any(kind not in (*MOVING_KINDS, *KERNEL_KINDS) for kind in kinds):
        return ROUNDS_TWICE
    return NONE


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
    return next((kind for kind in kinds if kind not in EXACT_KINDS), kinds[-1])
