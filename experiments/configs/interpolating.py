"""Does FPQ, CR, or anything else, win over LSQ and over LSQ with KD where images are few?

python -m experiments.sweep --config=experiments/configs/interpolating.py --workers=2
python -m experiments.report --config=experiments/configs/interpolating.py
"""

from collections.abc import Iterator, Sequence
import dataclasses

from experiments.config import Config
from experiments.configs import cells, settings
from experiments.study import Row, Study

# In the order in which rows are wanted.
CELLS = (
    ("resnet8", (2, 2)),
    ("resnet8", (4, 4)),
    ("resnet8", (2, 4)),
    ("mobilenet_v2_tiny", (2, 2)),
    ("mobilenet_v2_tiny", (4, 4)),
    ("mobilenet_v2_tiny", (2, 4)),
)
# In every cell, before the others in any.
FIRST = ("kd", "fpq", "recipe", "float")


def runs(rows: Sequence[Row]) -> Iterator[Config]:
    """The first methods in all cells, then all in all cells."""
    for sets in (FIRST, (*cells.METHOD_SETS, "recipe")):
        for model, bits in CELLS:
            base = dataclasses.replace(settings.INTERPOLATING, model=model)
            yield from cells.cell(base, bits, sets, rows)


STUDY = Study(
    claim="With 1,000 images, noise, distillation or consistency is better than LSQ and LSQ with KD"
    " at W4A4, W2A4 and W2A2.",
    source="FPQ (arXiv 2503.11159) and CR (arXiv 2402.13497), on images and networks of this size",
    results=settings.INTERPOLATING_RESULTS,
    regime="interpolating",
    runs=runs,
    hardware="CPU, one thread a process",
    time="some 800 runs of 33 to 98 s of CPU time, 46 in the median, on a busy machine",
)
