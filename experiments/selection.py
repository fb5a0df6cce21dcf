"""What is chosen, and how: by the deployed file's accuracy on validation images, as a program.

Every method in every cell gets its own learning rate out of `LEARNING_RATES`, by the mean over the
two `SEEDS`, which no table has. In a cell of 2 bits the weight decay of all students is chosen
first, with LSQ at its best rate: the usual one or a tenth of it; of the lower one LSQ's rate is
chosen again, as the others' are. What is chosen follows from the rows alone, so the runs of a table
can be named as soon as the rows of its choices are there, and by whoever looks at them.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from experiments import study
from experiments.config import Config

LEARNING_RATES = (0.01, 0.03, 0.1)
# The decoupled equal of the papers' 5e-4 is 5e-3, `Config.weight_decay`; this is a tenth of it.
LOWER_WEIGHT_DECAY = 5e-4
SEEDS = (100, 101)
# Training images at the end of the training split.
VALIDATION_EXAMPLES = 10_000

Row = Mapping[str, Any]


def settle_rate(config: Config, rows: Sequence[Row]) -> tuple[list[Config], Config | None]:
    """The learning rate of a configuration.

    Args:
      config: One of a cell; its rate and its seed are of no account.
      rows: Those that are there.

    Returns:
      The runs on validation images that it takes, and the configuration with the chosen rate, or
      None as long as rows are missing.
    """
    rates = [dataclasses.replace(config, learning_rate=rate) for rate in LEARNING_RATES]
    return list(on_validation(rates)), best(rates, rows)


def settle_decay(config: Config, rows: Sequence[Row]) -> tuple[list[Config], Config | None]:
    """The learning rate, with 2 bits the weight decay at that rate, and the rate at that decay.

    The teacher's decay stays as it is, so that the options share their teachers.

    Returns:
      As `settle_rate`; the runs are those that are known now.
    """
    runs, found = settle_rate(config, rows)
    if found is None or min(config.weight_bits, config.activation_bits) > 2:
        return runs, found
    lower = dataclasses.replace(
        found, weight_decay=LOWER_WEIGHT_DECAY, float_weight_decay=config.weight_decay
    )
    runs += on_validation([lower])
    if best([found, lower], rows) != lower:
        return runs, best([found, lower], rows)
    again, found = settle_rate(lower, rows)
    return runs + again, found


def on_validation(options: Sequence[Config], seeds: Sequence[int] = SEEDS) -> Iterator[Config]:
    """The runs by which one of the options is chosen, seed by seed."""
    for seed in seeds:
        for option in options:
            yield dataclasses.replace(option, seed=seed, validation_examples=VALIDATION_EXAMPLES)


def best(
    options: Sequence[Config], rows: Sequence[Row], seeds: Sequence[int] = SEEDS
) -> Config | None:
    """The option of the highest mean score over the seeds; of equal ones the first.

    Returns:
      None if a row of an option is missing.
    """
    order = ranked(options, rows, seeds)
    return order[0] if order else None


def ranked(
    options: Sequence[Config], rows: Sequence[Row], seeds: Sequence[int] = SEEDS
) -> list[Config] | None:
    """The options from the highest mean score over the seeds to the lowest.

    Returns:
      None if a row of an option is missing.
    """
    methods = {option.methods for option in options}
    # A key costs more than a look at two fields.
    found = {
        study.row_key(row): score(row)
        for row in rows
        if row["config"]["seed"] in seeds and tuple(row["config"]["methods"]) in methods
    }
    means = []
    for option in options:
        keys = [study.key(study.plain(config)) for config in on_validation([option], seeds)]
        if not all(key in found for key in keys):
            return None
        means.append(sum(found[key] for key in keys) / len(keys))
    return [options[i] for i in sorted(range(len(means)), key=lambda i: -means[i])]


def score(row: Row) -> float:
    """Accuracy of the deployed file, of the network where there is none; 0 for a failed run."""
    if "failed" in row:
        return 0.0
    deployed = row["accuracy_tflite"]
    return row["accuracy_student"] if deployed is None else deployed
