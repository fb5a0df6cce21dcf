"""Mutants are drawn evenly, change what they say, and are killed by tests alone."""

import pathlib

import pytest

pytest.importorskip("cosmic_ray")
from tools import mutation

SOURCE = '''"""Adds 1."""


def add(x: int | None, y: float = 2) -> "int | None":
    z: int | None = x + y
    return z if x < 3 else None
'''


def found(operator):
    return [m for m in mutation.mutants_of("add.py", SOURCE) if m.operator.startswith(operator)]


def test_annotations_and_docstrings_are_not_mutated():
    assert {(m.line, m.column) for m in found("ReplaceBinaryOperator")} == {(5, 22)}
    assert [(m.line, m.column) for m in found("NumberReplacer")] == [*[(4, 34)] * 2, *[(6, 20)] * 2]


def test_a_mutant_is_the_source_with_one_change():
    less = next(m for m in found("ReplaceComparisonOperator") if m.operator.endswith("Lt_LtE"))
    assert mutation.mutated(SOURCE, less) == SOURCE.replace("x < 3", "x <= 3")
    other = mutation.Mutant("add.py", 1, 0, less.operator, 7)
    with pytest.raises(ValueError, match="no such place. Received: mutant=Mutant"):
        mutation.mutated(SOURCE, other)


def test_places_are_drawn_and_each_once():
    """However many changes are possible there; the same ones for the same seed."""
    mutants = mutation.mutants_of("add.py", SOURCE)
    places = {(m.line, m.column) for m in mutants}
    drawn = mutation.sample(mutants, 100, seed=3)
    assert len(drawn) == len(places) == len({(m.line, m.column) for m in drawn}) < len(mutants)
    assert mutation.sample(mutants, 2, seed=3) == mutation.sample(mutants[::-1][::-1], 2, seed=3)
    assert len({tuple(mutation.sample(mutants, 2, seed=seed)) for seed in range(9)}) > 1


def test_the_interval_is_wilsons():
    low, high = mutation.interval(9, 10)
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    assert mutation.interval(10, 10)[1] == pytest.approx(1)


def test_the_modules_own_tests_come_first():
    root = pathlib.Path(mutation.__file__).parent.parent
    tests = mutation.tests_of(root, "tf_fpq/quantizers/spec.py")
    assert tests[0] == "tests/tf_fpq/quantizers/test_spec.py" and len(set(tests)) == len(tests) > 5


@pytest.fixture
def tree(tmp_path):
    """A package of one module and one test, which notices some changes only."""
    for folder in ("package", "tests/package"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "package" / "add.py").write_text(SOURCE)
    test = "from package import add\n\ndef test_add():\n    assert add.add(1, 1) == 2\n"
    (tmp_path / "tests" / "package" / "test_add.py").write_text(test)
    return tmp_path


def test_tests_decide_and_the_tree_is_as_it_was(tree):
    mutants = [
        next(m for m in mutation.mutants_of("package/add.py", SOURCE) if m.operator.endswith(name))
        for name in ("Add_Sub", "Lt_LtE")
    ]
    results = tree / "mutants.jsonl"
    mutation.run(tree, mutants, results)
    rows = mutation.rows_of(results)
    assert [row["outcome"] for row in rows] == ["killed", "survived"]
    assert rows[1]["change"] == "return z if x < 3 else None -> return z if x <= 3 else None"
    assert (tree / "package" / "add.py").read_text() == SOURCE
    mutation.run(tree, mutants, results)
    assert mutation.rows_of(results) == rows
    assert "1 of 2 mutants killed: 50.0%" in mutation.report(rows)
    assert "| package/add.py | 6 | `return z if x < 3" in mutation.report(rows)


def test_a_mutant_that_does_not_end_is_stopped(tree):
    (tree / "package" / "add.py").write_text("while True: pass\n")
    assert mutation.outcome(tree, ["tests/package/test_add.py"], 2.0) == "timeout"


def test_tests_that_fail_as_they_are_say_nothing(tree):
    """Though they have killed every mutant."""
    (tree / "tests" / "package" / "test_add.py").write_text("def test_it():\n    assert False\n")
    (mutant, *_) = mutation.mutants_of("package/add.py", SOURCE)
    with pytest.raises(SystemExit, match="without any change these tests fail"):
        mutation.run(tree, [mutant], tree / "mutants.jsonl")
