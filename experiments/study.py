"""A claim, and the runs that decide it: what a file of `experiments/configs` defines.

Such a file is Python with a variable `STUDY`:

    STUDY = Study(
        claim="KD helps a 2-bit resnet8 on digits.",
        source="this file",
        results="experiments/results/mine.jsonl",
        runs=lambda rows: [Config(methods=methods, seed=seed, ...) for ...],
    )

    python -m experiments.sweep --config=mine.py      # runs what is missing, in this order
    python -m experiments.report --config=mine.py     # tables of what is there

It may be anywhere, and may bring a network of its own: `models.BUILDERS["mine"] = build` before
`STUDY`. The runs are a function of the rows that are there: what is chosen on validation images is
chosen by the program, and the runs that depend on the choice follow when it can be made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any

from experiments.config import Config
from experiments.results_file import ResultsFile

Row = dict[str, Any]

# Fields of `Config` that say where files are and what is written, not what is measured.
_PLACES = (
    *("data_dir", "fashion_mnist_dir", "workdir", "teacher"),
    *("kernels", "min_top1_agreement", "input_type", "output_type"),
)
# Fields that came when there were rows. At its default such a field is in no key, so that a run has
# the key, and the folder, that it had before.
_LATER = ("task_weight", "mixup", "average_from", "stages")
_FIELDS = [field for field in dataclasses.fields(Config) if field.name not in _PLACES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A claim and its runs.

    Attributes:
      claim: What the runs are to show, in a sentence.
      source: Where the claim is made: paper, table and cell, or an issue of ours.
      results: File of the rows.
      runs: From the rows that are there to all runs that are known then, in the order in which they
        shall be done.
      regime: Name of the setting of data, network and length, in the rows.
      expected: Figures of the source by what they are of.
      hardware: What the runs need.
      time: How long they take there.
    """

    claim: str
    source: str
    results: str
    runs: Callable[[Sequence[Row]], Iterable[Config]]
    regime: str = ""
    expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hardware: str = ""
    time: str = ""

    def open_results(self) -> ResultsFile:
        """The file of the rows."""
        return results_file(self.results)

    def known(self, rows: Sequence[Row]) -> dict[str, Config]:
        """All runs that are known, by key, in their order. One that comes twice is one run."""
        return {key(plain(config)): config for config in self.runs(rows)}

    def missing(self, rows: Sequence[Row]) -> list[Config]:
        """The runs that are known and have no row."""
        return self.progress(rows)[1]

    def progress(self, rows: Sequence[Row]) -> tuple[int, list[Config]]:
        """How many runs are known, and those of them that have no row."""
        done, known = {row_key(row) for row in rows}, self.known(rows)
        return len(known), [config for name, config in known.items() if name not in done]


def load(path: str) -> Study:
    """Reads a file that defines `STUDY`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is no Python file, or defines no `STUDY`.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"config must be a Python file that exists. Received: config={path!r}."
        )
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"config must be a file of Python, *.py. Received: config={path!r}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(
            f"config must define STUDY = experiments.study.Study(...). Received: config={path!r},"
            f" where STUDY is {study!r}."
        )
    return study


def plain(config: Config) -> dict[str, Any]:
    """A configuration as a line of results holds it: without where files are."""
    found = json.loads(json.dumps(dataclasses.asdict(config)))
    return {field.name: found[field.name] for field in _FIELDS}


def key(config: Mapping[str, Any]) -> str:
    """What identifies a run: every field that its figures depend on.

    A line that was written before a field existed has the field's default.
    """
    values = {field.name: config.get(field.name, default(field)) for field in _FIELDS}
    later = [
        [field.name, values[field.name]]
        for field in _FIELDS
        if field.name in _LATER and values[field.name] != default(field)
    ]
    return json.dumps([*(values[name] for name in values if name not in _LATER), *later])


def row_key(row: Row) -> str:
    """The key of a row's configuration."""
    return key(row["config"])


def results_file(path: str) -> ResultsFile:
    """A file of rows, each once for a configuration."""
    return ResultsFile(path, row_key)


# Every key of every row asks for all of them. Nobody changes what is returned.
@functools.cache
def default(field: dataclasses.Field) -> Any:
    """The default of a field of `Config`, as JSON has it."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return json.loads(json.dumps(field.default))
