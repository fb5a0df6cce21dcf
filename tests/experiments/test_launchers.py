"""Launchers do every run once, whoever does it."""

import contextlib
import dataclasses
import multiprocessing
import os
import subprocess
import sys

import pytest

from experiments import launchers, models, records, study, trial
from experiments.config import Config
from tf_fpq.keras_compat import keras

TINY = Config(
    train_examples=64, float_epochs=1, epochs=1, width=4, batch_size=32, methods=("none",)
)

FIGURES = (
    *("accuracy_float", "accuracy_student", "accuracy_tflite", "train_accuracy"),
    *("codes_differing", "codes_compared"),
)


def study_of(tmp_path, grid):
    path = str(tmp_path / "rows.jsonl")
    return study.Study(claim="", source="", results=path, runs=lambda rows: grid, regime="tiny")


@pytest.fixture
def recorded(monkeypatch):
    """Runs that only note down their teacher."""
    found = []

    def run(config):
        model = keras.models.load_model(config.teacher, compile=False)
        found.append((config.model, config.seed, model.name))
        return dict.fromkeys(FIGURES, 1)

    monkeypatch.setattr(trial, "run", run)
    return found


def test_every_network_has_a_teacher_of_its_own_in_one_folder(tmp_path, recorded):
    models = ("resnet8", "mobilenet_v2_tiny")
    grid = [dataclasses.replace(TINY, model=model) for model in models]
    launchers.run_missing(study_of(tmp_path, grid), tmp_path)
    assert [(model, name) for model, _, name in recorded] == [(m, m) for m in models]
    assert len(list(tmp_path.glob("teachers/*/float.keras"))) == 2


def test_cells_that_are_done_are_left(tmp_path, recorded):
    grid = [dataclasses.replace(TINY, seed=seed) for seed in range(3)]
    launchers.run_missing(study_of(tmp_path, grid[:1]), tmp_path)
    for _ in range(2):
        launchers.run_missing(study_of(tmp_path, grid), tmp_path)
    assert [seed for _, seed, _ in recorded] == [0, 1, 2]
    rows = study_of(tmp_path, grid).open_results().rows()
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert {(row["split"], row["regime"], row["methods"]) for row in rows} == {
        ("test", "tiny", "none")
    }


def test_runs_that_follow_from_others_are_done_in_the_same_sweep(tmp_path, recorded):
    def runs(rows):
        yield TINY
        if rows:
            yield dataclasses.replace(TINY, seed=10 + int(rows[0]["accuracy_tflite"]))

    found = dataclasses.replace(study_of(tmp_path, []), runs=runs)
    launchers.run_missing(found, tmp_path)
    assert [seed for _, seed, _ in recorded] == [0, 11]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, recorded):
    grid = [dataclasses.replace(TINY, seed=seed) for seed in range(2)]
    found = study_of(tmp_path, grid)
    with mp_claim(found.results, study.key(study.plain(grid[0]))):
        assert launchers.run_one(grid, found.open_results(), "", tmp_path)
        assert not launchers.run_one(grid, found.open_results(), "", tmp_path)
    assert [seed for _, seed, _ in recorded] == [1]


@contextlib.contextmanager
def mp_claim(path, key):
    """Another process that has the claim."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold():
        with study.results_file(path).claim(key):
            ready.set()
            done.wait(60)

    process = context.Process(target=hold)
    process.start()
    assert ready.wait(30)
    yield
    done.set()
    process.join()


def test_a_run_that_fails_has_a_row_that_says_so(tmp_path, monkeypatch):
    def run(config):
        raise ArithmeticError("step 3 is not finite")

    monkeypatch.setattr(trial, "run", run)
    found = study_of(tmp_path, [TINY])
    launchers.run_missing(found, tmp_path)
    (row,) = found.open_results().rows()
    assert row["failed"] == "ArithmeticError: step 3 is not finite" and row["seconds"] >= 0


def test_no_run_begins_after_the_time(tmp_path, recorded):
    launchers.run_missing(study_of(tmp_path, [TINY]), tmp_path, minutes=0)
    assert not recorded


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
@pytest.mark.parametrize(
    "cores, shares", [({0, 1, 2}, [{0, 2}, {1}]), ({0, 1}, [{0}, {1}]), ({1}, [{1}, {1}])]
)
def test_each_worker_has_cores_of_its_own(tmp_path, monkeypatch, cores, shares):
    at, seen = [cores], []

    def begin():
        seen.append(at[0])
        return subprocess.Popen(["true"])

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: at[0])
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, share: at.__setitem__(0, share))
    monkeypatch.setattr(launchers, "_other_worker", begin)
    monkeypatch.setattr(launchers, "run_missing", lambda *_: seen.append(at[0]))
    assert launchers.in_processes(study_of(tmp_path, []), tmp_path, workers=2)
    assert seen == shares[::-1]
    assert at == [cores]


def test_without_ray_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(launchers.RayMissingError, match=r"tf_fpq\[ray\].*--launcher=processes"):
        launchers.on_ray(study_of(tmp_path, [TINY]), tmp_path, 1)
    assert not (tmp_path / "rows.jsonl").exists()


MINE = """
from experiments import models
from experiments.config import Config
from experiments.models import resnet
from experiments.study import Study

models.BUILDERS["mine"] = lambda shape, classes, width: resnet.resnet8(shape, classes, width)
STUDY = Study(
    claim="",
    source="",
    results="{folder}/rows.jsonl",
    runs=lambda rows: [
        Config(model="mine", data_dir="{data_dir}", train_examples=64, float_epochs=1, epochs=1,
               width=4, batch_size=32, methods=(method,), seed=seed)
        for seed in (0, 1) for method in ("none", "kd")
    ],
)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # two batches settle no batch norm
def test_two_workers_of_a_ray_cluster_do_what_a_process_does(tmp_path, data_dir, monkeypatch):
    """A file with a network of its own, two teachers, four runs; one of them is done here too."""
    pytest.importorskip("ray")
    config = tmp_path / "mine.py"
    config.write_text(MINE.format(folder=tmp_path, data_dir=data_dir))
    monkeypatch.setattr(models, "BUILDERS", dict(models.BUILDERS))
    found = study.load(str(config))
    runs = tmp_path / "runs"
    launchers.on_ray(found, runs, 2, config=str(config))
    rows = found.open_results().rows()
    assert found.missing(rows) == [] and len(rows) == 4
    assert len(list(runs.glob("teachers/*/float.keras"))) == 2
    assert len(list(runs.glob("*/student.keras"))) == 4
    assert {row["commit"] for row in rows} == {records.commit()}
    here = dataclasses.replace(found, results=str(tmp_path / "here.jsonl"))
    (first, *_) = found.runs([])
    here = dataclasses.replace(here, runs=lambda rows: [first])
    launchers.run_missing(here, tmp_path / "here")
    (row,) = here.open_results().rows()
    (theirs,) = [r for r in rows if study.row_key(r) == study.row_key(row)]
    same = [name for name in row if name not in ("seconds", "commit")]
    assert {name: theirs[name] for name in same} == {name: row[name] for name in same}
