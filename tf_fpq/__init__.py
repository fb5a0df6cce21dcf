"""tf_fpq: quantization-aware training for Keras whose exported TFLite model is the trained one, code for code."""

from tf_fpq import quantizers
from tf_fpq.calibration import calibrate
from tf_fpq.quantize import quantize_model
from tf_fpq.quantize_config import LsqQuantizeConfig
from tf_fpq.scheme import FpqQuantizeScheme
from tf_fpq.spec import QuantRule, QuantSpec

__all__ = [
    "FpqQuantizeScheme",
    "LsqQuantizeConfig",
    "QuantRule",
    "QuantSpec",
    "calibrate",
    "quantize_model",
    "quantizers",
]
