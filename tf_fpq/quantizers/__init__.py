"""Base quantizers: one paper, one file. Each is a tfmot `Quantizer` with a trainable grid."""

from tf_fpq.quantizers.base import GridQuantizer
from tf_fpq.quantizers.lsq import LsqQuantizer

__all__ = ["GridQuantizer", "LsqQuantizer"]
