"""Files that define studies, and what makes two runs the same."""

import dataclasses

import pytest

from experiments import grid_runs, study
from experiments.config import Config


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_file_of_ones_own_is_read(tmp_path):
    text = """
from experiments.config import Config
from experiments.study import Study
STUDY = Study(claim="c", source="s", results="r.jsonl", runs=lambda rows: [Config(seed=3)])
"""
    found = study.load(write(tmp_path, text))
    assert found.claim == "c" and [run.seed for run in found.missing([])] == [3]
    assert found.missing([{"config": study.plain(Config(seed=3))}]) == []


@pytest.mark.parametrize("text", ["", "STUDY = 3"])
def test_a_file_without_a_study_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"define STUDY.*mine\.py"):
        study.load(write(tmp_path, text))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"config='nowhere\.py'"):
        study.load("nowhere.py")


def test_keys_tell_apart_all_that_figures_depend_on_and_nothing_else():
    changes = {
        **{"weight_decay": 0.1, "schedules": {"sfp.probability": [[0, 1]]}, "resolution": 4},
        **{"validation_examples": 3, "method_arguments": {"sfp": {"seed": 1}}, "seed": 4},
    }
    base = study.key(study.plain(Config()))
    keys = {study.key(study.plain(Config(**{name: value}))) for name, value in changes.items()}
    assert len(keys | {base}) == len(changes) + 1
    elsewhere = Config(workdir="w", data_dir="d", kernels=("xnnpack",))
    assert study.key(study.plain(elsewhere)) == base


def test_a_run_keeps_the_key_and_the_folder_that_it_had_before_later_fields_came():
    """A row of results/interpolating.jsonl, whose student lies in the folder of this name."""
    rows = study.results_file("experiments/results/interpolating.jsonl").rows()
    (row,) = [
        row
        for row in rows
        if (row["model"], row["methods"], row["seed"], row["learning_rate"], row["split"])
        == ("resnet8", "fpq", 101, 0.03, "validation")
        and row["weight_bits"] == 2
        and row["activation_bits"] == 2
    ]
    name = "fashion_mnist_resnet8_seed101_W2A2_lsq_fpq_54001f2a"
    assert study._LATER[0] not in row["config"]
    assert grid_runs.folder_name(Config(**row["config"])) == name
    again = study.plain(Config(**row["config"]))
    assert study.key(again) == study.row_key(row) and set(study._LATER) < again.keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [("task_weight", 0.0), ("mixup", 1.0), ("average_from", 0.0), ("stages", ("W4A4",))],
)
def test_a_later_field_that_is_not_at_its_default_makes_another_run(field, value):
    changed = dataclasses.replace(Config(), **{field: value})
    assert field in study._LATER
    assert study.key(study.plain(changed)) != study.key(study.plain(Config()))


def test_a_row_from_before_a_field_existed_has_its_default():
    old = study.plain(Config())
    for name in ("resolution", "schedules", "method_arguments", "validation_examples"):
        del old[name]
    assert study.key(old) == study.key(study.plain(Config()))
    assert study.key(old) != study.key(study.plain(dataclasses.replace(Config(), resolution=4)))
