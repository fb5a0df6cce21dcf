"""Tables of rows: who is paired with whom, what is left out, and the numbers themselves."""

import pytest

from experiments import plots, report, results_file, study, tables
from experiments.config import Config


def row(methods, seed, accuracy, *, bits=(2, 2), split="test", **changes):
    config = Config(
        methods=(methods,), seed=seed, weight_bits=bits[0], activation_bits=bits[1], **changes
    )
    deployed = None if methods == "float" else accuracy
    return {
        **{"dataset": "digits", "regime": "tiny", "model": config.model, "methods": methods},
        **{"quantizer": "lsq", "split": split, "weight_bits": bits[0], "activation_bits": bits[1]},
        **{"learning_rate": config.learning_rate, "weight_decay": config.weight_decay},
        **{"seed": seed, "accuracy_tflite": deployed, "accuracy_student": accuracy},
        **{"accuracy_tflite_reestimated": deployed, "train_accuracy": 1.0, "seconds": 40.0},
        **{"codes_differing": 0, "codes_compared": 1000, "config": study.plain(config)},
    }


ROWS = [
    *(row("none", seed, 0.80 + 0.01 * seed) for seed in range(3)),
    *(row("kd", seed, 0.81 + 0.02 * seed) for seed in range(4)),
    *(row("float", seed, 0.9, bits=(8, 8)) for seed in range(2)),
    row("cr", 0, 0.5),
    row("kd", 0, 0.99, split="validation"),
    row("none", 0, 0.7, bits=(4, 4)),
]


def lines_of(text):
    return {line.split("|")[1].strip(): line for line in text.splitlines()}


def test_differences_are_paired_and_in_points():
    (lines, four) = tables.cells(ROWS).values()
    text = lines_of(tables.comparison(lines))
    # 1, 2 and 3 points over the three seeds that both have: 2 +- 2.48.
    assert "| +2.00 ± 2.48 (n=3) |" in text["kd"]
    assert "| -2.00 ± 2.48 (n=3) |" in text["none"]
    assert "| 81.00 ± 1.00 |" in text["none"] and "| 4 | 84.00 ± 2.58 |" in text["kd"]
    assert "-30.00 (n=1)" in text["cr"]
    assert [line.name for line in four] == ["float", "none"]


def test_a_difference_beyond_its_interval_is_bold():
    better = [row("kd", seed, 0.9 + 0.001 * seed) for seed in range(3)]
    ((_, lines),) = tables.cells(ROWS[:3] + better).items()
    assert "**+9.10 ± 2.24 (n=3)**" in tables.comparison(lines)


def test_rows_from_before_and_after_a_field_came_are_of_one_line():
    old, new = row("none", 0, 0.8), row("none", 1, 0.9)
    for name in study._LATER:
        del old["config"][name]
    ((line,),) = tables.cells([old, new, row("kd", 0, 0.7, split="validation")]).values()
    assert line.scores() == pytest.approx({0: 80.0, 1: 90.0})
    mixed = row("none", 2, 0.7, mixup=1.0)
    (lines,) = tables.cells([old, new, mixed]).values()
    assert [line.name for line in lines] == ["none", "none (mixup=1.0)"]


def test_the_float_network_is_in_every_cell_of_its_model_and_of_no_other():
    other = dict(row("float", 0, 0.9, bits=(8, 8)), model="resnet20")
    lower = row("float", 0, 0.5, bits=(8, 8), weight_decay=1e-5)
    cells = tables.cells([*ROWS, other, lower])
    assert [cell[2:] for cell in cells] == [("resnet8", "W2A2"), ("resnet8", "W4A4")]
    assert all([line.name for line in lines].count("float") == 1 for lines in cells.values())


def test_arguments_that_are_not_the_defaults_make_a_line_of_their_own():
    rows = [
        row("sfp", 0, 0.8),
        row("sfp", 0, 0.9, noise_probability=0.5),
        row("sfp", 0, 0.7, schedules={"sfp.probability": [[0, 1], [1, 0]]}),
        row("sfp", 0, 0.6, method_arguments={"sfp": {"seed": 3}}),
    ]
    ((_, lines),) = tables.cells(rows).items()
    assert {line.name for line in lines} == {
        "sfp",
        "sfp (noise_probability=0.5)",
        "sfp (sfp.probability=[[0, 1], [1, 0]])",
        "sfp (sfp.seed=3)",
    }


def test_a_choice_that_was_made_again_has_the_name_and_the_earlier_one_its_rate():
    earlier = [row("none", seed, 0.7, learning_rate=0.1) for seed in range(2)]
    later = [row("none", seed, 0.8, learning_rate=0.03) for seed in range(2)]
    others = [row("kd", seed, 0.9 + 0.001 * seed) for seed in range(2)]
    (lines,) = tables.cells([*earlier, *others, *later]).values()
    assert [line.name for line in lines] == ["none", "kd", "none, rate 0.1"]
    assert lines[0].scores() == pytest.approx({0: 80.0, 1: 80.0})
    assert "| +10.05 ± 0.64 (n=2) |" in lines_of(tables.comparison(lines))["kd"].replace("**", "")


def test_a_failed_run_is_named_and_has_no_accuracy():
    failed = dict(row("kd", 5, 0.0), failed="DivergenceError: step 3\nmore")
    del failed["accuracy_tflite"]
    (lines, _) = tables.cells([*ROWS, failed]).values()
    assert "| 4 | 84.00 ± 2.58 |" in lines_of(tables.comparison(lines))["kd"]
    (text,) = tables.failures([failed])
    assert text == "resnet8/W2A2 kd, rate 0.01, seed 5, test: DivergenceError: step 3"


def test_means_by_quantizer_and_widths():
    text = lines_of(tables.means([*ROWS[:3], *ROWS[-1:]]))
    assert text["quantizer, methods"].split("|")[2:4] == [" W4A4 ", " W2A2 "]
    assert "| 70.00 (n=1) | 81.00 ± 1.00 (n=3) | 0 of 4,000 |" in text["lsq, none"]


def test_a_section_says_what_is_claimed_missing_and_chosen(tmp_path):
    grid = [Config(methods=("none",), weight_bits=2, activation_bits=2, seed=s) for s in range(5)]
    found = study.Study(
        claim="It wins.", source="here", results="r", runs=lambda rows: grid, expected={"LSQ": 88.4}
    )
    text = report.section(found, ROWS, "mine.py", None)
    assert "**It wins.** (here)" in text and "--config=mine.py" in text
    assert "3 of 5 runs" in text and "| LSQ | 88.4 |" in text
    assert "| resnet8 | W2A2 | kd | 0.01 | 0.005 | 20 + 20 | 1 | 99.00 |" in text
    assert "99.00" not in text.split("chosen on validation")[0]


def test_a_plot_is_drawn_of_two_pairs_or_more(tmp_path):
    assert plots.differences(ROWS, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert not plots.differences([row("none", 0, 0.8), row("kd", 0, 0.9)], tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("interpolating", "under_fitting", "ablation", "lengths", "lengths_under_fitting"),
        *("recipe_search", "recipe_search_w4a4", "recipe_search_under_fitting"),
    ],
)
def test_our_studies_load_and_choose_on_validation_before_anything_else(
    name, monkeypatch, tmp_path
):
    # Of this repository's rows some have been chosen from; here is none.
    empty = results_file.ResultsFile(tmp_path / "none.jsonl", str)
    monkeypatch.setattr(study, "results_file", lambda path: empty)
    found = study.load(f"experiments/configs/{name}.py")
    runs = found.missing([])
    assert all(run.validation_examples for run in runs)
    assert len(runs) == len(found.known([]))
