"""A sweep trains each network with its own teacher, and runs each cell once."""

import dataclasses
import pathlib

import pytest

from experiments import pipeline, sweep
from experiments.config import Config
from tf_fpq.keras_compat import keras

TINY = Config(
    train_examples=64, float_epochs=1, epochs=1, width=4, batch_size=32, methods=("none",)
)

METRICS = ("tflite_accuracy", "float_accuracy", "codes_differing", "codes_compared")


def config(workdir, **changes):
    made = dataclasses.replace(TINY, **changes)
    return dataclasses.replace(made, workdir=str(workdir / sweep.folder_name(made)))


@pytest.fixture
def recorded(monkeypatch):
    """Runs of the pipeline that only note down their teacher."""
    found = []

    def run(config):
        model = keras.models.load_model(config.teacher, compile=False)
        found.append((config.model, config.seed, model.name))
        return {"metrics": dict.fromkeys(METRICS, 1)}

    monkeypatch.setattr(pipeline, "run", run)
    return found


def test_every_network_has_a_teacher_of_its_own_in_one_folder(tmp_path, recorded):
    results = sweep.results_file(tmp_path / "rows.jsonl")
    models = ("resnet8", "mobilenet_v2_tiny")
    sweep.run_missing([config(tmp_path, model=model) for model in models], results)
    assert [(model, name) for model, _, name in recorded] == [(m, m) for m in models]
    assert len(list(tmp_path.glob("teachers/*/float.keras"))) == 2


@pytest.mark.parametrize("field", sweep._OF_TEACHER)
def test_a_teacher_is_shared_only_by_runs_that_agree_in_all_it_depends_on(
    tmp_path, field, monkeypatch
):
    trained = []

    def float_teacher(config, dataset):
        trained.append(config)
        inputs = keras.Input((1,))
        return keras.Model(inputs, inputs), {}

    monkeypatch.setattr(pipeline, "float_teacher", float_teacher)
    monkeypatch.setattr(pipeline, "load", lambda config: None)
    results = sweep.results_file(tmp_path / "rows.jsonl")
    others = {"dataset": "fashion_mnist", "model": "resnet20", "precision": "mixed_bfloat16"}
    value = getattr(TINY, field)
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
    results = sweep.results_file(tmp_path / "rows.jsonl")
    grid = [config(tmp_path, seed=seed) for seed in range(3)]
    sweep.run_missing(grid[:1], results)
    sweep.run_missing(grid, results)
    sweep.run_missing(grid, results)
    assert [seed for _, seed, _ in recorded] == [0, 1, 2]
    assert len(results.rows()) == 3 and "(n=3)" in sweep.table(results.rows())


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
