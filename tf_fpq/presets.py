"""Methods by name, and the two papers' methods with their settings in one word."""

from collections.abc import Callable
from typing import Any

from tf_fpq.consistency import ConsistencyRegularization
from tf_fpq.distillation import (
    PAPER_CSD_WEIGHT,
    TUNED_CSD_WEIGHT,
    ChannelStandardizedDistillation,
    KnowledgeDistillation,
)
from tf_fpq.feature_perturbation import FeaturePerturbation
from tf_fpq.method import Method
from tf_fpq.oscillation import OscillationDampening, OscillationFreezing
from tf_fpq.sharpness_aware import SharpnessAwareMinimization

CSD_WEIGHTS = {"tuned": TUNED_CSD_WEIGHT, "paper": PAPER_CSD_WEIGHT}


def fpq(preset: str = "tuned", *, probability: float = 0.1, seed: int | None = None) -> list[Method]:
    """FPQ (arXiv 2503.11159): stochastic feature perturbation and channel-wise standardization distillation.

        tf_fpq.QatModel(student, teacher, tf_fpq.fpq())

    Args:
      preset: "tuned" weighs CSD with 0.1, "paper" with 1, as eq. 22 is printed.
      probability: Chance of noise at a convolution's input, 0.1 in the paper.
      seed: Seed of the noise.

    Returns:
      Methods for `QatModel`; lists of presets add up: `fpq() + cr()`.

    Raises:
      ValueError: If there is no such preset.
    """
    if preset not in CSD_WEIGHTS:
        raise ValueError(f"preset must be one of {', '.join(CSD_WEIGHTS)}. Received: preset={preset!r}.")
    return [FeaturePerturbation(probability, seed=seed), ChannelStandardizedDistillation(CSD_WEIGHTS[preset])]


def cr(**arguments: Any) -> list[Method]:
    """CR (arXiv 2402.13497): consistency with an EMA teacher, its weight ramping up over the first 15 % of the training.

        tf_fpq.QatModel(student, methods=tf_fpq.cr()).fit(tf_fpq.two_views(train))

    Args:
      **arguments: Those of `ConsistencyRegularization`.

    Returns:
      Methods for `QatModel`.
    """
    return [ConsistencyRegularization(**arguments)]


METHODS: dict[str, Callable[[int | None], list[Method]]] = {
    "lsq": lambda seed: [],
    "sfp": lambda seed: [FeaturePerturbation(seed=seed)],
    "csd": lambda seed: [ChannelStandardizedDistillation()],
    "fpq": lambda seed: fpq(seed=seed),
    "fpq_paper": lambda seed: fpq("paper", seed=seed),
    "kd": lambda seed: [KnowledgeDistillation()],
    "cr": lambda seed: cr(),
    "sam": lambda seed: [SharpnessAwareMinimization()],
    "dampening": lambda seed: [OscillationDampening()],
    "freezing": lambda seed: [OscillationFreezing()],
}


def methods_from_names(names: str, seed: int | None = None) -> list[Method]:
    """Methods from a comma list, each with its default arguments: "fpq,cr" is `fpq() + cr()`, "lsq" or "" none.

    Args:
      names: Keys of `METHODS`, with commas between.
      seed: Seed of the noise.

    Raises:
      ValueError: If a name is unknown.
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in METHODS]:
        raise ValueError(
            f"methods must be a comma list of {', '.join(METHODS)}. Received: methods={names!r} with {', '.join(unknown)}."
        )
    return [method for name in chosen for method in METHODS[name](seed)]
