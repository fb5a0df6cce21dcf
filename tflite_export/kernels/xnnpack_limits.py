"""Ratios of scales that XNNPACK takes, for all operators that have limits.

Outside them XNNPACK refuses the operator, and for some the whole file; the builtin kernels that
would run instead round differently from one vector length to another. The exporter asks before it
writes; a twin asks again, as its network may come from elsewhere.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from tf_fpq.calibration.xnnpack_steps import PRODUCT_LIMITS, SUM_LIMITS
from tflite_export import deployed


@dataclasses.dataclass(frozen=True)
class Limits:
    """The ratios that an operator takes.

    Attributes:
      what: The ratio, in words.
      lowest: Lowest ratio taken.
      end: Lowest ratio no longer taken.
    """

    what: str
    lowest: float
    end: float


_KERNEL = Limits("input scale * weight scale / output scale", 0.0, PRODUCT_LIMITS[1])
# A sum of products of 1 is beyond every int8 grid at this ratio, wherever the zero point is, as it
# is at any higher one.
SATURATES = 255.5
_SUM = Limits("input scale / output scale", *SUM_LIMITS)
# 2^7 itself is taken.
_CONVERSION = Limits(
    "input scale / output scale",
    2.0**-8,
    float(np.nextafter(np.float32(2.0**7), np.float32(np.inf))),
)
# LiteRT aborts the process where a SOFTMAX's input has a scale of 2^-26 or less; its outputs are
# all equal long before that.
LOWEST_OF_SOFTMAX = 2.0**-25
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
LIMITS: Mapping[str, Limits] = {
    **dict.fromkeys(_KERNELS, _KERNEL),
    **dict.fromkeys(("ADD", "SUB"), _SUM),
    "MUL": Limits("scale * scale / output scale", *PRODUCT_LIMITS),
    "QUANTIZE": _CONVERSION,
}


def of(operator: deployed.Operator, tensors: Mapping[str, deployed.Tensor]) -> np.ndarray:
    """The operator's ratios in float32, as XNNPACK computes them.

    A kernel has one per channel, a sum one per operand, and others have one. Empty where the kind
    has no limits, and for a QUANTIZE that reads floats.
    """
    inputs, output = [tensors[name] for name in operator.inputs], tensors[operator.outputs[0]]
    scales = [
        np.reshape(np.asarray(t.scale, np.float32), (-1,)) for t in inputs if t.scale is not None
    ]
    if operator.kind not in LIMITS or not scales or output.scale is None:
        return np.zeros(0, np.float32)
    step = np.reshape(np.asarray(output.scale, np.float32), (-1,))
    if operator.kind == "MUL" or operator.kind in _KERNELS:
        return scales[0] * scales[1] / step
    return np.concatenate(scales) / step


def check(operator: deployed.Operator, tensors: Mapping[str, deployed.Tensor]) -> None:
    """Refuses an operator that XNNPACK refuses for its scales.

    Raises:
      ValueError: Naming the output, the channel or operand, and its ratio.
    """
    ratios = of(operator, tensors)
    if not ratios.size:
        return
    limits = LIMITS[operator.kind]
    bad = np.flatnonzero(~((ratios >= limits.lowest) & (ratios < limits.end)))
    if not bad.size:
        return
    worst = bad[np.argmax(np.abs(np.log2(np.maximum(ratios[bad], np.finfo(np.float32).tiny))))]
    above = not ratios[worst] < limits.end
    raise ValueError(
        f"{operator.kind} -> {operator.outputs[0]!r}: {limits.what} must lie in [{limits.lowest:g},"
        f" {limits.end:g}) (XNNPACK's limits). Received:"
        f" {ratios[worst]:.4g}{_where(operator, int(worst), ratios.size)}. "
        + (
            "Nearly all its values are clipped: train longer, let the output's range grow, or"
            " shrink the input (a channel by its batch norm's gamma)."
            if above
            else (
                "Its values are all next to zero on the output's grid: let the output's range"
                " shrink, or leave the branch out."
            )
        )
    )


def _where(operator: deployed.Operator, index: int, count: int) -> str:
    if operator.kind in _KERNELS:
        weights = operator.inputs[1]
        return f" in channel {index} of {weights!r}"
    return (
        f" for {operator.inputs[index]!r}"
        if count > 1
        else f" for {' and '.join(map(repr, operator.inputs))}"
    )
