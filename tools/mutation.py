r"""How many small changes of the core its tests notice: a random sample of mutants, one by one.

    python -m tools.mutation --mutants=200 --seed=0 --results=mutants.jsonl

A place of the source is drawn, then one of the changes that Cosmic Ray's operators make there: `+`
becomes `-`, `<` becomes `<=`, `1` becomes `2`, a loop has no pass. The mutant is written into a
copy of the tree, and the default tests of the folder that mirrors the module's run on it, those of
the module itself first. A mutant is killed if a test fails or does not end.

Lines that the results have already are not repeated, so a run that was interrupted goes on. The
score is printed with its 95 % interval (Wilson's), and the mutants that survived as rows of a
table.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile

from cosmic_ray import ast as trees
from cosmic_ray import mutating
from cosmic_ray.operators import provider
from scipy import stats

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Without what only says how a report looks.
CORE = (
    "tf_fpq/quantizers/*.py",
    "tflite_export/lowering/folding.py",
    "tflite_export/kernels/*.py",
    "tflite_export/verification/*.py",
    "tflite_export/image_batches.py",
)
NOT_CORE = ("report_html.py", "report_text.py")
# These would need the name of a variable.
_WITHOUT = ("VariableReplacer", "VariableInserter")
# What tests import and no mutant is in: loaded once, before a process is forked for each mutant.
_LOADED = (
    *("tensorflow", "tf_keras", "tensorflow_model_optimization", "matplotlib.figure"),
    *("numpy", "ai_edge_litert.interpreter", "pytest", "hypothesis"),
)
# The tests of a folder take two minutes of the CPU at most. On a busy machine that is much longer.
_CPU_SECONDS, _SECONDS = 300, 7200.0
# Of address space, which a mutant may ask for by mistake; TensorFlow needs a tenth.
_MAX_BYTES = 32 * 2**30


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
      module: Its path in the tree.
      line: Where the change is, from 1.
      column: Where in the line, from 0.
      operator: Cosmic Ray's name of the change.
      occurrence: Which of the places where that change is possible in the module.
    """

    module: str
    line: int
    column: int
    operator: str
    occurrence: int


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, without those of annotations, which do not run."""
    annotated = list(_annotations(source))
    nodes = list(trees.ast_nodes(trees.get_ast(source)))
    found = []
    for name in provider.OperatorProvider():
        if name in _WITHOUT:
            continue
        operator = provider.OperatorProvider()[name]()
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        found += [
            Mutant(module, *start, name, number)
            for number, start in enumerate(starts)
            if not any(begin <= start < end for begin, end in annotated)
        ]
    return found


def _annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Draws `count` places, each as likely as any other, and one mutant at each."""
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault((mutant.module, mutant.line, mutant.column), []).append(mutant)
    generator = random.Random(seed)
    drawn = generator.sample(sorted(places), min(count, len(places)))
    return [generator.choice(places[place]) for place in drawn]


def mutated(source: str, mutant: Mutant) -> str:
    """The module's source with the change."""
    operator = provider.OperatorProvider()[mutant.operator]()
    found = mutating.mutate_code(source, operator, mutant.occurrence)
    if found is None:
        raise ValueError(f"The source has no such place. Received: mutant={mutant}.")
    return found


def tests_of(tree: pathlib.Path, module: str) -> list[str]:
    """The test files of the folder that mirrors the module's.

    First the module's own, then those that name it most often.
    """
    path = pathlib.Path(module)
    files = sorted((tree / "tests" / path.parent).glob("test_*.py"))
    mentions = {file: file.read_text().count(path.stem) for file in files}
    files.sort(key=lambda file: (file.stem != f"test_{path.stem}", -mentions[file]))
    return [str(file.relative_to(tree)) for file in files]


def outcome(tree: pathlib.Path, tests: Sequence[str], seconds: float = _SECONDS) -> str:
    """What the tests say: "killed" if one fails, "timeout" if they do not end, or "survived"."""
    process = multiprocessing.get_context("fork").Process(target=_test, args=(tree, tests))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return "timeout"
    if process.exitcode == -signal.SIGXCPU:
        return "timeout"
    return "killed" if process.exitcode else "survived"


