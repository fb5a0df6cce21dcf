"""What is chosen follows from validation rows, by a rule, and not before they are all there."""

import dataclasses

import pytest

from experiments import selection, study
from experiments.config import Config

CELL = Config(methods=("kd",), weight_bits=2, activation_bits=2)


def row(config, accuracy, **more):
    return {
        "config": study.plain(config),
        "accuracy_tflite": accuracy,
        "accuracy_student": 0.5,
        **more,
    }


def rows_of(runs, score):
    return [row(config, score(config)) for config in runs]


def test_first_come_all_rates_on_validation_images_alone():
    runs, chosen = selection.settle_decay(CELL, [])
    assert chosen is None and len(runs) == 6
    assert {(run.seed, run.learning_rate) for run in runs} == {
        (seed, rate) for seed in (100, 101) for rate in (0.01, 0.03, 0.1)
    }
    assert all(run.validation_examples == 10_000 for run in runs)
    assert not set(selection.SEEDS) & set(range(8))


def test_then_the_lower_decay_at_the_best_rate_with_the_same_teacher():
    runs, _ = selection.settle_decay(CELL, [])
    rows = rows_of(runs, lambda c: {0.01: 0.7, 0.03: 0.9, 0.1: 0.8}[c.learning_rate])
    more, chosen = selection.settle_decay(CELL, rows)
    new = more[6:]
    assert chosen is None and len(new) == 2
    assert all((c.learning_rate, c.weight_decay) == (0.03, 5e-4) for c in new)
    assert all(c.of_teacher().weight_decay == CELL.of_teacher().weight_decay for c in new)
    for accuracy in (0.85, 0.9):
        runs, chosen = selection.settle_decay(CELL, rows + rows_of(new, lambda c, a=accuracy: a))
        assert len(runs) == 8 and (chosen.learning_rate, chosen.weight_decay) == (0.03, 5e-3)
    assert chosen.validation_examples == 0 and chosen.seed == CELL.seed


@pytest.mark.parametrize("best", selection.LEARNING_RATES)
def test_the_rate_is_chosen_again_at_the_lower_decay(best):
    runs, _ = selection.settle_decay(CELL, [])
    rows = rows_of(runs, lambda c: {0.01: 0.7, 0.03: 0.9, 0.1: 0.8}[c.learning_rate])
    runs, _ = selection.settle_decay(CELL, rows)
    rows += rows_of(runs[6:], lambda c: 0.95)
    runs, chosen = selection.settle_decay(CELL, rows)
    again = runs[8:]
    assert chosen is None and len(again) == 6
    assert {c.learning_rate for c in again} == set(selection.LEARNING_RATES)
    assert all(c.weight_decay == 5e-4 for c in again)
    new = [c for c in again if c.learning_rate != 0.03]
    rows += rows_of(new, lambda c: 0.96 if c.learning_rate == best else 0.94)
    _, chosen = selection.settle_decay(CELL, rows)
    assert (chosen.learning_rate, chosen.weight_decay) == (best, 5e-4)


def test_at_four_bits_the_rate_alone_is_chosen():
    cell = dataclasses.replace(CELL, weight_bits=4, activation_bits=4)
    runs, _ = selection.settle_decay(cell, [])
    rows = rows_of(runs, lambda c: c.learning_rate)
    runs, chosen = selection.settle_decay(cell, rows)
    assert len(runs) == 6 and chosen.learning_rate == 0.1


def test_it_is_the_mean_over_seeds_that_counts_and_a_missing_row_counts_as_not_there():
    runs, _ = selection.settle_decay(CELL, [])
    scores = {(100, 0.01): 0.9, (101, 0.01): 0.1}
    rows = rows_of(runs, lambda c: scores.get((c.seed, c.learning_rate), 0.6))
    rates = [dataclasses.replace(CELL, learning_rate=r) for r in selection.LEARNING_RATES]
    assert selection.best(rates, rows).learning_rate == 0.03
    assert selection.best(rates, rows[:-1]) is None
    test_rows = [row(dataclasses.replace(c, validation_examples=0), 1.0) for c in runs]
    assert selection.best(rates, test_rows) is None


def test_scores():
    assert selection.score(row(CELL, 0.8)) == 0.8
    assert selection.score(row(CELL, None)) == 0.5
    assert selection.score({"failed": "DivergenceError: step 3"}) == 0.0


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_of_equal_options_the_first_is_taken(accuracy):
    runs, _ = selection.settle_decay(CELL, [])
    rates = [dataclasses.replace(CELL, learning_rate=r) for r in selection.LEARNING_RATES]
    assert selection.best(rates, rows_of(runs, lambda c: accuracy)).learning_rate == 0.01
