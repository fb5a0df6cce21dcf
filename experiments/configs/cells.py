"""What the tables on Fashion-MNIST are made of: one network, one pair of widths, all methods."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from experiments import selection
from experiments.config import Config
from experiments.configs import (
    recipe_search,
    recipe_search_under_fitting,
    recipe_search_w4a4,
    settings,
)
from experiments.study import Row

# After LSQ, which is in every cell; and "recipe": see `_recipe`.
METHOD_SETS: Mapping[str, Mapping[str, Any]] = {
    "kd": {"methods": ("kd",)},
    "fpq": {"methods": ("fpq",)},
    "cr": {"methods": ("cr",)},
    "sfp": {"methods": ("sfp",)},
    "csd": {"methods": ("csd",)},
    # Not quantized, so one network for all schemes.
    "float": {"methods": ("float",), "weight_bits": 8, "activation_bits": 8},
    "sam": {"methods": ("sam",)},
    "fpq+cr": {"methods": ("fpq", "cr")},
}


def cell(
    base: Config, bits: tuple[int, int], sets: Sequence[str], rows: Sequence[Row]
) -> Iterator[Config]:
    """Runs of one network at one pair of widths: first those that choose, then seed by seed.

    Seeds are the outer loop, so that pairs are complete at any time. A method joins as soon as its
    choice is made.

    Args:
      base: Data, network and length.
      bits: Widths of weights and activations.
      sets: Names out of `METHOD_SETS`, and "recipe". LSQ is always there.
      rows: Those that are there.
    """
    base = dataclasses.replace(
        base, weight_bits=bits[0], activation_bits=bits[1], methods=("none",)
    )
    chosen = []
    for runs, found in _choices(base, sets, rows):
        yield from runs
        chosen += [found] if found else []
    for seed in settings.SEEDS:
        for config in chosen:
            yield dataclasses.replace(config, seed=seed)


def settled(base: Config, sets: Sequence[str], rows: Sequence[Row]) -> Iterator[Config]:
    """LSQ and the methods of a cell whose choices are made, with what was chosen."""
    for _, found in _choices(base, sets, rows):
        if found:
            yield found


def _choices(
    base: Config, sets: Sequence[str], rows: Sequence[Row]
) -> Iterator[tuple[list[Config], Config | None]]:
    """The runs of each choice and what was chosen: LSQ first, and nothing else before it is."""
    runs, lsq = selection.settle_decay(base, rows)
    yield runs, lsq
    if lsq is None:
        return
    for name in sets:
        changes = _recipe(base) if name == "recipe" else METHOD_SETS[name]
        if changes is not None:
            yield selection.settle_rate(dataclasses.replace(lsq, **changes), rows)


def _recipe(base: Config) -> Mapping[str, Any] | None:
    """What the search for such a student found; None before it has.

    That is `tf_fpq.recipe(base.weight_bits)` where images are few.
    """
    if base.train_examples == settings.UNDER_FITTING.train_examples:
        return recipe_search_under_fitting.SEARCH.winner()
    search = recipe_search.SEARCH if base.weight_bits == 2 else recipe_search_w4a4.SEARCH
    return search.winner()
