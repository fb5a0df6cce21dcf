"""Methods by name; the two papers' methods, and what won our searches, in one word each."""

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


def recipe(weight_bits: int, *, temperature: float = 4.0, from_logits: bool = True) -> list[Method]:
    """What won this project's searches: KD with SAM at 2 bits, KD with noise and CR at 4.

    With 2-bit weights that is the teacher's class scores as targets, at the worst nearby weights.

        tf_fpq.QatModel(student, teacher, tf_fpq.recipe(2)).fit(train)

    With wider ones it is the teacher's class scores, noise at the inputs of half of the
    convolutions, and agreement with an averaged student on another view of the image.

        tf_fpq.QatModel(student, teacher, tf_fpq.recipe(4)).fit(tf_fpq.two_views(train))

    Both are those with the best accuracy on validation images, resnet8 on 1,000 images of
    Fashion-MNIST, 8 paired seeds: out of 28 mixtures at W2A2, 0.30 +- 0.27 points above KD alone,
    and out of 15 at W4A4, 0.58 +- 0.25 above it. The searches and their rows are in
    experiments/README.md.

    Note: Where a network cannot learn its training images by heart, a resnet8 of width 4 on 50,000
    images, the recipe of 2 bits was behind plain LSQ on validation images; that of 4 bits was not
    tried there. docs/choose.md has the figures of other methods.

    Note: A step has two forward and backward passes with SAM, and a third network with CR; either
    takes about twice the time. Where that is too much, `KnowledgeDistillation()` alone is next.

    Args:
      weight_bits: Width of most of the student's weights. 3 bits and more have the recipe of 4.
      temperature: That of `KnowledgeDistillation`.
      from_logits: Whether the models end in logits (else in a softmax).

    Returns:
      Methods for `QatModel`.

    Raises:
      ValueError: If `weight_bits` is no width from 2 to 8, or `temperature` is not positive.
    """
    if weight_bits not in range(2, 9):
        raise ValueError(
            f"weight_bits must be a whole number from 2 to 8. Received: weight_bits={weight_bits}."
        )
    follow = KnowledgeDistillation(temperature=temperature, from_logits=from_logits)
    if weight_bits == 2:
        return [SharpnessAwareMinimization(), follow]
    return [FeaturePerturbation(0.5), ConsistencyRegularization(from_logits=from_logits), follow]


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
GROUPS: dict[str, tuple[str, ...]] = {"fpq": ("sfp", "csd"), "none": ()}


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
