"""The program that does a study's runs."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import grid_runs, models, pipeline, study
from experiments.config import Config
from tf_fpq.keras_compat import keras

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def swept(data_dir, tmp_path_factory):
    """Two sweeps at once, one of two workers, on four runs of a file of a user's own, with a
    network of their own. The folder, and what the programs printed."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "mine.py").write_text(MINE.format(folder=folder, data_dir=data_dir))
    command = [sys.executable, "-m", "experiments.sweep", f"--config={folder}/mine.py"]
    sweeps = [
        subprocess.Popen(
            [*command, f"--workers={workers}", f"--sweep_workdir={folder}/runs"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for workers in (1, 2)
    ]
    printed = [process.communicate() for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0], printed
    return folder, printed


@pytest.mark.slow
def test_two_sweeps_at_once_on_one_grid_write_every_row_once(swept):
    folder, printed = swept
    assert all("4 rows" in stdout and "4/4" in stderr for stdout, stderr in printed)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    runs = [(name, seed) for name in NETWORKS for seed in (0, 1)]
    assert sorted((row["model"], row["seed"]) for row in rows) == sorted(runs)
    assert not any("workdir" in row["config"] for row in rows)
    assert all(row["codes_differing"] == 0 and row["codes_compared"] > 0 for row in rows)


@pytest.mark.slow
def test_each_rows_file_holds_its_own_network(swept, data_dir, monkeypatch):
    """By the file itself: the network in it, and what that reaches on the test images."""
    folder, _ = swept
    monkeypatch.setitem(models.BUILDERS, "mine", None)  # a name that `Config` knows
    for row in study.results_file(folder / "rows.jsonl").rows():
        made = Config(**{**row["config"], "methods": tuple(row["config"]["methods"])})
        path = folder / "runs" / grid_runs.folder_name(made) / "student.keras"
        student = keras.models.load_model(path, compile=False)
        assert student.name == NETWORKS[row["model"]]
        dataset = pipeline.load(dataclasses.replace(made, data_dir=data_dir))
        assert pipeline.accuracy(student, dataset) == row["accuracy_student"]


# The names that the networks of the grid below have as Keras models.
NETWORKS = {"mine": "smallest", "mobilenet_v2_tiny": "mobilenet_v2_tiny"}


MINE = """
from experiments import models
from experiments.config import Config
from experiments.evidence import kill_test
from experiments.study import Study

models.BUILDERS["mine"] = kill_test.network
STUDY = Study(
    claim="",
    source="",
    results="{folder}/rows.jsonl",
    runs=lambda rows: [
        Config(model=model, data_dir="{data_dir}", train_examples=64, float_epochs=1, epochs=1,
               width=4, batch_size=32, methods=("kd",), seed=seed)
        for seed in (0, 1) for model in ("mine", "mobilenet_v2_tiny")
    ],
)
"""
