"""Quantization-aware training for Keras whose exported TFLite model is the trained one.

The two agree code for code.
"""

from tf_fpq import autograph, callbacks, quantizers, sharpness
from tf_fpq.bit_allocation import Suggestion, suggest_rules
from tf_fpq.calibration.grids_from_images import calibrate, start_weights
from tf_fpq.conversion.loading import load_model
from tf_fpq.extending import register_layer
from tf_fpq.methods.base import Gradients, Method
from tf_fpq.methods.consistency import ConsistencyRegularization
from tf_fpq.methods.distillation import ChannelStandardizedDistillation, KnowledgeDistillation
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.methods.oscillation import OscillationDampening, OscillationFreezing
from tf_fpq.methods.presets import cr, fpq, methods_from_names, recipe
from tf_fpq.methods.sharpness_aware import SharpnessAwareMinimization
from tf_fpq.methods.student_grid_distillation import StudentGridDistillation
from tf_fpq.placement.preflight import CheckReport, check
from tf_fpq.placement.quantize_configs import (
    DoReFaQuantizeConfig,
    EwgsQuantizeConfig,
    LsqPlusQuantizeConfig,
    LsqQuantizeConfig,
    MinMaxQuantizeConfig,
    PactQuantizeConfig,
)
from tf_fpq.placement.rules import QuantRule
from tf_fpq.quantize import quantize_model
from tf_fpq.quantizers.spec import QuantSpec
from tf_fpq.roles import Kernel, Role
from tf_fpq.sensitivity import Sensitivity, sensitivity
from tf_fpq.summary import Summary, summary
from tf_fpq.tfmot_scheme import FpqQuantizeScheme
from tf_fpq.training.augmentation import StrongAugmentation, WeakAugmentation
from tf_fpq.training.divergence_guard import DivergenceError
from tf_fpq.training.mixup import mixup
from tf_fpq.training.qat_model import QatModel
from tf_fpq.training.two_views import two_views

# Before anything is traced.
autograph.leave_as_written()

__all__ = [
    "ChannelStandardizedDistillation",
    "CheckReport",
    "ConsistencyRegularization",
    "DivergenceError",
    "DoReFaQuantizeConfig",
    "EwgsQuantizeConfig",
    "FeaturePerturbation",
    "FpqQuantizeScheme",
    "Gradients",
    "Kernel",
    "KnowledgeDistillation",
    "LsqPlusQuantizeConfig",
    "LsqQuantizeConfig",
    "Method",
    "MinMaxQuantizeConfig",
    "PactQuantizeConfig",
    "OscillationDampening",
    "OscillationFreezing",
    "QatModel",
    "QuantRule",
    "QuantSpec",
    "Role",
    "Sensitivity",
    "SharpnessAwareMinimization",
    "StrongAugmentation",
    "StudentGridDistillation",
    "Suggestion",
    "Summary",
    "WeakAugmentation",
    "calibrate",
    "callbacks",
    "check",
    "cr",
    "fpq",
    "load_model",
    "methods_from_names",
    "mixup",
    "quantize_model",
    "quantizers",
    "recipe",
    "register_layer",
    "sharpness",
    "sensitivity",
    "start_weights",
    "suggest_rules",
    "summary",
    "two_views",
]


def __dir__() -> list[str]:
    return sorted(__all__)
