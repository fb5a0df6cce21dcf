"""Runs of a grid: their folders, and the float teachers that some of them share."""

import dataclasses
import pathlib

import pytest

from experiments import grid_runs, pipeline, study
from experiments.config import Config
from tf_fpq.keras_compat import keras

TINY = Config(
    train_examples=64, float_epochs=1, epochs=1, width=4, batch_size=32, methods=("none",)
)


def config(workdir, **changes):
    made = dataclasses.replace(TINY, **changes)
    return dataclasses.replace(made, workdir=str(workdir / grid_runs.folder_name(made)))


@pytest.mark.parametrize("field", grid_runs._OF_TEACHER)
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
    paths = [grid_runs.teacher(c, results) for c in (config(tmp_path), same)]
    assert paths[0] == paths[1] and len(trained) == 1
    assert grid_runs.teacher(config(tmp_path, **{field: other}), results) != paths[0]
    keras.mixed_precision.set_global_policy("float32")


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
    names = {
        grid_runs.folder_name(dataclasses.replace(TINY, **change)) for change in [{}, *changes]
    }
    assert len(names) == len(changes) + 1
    assert all(pathlib.Path(name).name == name for name in names)


def test_a_folder_of_images_has_folders_of_runs_whose_names_have_no_slash():
    run = dataclasses.replace(TINY, dataset="folder:/home/me/birds and bees")
    assert grid_runs.folder_name(run).startswith("folder-home-me-birds-and-bees_resnet8_seed0_")
    teacher = grid_runs.teacher_path(run, pathlib.Path("runs"))
    assert teacher.parent.parent == pathlib.Path("runs/teachers")
