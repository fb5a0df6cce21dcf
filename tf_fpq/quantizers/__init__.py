"""Base quantizers: one paper, one file.

Each is a tfmot `Quantizer` whose output lies on the grid that is deployed.
"""

from tf_fpq.quantizers.base import GridQuantizer
from tf_fpq.quantizers.dorefa import DoReFaQuantizer
from tf_fpq.quantizers.ewgs import EwgsQuantizer
from tf_fpq.quantizers.lsq import LsqQuantizer
from tf_fpq.quantizers.lsq_plus import LsqPlusQuantizer
from tf_fpq.quantizers.min_max import MinMaxQuantizer
from tf_fpq.quantizers.pact import PactQuantizer

__all__ = [
    "DoReFaQuantizer",
    "EwgsQuantizer",
    "GridQuantizer",
    "LsqPlusQuantizer",
    "LsqQuantizer",
    "MinMaxQuantizer",
    "PactQuantizer",
]
