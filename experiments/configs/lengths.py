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


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """LSQ and KD at W2A2, and the float network, students and teachers of each length."""
    base = dataclasses.replace(
        settings.INTERPOLATING, weight_bits=2, activation_bits=2, methods=("none",)
    )
    there = study.results_file(settings.INTERPOLATING_RESULTS).rows()
    _, lsq = selection.settle_decay(base, there)
    if lsq is None:
        return
    others = [dataclasses.replace(lsq, **cells.METHOD_SETS[name]) for name in ("kd", "float")]
    settled = [lsq, *(selection.settle_rate(other, there)[1] for other in others)]
    for factor in FACTORS:
        for chosen in filter(None, settled):
            longer = dataclasses.replace(chosen, epochs=int(factor * chosen.epochs))
            yield from selection.on_validation([longer])
            teacher = int(factor * chosen.float_epochs)
            yield from selection.on_validation([dataclasses.replace(longer, float_epochs=teacher)])


STUDY = Study(
    claim="Twice the epochs change the accuracy of teachers and students by less than the choice of"
    " a seed does.",
    source="the protocol in experiments/README.md",
    results="experiments/results/lengths.jsonl",
    regime="interpolating",
    runs=runs,
    hardware="CPU, one thread a process",
)
