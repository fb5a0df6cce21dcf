"""FPQ's ablation (its table 5): noise, distillation, both; how often noise; how much distillation.

    python -m experiments.sweep --config=experiments/configs/ablation.py --workers=2
    python -m experiments.report --config=experiments/configs/ablation.py

Learning rate and weight decay are those that `interpolating.py` chose for FPQ, for all of them.
"""

from collections.abc import Iterator, Sequence
import dataclasses

from experiments import study
from experiments.config import Config
from experiments.configs import cells, settings
from experiments.study import Row, Study

BITS = (2, 2)
PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 1.0)
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)


def variants(base: Config) -> Iterator[Config]:
    """Each half of FPQ, both, p at the default weight, the weight at the default p."""
    for methods in (("none",), ("sfp",), ("csd",), ("fpq",)):
        yield dataclasses.replace(base, methods=methods)
    for probability in PROBABILITIES:
        if probability != Config.noise_probability:
            yield dataclasses.replace(base, noise_probability=probability)
    for weight in WEIGHTS:
        if weight != Config.csd_weight:
            yield dataclasses.replace(base, csd_weight=weight)


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """Seed by seed, once the rate is chosen."""
    base = dataclasses.replace(
        settings.INTERPOLATING, methods=("none",), weight_bits=BITS[0], activation_bits=BITS[1]
    )
    there = study.results_file(settings.INTERPOLATING_RESULTS).rows()
    chosen = list(cells.settled(base, ["fpq"], there))
    if len(chosen) < 2:  # LSQ comes first
        return
    for seed in settings.SEEDS:
        for variant in variants(chosen[1]):
            yield dataclasses.replace(variant, seed=seed)


STUDY = Study(
    claim="SFP and CSD each add to LSQ, both together add most, and p of 0.1 to 0.5 is best.",
    source="FPQ, arXiv 2503.11159, ablation on CIFAR-10 with ResNet-18 at W2A4",
    expected={
        **{"LSQ": 88.36, "SFP": 89.30, "CSD": 89.66, "both": 89.92, "p = 0": 89.66},
        **{"p = 0.3": 89.90, "p = 0.5": 89.83, "p = 0.7": 89.59, "p = 1": 89.48},
    },
    results="experiments/results/ablation.jsonl",
    regime="interpolating",
    runs=runs,
    hardware="CPU, one thread a process",
)
