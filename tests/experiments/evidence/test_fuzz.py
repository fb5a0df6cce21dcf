import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.evidence import fuzz, fuzz_case, fuzz_networks
from tflite_export.runtimes import litert


def test_a_seed_is_one_network():
    first, again = fuzz_networks.build(3), fuzz_networks.build(3)
    assert [type(layer) for layer in first.layers] == [type(layer) for layer in again.layers]
    for left, right in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_some_networks_are_exact_or_refused():
    rows = [fuzz_case.run(seed) for seed in range(1, 7)]
    assert all(row["status"] in fuzz.PASSED for row in rows), rows
    assert sum(row["status"] == "exact" for row in rows) >= 3
    assert all(row["codes"] > 0 for row in rows if row["status"] == "exact")


def test_a_wrong_code_is_a_mismatch(monkeypatch):
    """The check is alive: one output code of the interpreter moved by 1."""
    run = litert.Interpreter.run

    def off_by_one(self, batch):
        outputs = run(self, batch)
        next(iter(outputs.values())).flat[0] ^= 1
        return outputs

    monkeypatch.setattr(litert.Interpreter, "run", off_by_one)
    row = fuzz_case.run(2)
    assert row["status"] == "mismatch" and row["differing"] == 1


def test_an_error_of_another_kind_is_a_failure(monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("broken")

    monkeypatch.setattr(fuzz_case.tflite_export, "export", broken)
    row = fuzz_case.run(2)
    assert row["status"] == "error" and row["stage"] == "export" and "broken" in row["reason"]


def test_a_process_that_dies_costs_one_seed(monkeypatch):
    monkeypatch.setattr(fuzz.sys, "executable", "/bin/false")
    rows = list(fuzz.run([5, 6], float("inf"), 60))
    assert [(row["seed"], row["status"]) for row in rows] == [(5, "crashed"), (6, "crashed")]


@pytest.mark.slow
def test_binary(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        "-m",
        "experiments.evidence.fuzz",
        "--models=40",
        "--seed=1000",
        f"--json={path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert {json.loads(line)["seed"] for line in path.read_text().splitlines()} == set(
        range(1000, 1040)
    )
