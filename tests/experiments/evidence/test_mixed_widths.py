"""The table of mixed and uniform widths, from rows that are made up."""

from experiments.evidence import mixed_widths


def _row(seed, widths, calibrated, trained, size=100):
    return {
        "dataset": "digits",
        "train_examples": None,
        "model": "resnet8",
        "weight_bits": 3,
        "activation_bits": 8,
        "seed": seed,
        "widths": widths,
        "bytes": size,
        "accuracy_float": 0.99,
        "accuracy_calibrated": calibrated,
        "accuracy_student": trained,
    }


def test_only_seeds_with_both_ways_are_compared():
    rows = [
        _row(0, "uniform", 0.5, 0.90),
        _row(0, "mixed", 0.7, 0.91, size=98),
        _row(1, "uniform", 0.6, 0.90),
        _row(1, "mixed", 0.7, 0.93, size=98),
        _row(2, "uniform", 0.1, 0.10),
    ]
    line = mixed_widths.table(rows).splitlines()[-1]
    # Differences 20 and 10 points: mean 15, t(0.975, 1) = 12.706 times 7.071 / sqrt(2).
    assert line == (
        "| digits | resnet8 | W3A8 | 0.980 | 2 | 99.00 | 55.00 | +15.00 ± 63.53 | 90.00"
        " | +2.00 ± 12.71 |"
    )


def test_one_seed_has_no_interval():
    rows = [_row(0, "uniform", 0.5, 0.9), _row(0, "mixed", 0.7, 0.9)]
    assert "| 1 | 99.00 | 50.00 | +20.00 | 90.00 | +0.00 |" in mixed_widths.table(rows)
