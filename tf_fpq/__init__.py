"""tf_fpq: quantization-aware training for Keras whose exported TFLite model is the trained one, code for code."""

from tf_fpq import quantizers
from tf_fpq.calibration import calibrate
from tf_fpq.checking import CheckReport, check
from tf_fpq.distillation import ChannelStandardizedDistillation
from tf_fpq.feature_perturbation import FeaturePerturbation
from tf_fpq.quantize import quantize_model
from tf_fpq.quantize_config import LsqQuantizeConfig
from tf_fpq.scheme import FpqQuantizeScheme
from tf_fpq.spec import QuantRule, QuantSpec
from tf_fpq.training import QatModel

__all__ = [
    "ChannelStandardizedDistillation",
    "CheckReport",
    "FeaturePerturbation",
    "FpqQuantizeScheme",
    "LsqQuantizeConfig",
    "QatModel",
    "QuantRule",
    "QuantSpec",
    "calibrate",
    "check",
    "quantize_model",
    "quantizers",
]
