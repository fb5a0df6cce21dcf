"""Operators that the twin may miss by a stated bound. Needs no TensorFlow.

Here is also what follows from that for the tensors of a network.

Nearly all kernels are integer arithmetic or single float operations, which IEEE 754 fixes: the twin
equals them or is wrong. The operators in `BOUNDS` fill a table by the C library's `exp`, `tanh` or
`erf`, whose last bit is the library's own affair. Where it lies beside a rounding tie, a code comes
out 1 LSB higher or lower than the twin's.

A tensor behind such an operator may then differ by anything, and yet be right. So operators are
compared one by one, each on the interpreter's own codes (`operator_by_operator`), and all others
must be exact there.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Literal

from tflite_export import deployed as deployed_lib

# Which twin stands for which kernel set, and how it rounds.
TWINS = {"xnnpack": "twin", "reference": "twin_double"}
ROUNDINGS: Mapping[str, Literal["single", "double"]] = {"twin": "single", "twin_double": "double"}


@dataclasses.dataclass(frozen=True)
class Bound:
    """How far twin and interpreter may be apart in the output of one operator on equal input.

    Attributes:
      lsb: Largest difference.
      share: Largest share of codes that differ; one code always may.
    """

    lsb: int
    share: float

    def allows(self, codes: int, differing: int, max_lsb: int) -> bool:
        """Whether so many differences of `codes` codes are within the bound."""
        return max_lsb <= self.lsb and differing <= max(1.0, self.share * codes)


# A tie in one of 256 table entries is rare, and two of them are not neighbours: measured on x86
# with glibc, none in 400 random grids for LOGISTIC, TANH and GELU on either kernel set, none in 4.6
# million codes of SOFTMAX. The share is chosen here for other libraries than glibc: of 256 entries
# it is two.
LAST_BIT = Bound(lsb=1, share=0.01)

# By operator and kernel set. SOFTMAX of the reference kernels is fixed point, therefore exact.
BOUNDS: Mapping[str, Mapping[str, Bound]] = {
    "SOFTMAX": {"xnnpack": LAST_BIT},
    "LOGISTIC": {"xnnpack": LAST_BIT, "reference": LAST_BIT},
    "TANH": {"xnnpack": LAST_BIT, "reference": LAST_BIT},
    "GELU": {"xnnpack": LAST_BIT, "reference": LAST_BIT},
}


def of_tensors(model: deployed_lib.DeployedModel, kernels: str) -> dict[str, Bound]:
    """The bound of each tensor that a bounded operator of a kernel set writes.

    It is by tensor name, in execution order.
    """
    return {
        name: BOUNDS[operator.kind][kernels]
        for operator in model.operators
        if kernels in BOUNDS.get(operator.kind, {})
        for name in operator.outputs
    }


def behind(model: deployed_lib.DeployedModel, names: Iterable[str]) -> set[str]:
    """The tensors that are computed from tensors `names`, directly or not."""
    found: set[str] = set()
    sources = set(names)
    for operator in model.operators:
        if not (found | sources).isdisjoint(operator.inputs):
            found.update(operator.outputs)
    return found
