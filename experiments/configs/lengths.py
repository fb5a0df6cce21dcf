"""Is the training long enough: does half of it, or twice as much, change anything?

    python -m experiments.sweep --config=experiments/configs/lengths.py --workers=2
    python -m experiments.report --config=experiments/configs/lengths.py

On validation images, with the two seeds that no table has; rates are those that `interpolating.py`
chose for the usual length.
"""

from collections.abc import Iterator, Sequence
import dataclasses

from experiments import selection, study
from experiments.config import Config
from experiments.configs import cells, settings
from experiments.study import Row, Study

FACTORS = (0.5, 1, 2)


def settled(setting: Config, results: str, *names: str) -> Iterator[Config]:
    """LSQ and methods at W2A2 as the tables have them: with the rates that were chosen there."""
    base = dataclasses.replace(setting, weight_bits=2, activation_bits=2, methods=("none",))
    yield from cells.settled(base, names, study.results_file(results).rows())


def longer(config: Config, factor: float) -> Config:
    """The same student, trained `factor` times as long."""
    return dataclasses.replace(config, epochs=int(factor * config.epochs))


def longer_teacher(config: Config, factor: float) -> Config:
    """The same student of a teacher that was trained `factor` times as long."""
    return dataclasses.replace(config, float_epochs=int(factor * config.float_epochs))


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """LSQ, KD and the float network, students and teachers of each length."""
    del rows
    chosen = list(settled(settings.INTERPOLATING, settings.INTERPOLATING_RESULTS, "kd", "float"))
    for factor in FACTORS:
        for config in chosen:
            student = longer(config, factor)
            yield from selection.on_validation([student])
            yield from selection.on_validation([longer_teacher(student, factor)])


STUDY = Study(
    claim="Twice the epochs change the accuracy of teachers and students by less than the choice of"
    " a seed does.",
    source="the protocol in experiments/README.md",
    results="experiments/results/lengths.jsonl",
    regime="interpolating",
    runs=runs,
    hardware="CPU, one thread a process",
)
