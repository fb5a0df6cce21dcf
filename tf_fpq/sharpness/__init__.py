"""How flat a loss is: Hessian, loss landscape and noise, of float models and students alike.

    hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
    tf_fpq.sharpness.hessian_trace(hessian).mean
    tf_fpq.sharpness.top_eigenvalues(hessian)

Compare models on the same images and with the same seed.
"""

from tf_fpq.sharpness.loss_hessian import LossHessian, cross_entropy, kernels
from tf_fpq.sharpness.spectrum import (
    Density,
    Trace,
    hessian_trace,
    spectral_density,
    top_eigenvalues,
)
from tf_fpq.sharpness.surroundings import (
    Landscape,
    Noise,
    landscape,
    under_input_noise,
    under_weight_noise,
)
from tf_fpq.sharpness.tracking import SharpnessTracker

__all__ = [
    "Density",
    "Landscape",
    "LossHessian",
    "Noise",
    "SharpnessTracker",
    "Trace",
    "cross_entropy",
    "hessian_trace",
    "kernels",
    "landscape",
    "spectral_density",
    "top_eigenvalues",
    "under_input_noise",
    "under_weight_noise",
]