def _test(tree: pathlib.Path, tests: Sequence[str]) -> None:
    """Runs tests of a tree, in a process (and a group of its own) that imports nothing else."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    os.chdir(tree)
    sys.path[0] = str(tree)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    pytest = importlib.import_module("pytest")
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def interval(killed: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: 9 of 10 are between 0.60 and 0.98."""
    return stats.binomtest(killed, count).proportion_ci(method="wilson")


def core(tree: pathlib.Path) -> list[Mutant]:
    """All mutants of the core."""
    paths = [path for pattern in CORE for path in sorted(tree.glob(pattern))]
    return [
        mutant
        for path in paths
        if path.name not in NOT_CORE
        for mutant in mutants_of(str(path.relative_to(tree)), path.read_text())
    ]


def run(tree: pathlib.Path, mutants: Sequence[Mutant], results: pathlib.Path) -> None:
    """Tests each mutant that the results lack, and adds a line for it.

    Raises:
      SystemExit: If a folder's tests fail without any change, and so say nothing.
    """
    known = {Mutant(**row["mutant"]) for row in rows_of(results)}
    for mutant in mutants:
        if mutant not in known:
            _add(results, mutant, _tested(tree, mutant, tests_of(tree, mutant.module)))
    for tests in _unproved(tree, rows_of(results)):
        if outcome(tree, tests) != "survived":
            raise SystemExit(f"error: without any change these tests fail: {' '.join(tests)}")


def _unproved(tree: pathlib.Path, rows: Sequence[Mapping]) -> list[list[str]]:
    """The tests of each folder in which no mutant has survived, which shows that they can pass."""
    folders = {}
    for row in rows:
        folders.setdefault(pathlib.Path(row["mutant"]["module"]).parent, []).append(row)
    return [
        tests_of(tree, found[0]["mutant"]["module"])
        for found in folders.values()
        if all(row["outcome"] != "survived" for row in found)
    ]


def _tested(tree: pathlib.Path, mutant: Mutant, tests: Sequence[str]) -> dict[str, str]:
    path = tree / mutant.module
    source = path.read_text()
    changed = mutated(source, mutant)
    path.write_text(changed)
    try:
        found = outcome(tree, tests)
    finally:
        path.write_text(source)
    return {"outcome": found, "change": _line_of(source, changed)}


def _line_of(source: str, changed: str) -> str:
    """The first line that differs, before and after."""
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    before, after = next((a.strip(), b.strip()) for a, b in pairs if a != b)
    return f"{before} -> {after}"


def rows_of(results: pathlib.Path) -> list[dict]:
    """The lines of the results."""
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def _add(results: pathlib.Path, mutant: Mutant, found: Mapping[str, str]) -> None:
    row = {"mutant": dataclasses.asdict(mutant), **found}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['outcome']}: {mutant.module}:{mutant.line} {row['change']}", flush=True)


def report(rows: Sequence[Mapping]) -> str:
    """Score and survivors."""
    alive = [row for row in rows if row["outcome"] == "survived"]
    low, high = interval(len(rows) - len(alive), len(rows))
    lines = [
        f"{len(rows) - len(alive)} of {len(rows)} mutants killed: {1 - len(alive) / len(rows):.1%},"
        f" between {low:.1%} and {high:.1%}.",
        "",
        "| module | line | mutation |",
        "|---|---|---|",
    ]
    for row in sorted(alive, key=lambda row: (row["mutant"]["module"], row["mutant"]["line"])):
        change = row["change"].replace("|", r"\|")
        lines.append(f"| {row['mutant']['module']} | {row['mutant']['line']} | `{change}` |")
    return "\n".join(lines)


def main() -> None:
    """Samples, runs, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200, help="How many are drawn.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="JSON lines.")
    arguments = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in _LOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = ["git", "checkout-index", "--all", f"--prefix={folder}/"]
        subprocess.run(copy, cwd=ROOT, check=True)
        tree = pathlib.Path(folder)
        run(tree, sample(core(tree), arguments.mutants, arguments.seed), arguments.results)
    print(report(rows_of(arguments.results)))


if __name__ == "__main__":
    main()
