"""Methods by name; the two papers' methods, and what won our search, in one word each."""

from collections.abc import Mapping, Sequence
from typing import Any

from tf_fpq.methods.base import Method
from tf_fpq.methods.consistency import ConsistencyRegularization
from tf_fpq.methods.distillation import (
    PAPER_CSD_WEIGHT,
    TUNED_CSD_WEIGHT,
    ChannelStandardizedDistillation,
    KnowledgeDistillation,
)
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.methods.oscillation import OscillationDampening, OscillationFreezing
from tf_fpq.methods.sharpness_aware import SharpnessAwareMinimization
from tf_fpq.methods.student_grid_distillation import StudentGridDistillation

CSD_WEIGHTS = {"tuned": TUNED_CSD_WEIGHT, "paper": PAPER_CSD_WEIGHT}


def fpq(
    preset: str = "tuned", *, probability: float = 0.1, seed: int | None = None
) -> list[Method]:
    """FPQ (arXiv 2503.11159), which is the methods SFP and CSD.

    SFP is stochastic feature perturbation, CSD channel-wise standardization distillation.

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
        raise ValueError(
            f"preset must be one of {', '.join(CSD_WEIGHTS)}. Received: preset={preset!r}."
        )
    return [
        FeaturePerturbation(probability, seed=seed),
        ChannelStandardizedDistillation(CSD_WEIGHTS[preset]),
    ]


def cr(**arguments: Any) -> list[Method]:
    """CR (arXiv 2402.13497), consistency with an EMA teacher.

    Its weight ramps up over the first 15 % of the training.

        tf_fpq.QatModel(student, methods=tf_fpq.cr()).fit(tf_fpq.two_views(train))

    Args:
      **arguments: Those of `ConsistencyRegularization`.

    Returns:
      Methods for `QatModel`.
    """
    return [ConsistencyRegularization(**arguments)]


def recipe(
    *, temperature: float = 4.0, from_logits: bool = True, rho: float = 0.05
) -> list[Method]:
    """What won this project's search: KD and SAM.

    That is the teacher's class scores as targets, at the worst nearby weights.

        model = tf_fpq.QatModel(student, teacher, tf_fpq.recipe())

    Out of 28 mixtures of distillation, noise, consistency, schedules, averaged weights and stages
    it had the best accuracy on validation images: resnet8 at W2A2 on Fashion-MNIST, 8 paired seeds,
    0.30 +- 0.27 points above KD alone. The search and its rows are in experiments/README.md.

    Note: A step has two forward and backward passes, and takes about twice the time. Where that is
    too much, `KnowledgeDistillation()` alone is next.

    Args:
      temperature: That of `KnowledgeDistillation`.
      from_logits: Whether the models end in logits (else in a softmax).
      rho: Radius of `SharpnessAwareMinimization`.

    Returns:
      Methods for `QatModel`.

    Raises:
      ValueError: If `temperature` is not positive or `rho` is negative.
    """
    return [
        SharpnessAwareMinimization(rho),
        KnowledgeDistillation(temperature=temperature, from_logits=from_logits),
    ]


METHODS: dict[str, type[Method]] = {
    "sfp": FeaturePerturbation,
    "csd": ChannelStandardizedDistillation,
    "kd": KnowledgeDistillation,
    "squat": StudentGridDistillation,
    "cr": ConsistencyRegularization,
    "sam": SharpnessAwareMinimization,
    "dampening": OscillationDampening,
    "freezing": OscillationFreezing,
}

# Names for several methods, or for none: the plain base quantizer.
GROUPS: dict[str, tuple[str, ...]] = {
    "fpq": ("sfp", "csd"),
    "recipe": ("sam", "kd"),
    "none": (),
}


def methods_from_names(names: str | Sequence[str], **arguments: Mapping[str, Any]) -> list[Method]:
    """Methods by name: "fpq,cr" is SFP, CSD and CR; "none" and "" are no method.

        tf_fpq.methods_from_names("fpq,cr", sfp={"probability": 0.3})

    Args:
      names: Keys of `METHODS` and `GROUPS`, a sequence or with commas between. A method that is
        named twice is made once.
      **arguments: Arguments of a method by its name, such as `sfp={"probability": 0.3}`; those of
        methods that are not named are left aside.

    Raises:
      ValueError: If a name is unknown.
    """
    names = names.split(",") if isinstance(names, str) else names
    chosen = [name.strip() for name in names if name.strip()]
    if unknown := [
        name for name in [*chosen, *arguments] if name not in METHODS and name not in GROUPS
    ]:
        raise ValueError(
            f"methods must be out of {', '.join([*METHODS, *GROUPS])}. Received:"
            f" methods={','.join(chosen)!r} with {', '.join(unknown)}."
        )
    single = dict.fromkeys(part for name in chosen for part in GROUPS.get(name, (name,)))
    return [METHODS[name](**arguments.get(name, {})) for name in single]
