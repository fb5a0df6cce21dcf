"""Does FPQ, CR or a recipe win where a narrow network cannot learn 50,000 images by heart?

python -m experiments.sweep --config=experiments/configs/under_fitting.py --workers=2
python -m experiments.report --config=experiments/configs/under_fitting.py
"""

from collections.abc import Iterator, Sequence

from experiments.config import Config
from experiments.configs import cells, settings
from experiments.study import Row, Study

SETS = ("kd", "fpq", "cr", "recipe", "float")


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """All methods at each pair of widths."""
    for bits in ((2, 2), (4, 4), (2, 4)):
        yield from cells.cell(settings.UNDER_FITTING, bits, SETS, rows)


STUDY = Study(
    claim="With 50,000 images and a narrow resnet8, noise, distillation or consistency is better"
    " than LSQ and LSQ with KD.",
    source="FPQ (arXiv 2503.11159) and CR (arXiv 2402.13497), on images and networks of this size",
    results=settings.UNDER_FITTING_RESULTS,
    regime="under-fitting",
    runs=runs,
    hardware="CPU, one thread a process",
)
