"""A sweep trains each network with its own teacher, and runs each cell once."""

import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import subprocess
import sys

import pytest

from experiments import models, pipeline, study, sweep, trial
from experiments.config import Config
from tf_fpq.keras_compat import keras

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = Config(
    train_examples=64, float_epochs=1, epochs=1, width=4, batch_size=32, methods=("none",)
)

FIGURES = (
    *("accuracy_float", "accuracy_student", "accuracy_tflite", "train_accuracy"),
    *("codes_differing", "codes_compared"),
)


def config(workdir, **changes):
    made = dataclasses.replace(TINY, **changes)
    return dataclasses.replace(made, workdir=str(workdir / sweep.folder_name(made)))


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
    sweep.run_missing(study_of(tmp_path, grid), tmp_path)
    assert [(model, name) for model, _, name in recorded] == [(m, m) for m in models]
    assert len(list(tmp_path.glob("teachers/*/float.keras"))) == 2


@pytest.mark.parametrize("field", sweep._OF_TEACHER)
def test_a_teacher_is_shared_only_by_runs_that_agree_in_all_it_depends_on(
    tmp_path, field, monkeypatch
):
    trained = []

    def float_teacher(config, dataset, watch, checkpoints):
        trained.append(config)
        inputs = keras.Input((1,))
        return keras.Model(inputs, inputs), {}

    monkeypatch.setattr(pipeline, "float_teacher", float_teacher)
    monkeypatch.setattr(pipeline, "load", lambda config: None)
    results = study.results_file(tmp_path / "rows.jsonl")
    others = {"dataset": "fashion_mnist", "model": "resnet20", "precision": "mixed_bfloat16"}
    value = getattr(TINY, field)
    others |= {"resolution": 4, "shift": 2}
    if field in others:
        other = others[field]
    else:
        other = not value if isinstance(value, bool) else value + 1
    same = config(tmp_path, weight_bits=2, epochs=7)
    paths = [sweep.teacher(c, results) for c in (config(tmp_path), same)]
    assert paths[0] == paths[1] and len(trained) == 1
    assert sweep.teacher(config(tmp_path, **{field: other}), results) != paths[0]
    keras.mixed_precision.set_global_policy("float32")


def test_cells_that_are_done_are_left(tmp_path, recorded):
    grid = [dataclasses.replace(TINY, seed=seed) for seed in range(3)]
    sweep.run_missing(study_of(tmp_path, grid[:1]), tmp_path)
    for _ in range(2):
        sweep.run_missing(study_of(tmp_path, grid), tmp_path)
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
    sweep.run_missing(found, tmp_path)
    assert [seed for _, seed, _ in recorded] == [0, 11]


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, recorded):
    grid = [dataclasses.replace(TINY, seed=seed) for seed in range(2)]
    found = study_of(tmp_path, grid)
    with mp_claim(found.results, study.key(study.plain(grid[0]))):
        assert sweep.run_one(grid, found.open_results(), "", tmp_path)
        assert not sweep.run_one(grid, found.open_results(), "", tmp_path)
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
    sweep.run_missing(found, tmp_path)
    (row,) = found.open_results().rows()
    assert row["failed"] == "ArithmeticError: step 3 is not finite" and row["seconds"] >= 0


def test_no_run_begins_after_the_time(tmp_path, recorded):
    sweep.run_missing(study_of(tmp_path, [TINY]), tmp_path, minutes=0)
    assert not recorded


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
        path = folder / "runs" / sweep.folder_name(made) / "student.keras"
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


def test_folders_of_runs_differ_wherever_their_keys_do():
    changes = [
        {"model": "resnet20"},
        {"seed": 1},
        {"weight_bits": 2},
        {"methods": ("kd",)},
        {"epochs": 2},
        {"width": 8},
        {"learning_rate": 0.02},
        {"quantizer": "pact"},
        {"jit_compile": True},
    ]
    names = {sweep.folder_name(dataclasses.replace(TINY, **change)) for change in [{}, *changes]}
    assert len(names) == len(changes) + 1
    assert all(pathlib.Path(name).name == name for name in names)
