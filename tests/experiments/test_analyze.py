"""Which networks are analyzed, what a row has, and pictures."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import analyze, grid_runs, launchers, pictures, pipeline, study, tables
from experiments.config import Config
from tests.tf_fpq import small_student
from tf_fpq import sharpness

TINY = Config(
    train_examples=64, float_epochs=1, epochs=2, width=4, batch_size=32, methods=("none",)
)


def row(config, **more):
    return {**grid_runs.labels(config, "tiny"), "config": study.plain(config), **more}


def touch(path):
    path.parent.mkdir(parents=True)
    path.touch()


def test_rows_are_those_of_the_network_the_widths_and_the_methods():
    rows = [row(dataclasses.replace(TINY, methods=(name,))) for name in ("none", "kd", "cr")]
    other = [row(dataclasses.replace(TINY, weight_bits=2)), {**rows[0], "model": "other"}]
    assert analyze.chosen([*other, *rows], TINY.model, "W4A4", []) == rows
    assert analyze.chosen([*other, *rows], TINY.model, "W4A4", ["cr", "none"]) == [rows[0], rows[2]]


def test_subjects_are_teachers_once_and_the_students_that_were_kept(tmp_path):
    configs = [dataclasses.replace(TINY, methods=(name,)) for name in ("none", "kd", "cr")]
    other = dataclasses.replace(TINY, seed=1)
    for config in (*configs[:2], other):
        touch(tmp_path / grid_runs.folder_name(config) / "student.keras")
    touch(grid_runs.teacher_path(TINY, tmp_path))
    failed = row(dataclasses.replace(TINY, learning_rate=1.0), failed="it diverged")
    chosen = row(dataclasses.replace(TINY, validation_examples=8))
    rows = [failed, chosen, *map(row, [*configs, other])]
    found = list(analyze.subjects(rows, tmp_path, "test", [0]))
    assert [subject.name for subject in found] == ["teacher", "none", "kd"]
    assert [subject.title for subject in found] == ["teacher", "LSQ", "kd"]
    assert [s.name for s in analyze.subjects(rows, tmp_path, "test", [1, 0])][0] == "none"
    # One row for the teacher, whichever student named it.
    alone = {study.key(study.plain(analyze._of_teacher_alone(c))) for c in configs}
    assert len(alone) == 1


def test_a_table_has_ratios_of_traces_with_their_intervals():
    rows = [
        row(dataclasses.replace(TINY, seed=seed), hessian_trace=100.0, top_eigenvalue=9.0)
        for seed in range(3)
    ]
    rows += [
        dict(r, methods="fpq", hessian_trace=trace)
        for r, trace in zip(rows, (40.0, 50.0, 62.5), strict=True)
    ]
    text = tables.sharpness(rows)
    half = 4.303 * math.log(1.25) / math.sqrt(3)
    expected = f"0.50 [{math.exp(-half) / 2:.2f}, {math.exp(half) / 2:.2f}] (n=3)"
    assert f"| fpq | 3 | 50.83 ± 11.27 | 9.00 ± 0.00 | **{expected}** |" in text
    assert "| none | 3 | 100.00 ± 0.00 | 9.00 ± 0.00 |  |" in text


def test_pictures_are_drawn(tmp_path):
    places = np.linspace(-1, 1, 5)
    surface = sharpness.Landscape(places, places[:, np.newaxis] ** 2 + places**2)
    pictures.landscapes({"a": surface, "b": surface}, tmp_path / "landscape.png")
    density = sharpness.Density(places, np.exp(-(places**2)), places, places)
    pictures.densities({"a": density}, tmp_path / "density.png")
    seeds = [pictures.Curves([1, 2], [5.0, 3.0], [0.1, 0.2])] * 2
    pictures.epochs({"a": seeds, "b": seeds[:1]}, tmp_path / "epochs.png")
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3


def test_the_middle_convolution():
    teacher, student = small_student.pair()
    assert {pictures.middle_convolution(m) for m in (teacher, student)} == {"depthwise"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_sweep_kept_is_measured_once_drawn_and_followed(tmp_path, data_dir):
    grid = [
        dataclasses.replace(TINY, methods=(name,), data_dir=data_dir, weight_bits=3)
        for name in ("none", "sfp")
    ]
    known = study.Study(
        claim="", source="", results=str(tmp_path / "rows.jsonl"), runs=lambda rows: grid
    )
    launchers.run_missing(known, tmp_path / "runs")
    rows = known.open_results().rows()
    found = list(analyze.subjects(rows, tmp_path / "runs", "test", [0]))
    # The rows do not say where the data are.
    found = [s._replace(config=dataclasses.replace(s.config, data_dir=data_dir)) for s in found]
    results = analyze.results_file(str(tmp_path / "sharpness.jsonl"))
    first = analyze.add_missing(found, results, 32, 2)
    assert analyze.add_missing(found, results, 32, 2) == first
    assert [r["methods"] for r in first] == ["teacher", "none", "sfp"]
    hessian = analyze.hessian_of(found[1], pipeline.load(grid[0]), 32)
    assert first[1]["loss"] == pytest.approx(hessian.loss())
    analyze.draw(found, 32, tmp_path / "pictures")
    over_epochs = analyze.results_file(str(tmp_path / "epochs.jsonl"))
    followed = analyze.add_missing(found[1:], over_epochs, 32, 2, analyze.follow)
    assert [(r["methods"], r["measured"]) for r in followed] == [("none", [1, 2]), ("sfp", [1, 2])]
    analyze.draw_epochs(followed, tmp_path / "pictures/epochs.png")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"density.png", "landscape.png", "noise.png", "features.png", "epochs.png"}
