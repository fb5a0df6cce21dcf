"""Are two epochs of 50,000 images too few for KD or the recipe to be ahead of LSQ?

    python -m experiments.sweep --config=experiments/configs/lengths_under_fitting.py --workers=2
    python -m experiments.report --config=experiments/configs/lengths_under_fitting.py

As `lengths.py`: on validation images, with the two seeds that no table has and the rates that
`under_fitting.py` chose for the usual length.
"""

from collections.abc import Iterator, Sequence

from experiments import selection
from experiments.config import Config
from experiments.configs import lengths, settings
from experiments.study import Row, Study

FACTORS = (1, 4)


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """LSQ, KD and the recipe; their teachers are trained as much longer as they are."""
    del rows
    chosen = list(
        lengths.settled(settings.UNDER_FITTING, settings.UNDER_FITTING_RESULTS, "kd", "recipe")
    )
    for factor in FACTORS:
        for config in chosen:
            longer = lengths.longer_teacher(lengths.longer(config, factor), factor)
            yield from selection.on_validation([longer])


STUDY = Study(
    claim="With four times the epochs a narrow student of 50,000 images is better with KD or the"
    " recipe than with LSQ alone.",
    source="the protocol in experiments/README.md",
    results="experiments/results/lengths_under_fitting.jsonl",
    regime="under-fitting",
    runs=runs,
    hardware="CPU, one thread a process",
)
