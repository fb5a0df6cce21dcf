"""The search for the best recipe at W2A2, on validation images alone.

    python -m experiments.sweep --config=experiments/configs/recipe_search.py --workers=2

Every candidate gets its own learning rate, as the methods of the tables do, at the weight decay
that `interpolating.py` chose, over two seeds. Two seeds tell bad candidates from good ones, and no
more: the best, and KD alone, run on six others as well. The one with the best validation accuracy
over all eight is the tables' `recipe` where weights have 2 bits; it joins them when all have their
rows.

What is searched: distillation of logits (temperature, weight, without the labels' loss, faded),
CSD (weight, strong early and off late), distillation on the student's grid (SQuaT), noise (how
often, before or behind the quantizer, annealed), CR on top, 4 bits before 2, averaged weights, and
mixtures of images that teacher and student see alike. All have as many steps. Mixtures, averaging
and stages stand beside plain LSQ as well: what LSQ gains by them alone is no merit of a method. The
last two join what was best when 16 candidates had their rows.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from experiments import selection, study
from experiments.config import Config
from experiments.configs import settings
from experiments.study import Row, Study

# Shares of the training and values: half way down, gone at 60 %, and straight down to 0.
STRONG_EARLY = [[0.0, 1.0], [0.6, 0.0]]
FADED = [[0.0, 1.0], [1.0, 0.0]]
ANNEALED = [[0.0, 0.5], [1.0, 0.0]]

CANDIDATES: tuple[Mapping[str, Any], ...] = (
    {"methods": ("kd",)},
    {"methods": ("kd",), "method_arguments": {"kd": {"temperature": 2.0}}},
    {"methods": ("kd",), "method_arguments": {"kd": {"weight": 3.0}}},
    {"methods": ("kd",), "schedules": {"kd.weight": FADED}},
    {"methods": ("sfp", "kd")},
    {"methods": ("sfp", "kd"), "noise_probability": 0.5},
    {"methods": ("sfp", "kd"), "schedules": {"sfp.probability": ANNEALED}},
    {"methods": ("sfp", "kd"), "noise_probability": 0.5, "noise_position": "post"},
    {"methods": ("cr", "kd")},
    {"methods": ("sfp", "cr", "kd"), "noise_probability": 0.5},
    {"methods": ("csd",), "schedules": {"csd.weight": STRONG_EARLY}},
    {"methods": ("kd", "csd"), "schedules": {"csd.weight": STRONG_EARLY}},
    {"methods": ("squat",)},
    {"methods": ("kd", "squat")},
    {"methods": ("sfp", "kd", "squat"), "noise_probability": 0.5},
    {"methods": ("sam", "kd")},
    {"methods": ("kd",), "task_weight": 0.0},
    {"methods": ("kd",), "task_weight": 0.0, "mixup": 1.0},
    {"methods": ("kd",), "mixup": 1.0},
    {"methods": ("kd",), "average_from": 0.75},
    {"methods": ("kd",), "stages": ("W4A4",)},
    {"methods": ("sfp", "kd"), "noise_probability": 0.3},
    {"methods": ("kd", "csd"), "csd_weight": 0.01},
    {"methods": ("none",), "mixup": 1.0},
    {"methods": ("none",), "average_from": 0.75},
    {"methods": ("none",), "stages": ("W4A4",)},
    {
        "methods": ("sfp", "kd"),
        "method_arguments": {"kd": {"temperature": 2.0}},
        "schedules": {"sfp.probability": ANNEALED},
    },
    {"methods": ("sfp", "sam", "kd"), "schedules": {"sfp.probability": ANNEALED}},
)
# How many of them, beside the first, are run on more seeds.
FINALISTS = 4
FINAL_SEEDS = (*selection.SEEDS, *range(102, 108))


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """Candidates at one pair of widths, for one network on one number of images.

    Attributes:
      bits: Widths of weights and activations.
      changes: What each candidate changes of plain LSQ. The first is what the others must beat.
      results: File of the rows.
      base: Data, network and length.
      decays: File of the rows by which the weight decay was chosen.
    """

    bits: tuple[int, int]
    changes: Sequence[Mapping[str, Any]]
    results: str
    base: Config = settings.INTERPOLATING
    decays: str = settings.INTERPOLATING_RESULTS

    def candidates(self) -> list[Config]:
        """The candidates, before their rates are chosen; none before LSQ's weight decay is."""
        rows = study.results_file(self.decays).rows()
        base = dataclasses.replace(
            self.base,
            weight_bits=self.bits[0],
            activation_bits=self.bits[1],
            methods=("none",),
        )
        _, lsq = selection.settle_decay(base, rows)
        return [dataclasses.replace(lsq, **changes) for changes in self.changes] if lsq else []

    def runs(self, rows: Sequence[Row]) -> Iterator[Config]:
        """Validation runs, candidate by candidate, then those of the finalists, seed by seed."""
        for candidate in self.candidates():
            yield from selection.settle_rate(candidate, rows)[0]
        known = [config for config, _ in self.finalists(rows)]
        yield from selection.on_validation(known, FINAL_SEEDS)

    def finalists(self, rows: Sequence[Row]) -> list[tuple[Config, Mapping[str, Any]]]:
        """The first and the best others, with their rates and what they change; none before all
        candidates have rows.
        """
        settled = [selection.settle_rate(candidate, rows)[1] for candidate in self.candidates()]
        known = [config for config in settled if config is not None]
        order = selection.ranked(known, rows)
        if not order or len(known) < len(settled):
            return []
        kept = [known[0], *[config for config in order if config != known[0]][:FINALISTS]]
        return [(config, self.changes[known.index(config)]) for config in kept]

    def winner(self) -> Mapping[str, Any] | None:
        """What the best candidate changes; None as long as rows are missing."""
        return _winner(self, *(_size(path) for path in (self.results, self.decays)))

    def study(self, claim: str) -> Study:
        """The study that does the search."""
        return Study(
            claim=claim,
            source="the search of this project",
            results=self.results,
            regime="interpolating" if self.base == settings.INTERPOLATING else "under-fitting",
            runs=self.runs,
            hardware="CPU, one thread a process",
        )


# Every cell of a grid asks, after each run. Files of rows only grow.
@functools.cache
def _winner(search: Search, *sizes: int) -> Mapping[str, Any] | None:
    del sizes  # they tell whether there are new rows
    rows = study.results_file(search.results).rows()
    known = search.finalists(rows)
    configs = [config for config, _ in known]
    best = selection.best(configs, rows, FINAL_SEEDS) if known else None
    return next((changes for config, changes in known if config == best), None)


def _size(path: str) -> int:
    file = pathlib.Path(path)
    return file.stat().st_size if file.exists() else 0


SEARCH = Search((2, 2), CANDIDATES, "experiments/results/recipe_search.jsonl")
STUDY = SEARCH.study(
    "At W2A2 some mixture of noise, distillation and consistency is better than KD alone."
)
