"""What the studies of published tables share: the papers' recipe, and rows and columns by name."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from experiments.config import Config

# Section 4 of arXiv 2503.11159: SGD with momentum 0.9, 0.01, cosine, 200 epochs, batches of 256,
# weight decay 5e-4 (coupled; 5e-3 decoupled). Float training is not printed: 0.1, chosen here.
RECIPE = Config(
    batch_size=256,
    epochs=200,
    float_epochs=200,
    learning_rate=0.01,
    float_learning_rate=0.1,
    csd_weight=1.0,
)

# Sections 2 and 3 of arXiv 1902.08153: 90 epochs, cosine, 0.1 for float networks and 0.01 for
# students, weight decay 1e-4 (coupled; 1e-3 decoupled) that is halved at 3 bits and quartered at 2.
# The batch is not printed; 256 is usual with these rates.
IMAGENET_RECIPE = dataclasses.replace(
    RECIPE,
    dataset="imagenet2012",
    epochs=90,
    float_epochs=90,
    float_weight_decay=1e-3,
)
IMAGENET_WEIGHT_DECAY = {4: 1e-3, 3: 5e-4, 2: 2.5e-4}

# The widths that the papers' first stages have.
WIDTHS = {
    "resnet18": 64,
    "resnet50": 64,
    "mobilenet_v1": 32,
    "mobilenet_v2": 32,
    "regnet_x_200mf": 32,
}

BITS = {"W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4), "W2A2": (2, 2)}

# Lines of the tables.
LINES: Mapping[str, Mapping[str, Any]] = {
    "PACT": {"quantizer": "pact", "methods": ("none",)},
    "LSQ": {"quantizer": "lsq", "methods": ("none",)},
    "LSQ+": {"quantizer": "lsq_plus", "methods": ("none",)},
    "KD": {"quantizer": "lsq", "methods": ("kd",)},
    "FPQ": {"quantizer": "lsq", "methods": ("fpq",)},
    "CR": {"quantizer": "lsq", "methods": ("cr",)},
}

# Five seeds where the papers print one figure.
SEEDS = range(5)

HARDWARE = (
    "one GPU a worker. Not reproduced: no GPU and no CIFAR here. A slow test runs short versions on"
    " generated images in TFDS's format"
)
IMAGENET_HARDWARE = (
    "one GPU a worker and 150 GB of disk for the images, which are downloaded by hand. Not"
    " reproduced: no GPU and no ImageNet here. A slow test runs short versions on generated images"
    " in TFDS's format"
)
TIME = "unknown, nobody has run it"


def grid(
    dataset: str, networks: Sequence[str], schemes: Sequence[str], lines: Sequence[str]
) -> Iterator[Config]:
    """All cells, seed by seed."""
    recipe = dataclasses.replace(RECIPE, dataset=dataset)
    for seed, network, scheme, line in itertools.product(SEEDS, networks, schemes, lines):
        yield _run(recipe, seed, network, scheme, line)


def imagenet(
    networks: Sequence[str], schemes: Sequence[str], lines: Sequence[str]
) -> Iterator[Config]:
    """All cells on ImageNet, once: a run takes days."""
    for network, scheme, line in itertools.product(networks, schemes, lines):
        decay = IMAGENET_WEIGHT_DECAY[BITS[scheme][0]]
        recipe = dataclasses.replace(IMAGENET_RECIPE, weight_decay=decay)
        yield _run(recipe, 0, network, scheme, line)


def _run(recipe: Config, seed: int, network: str, scheme: str, line: str) -> Config:
    weight_bits, activation_bits = BITS[scheme]
    return dataclasses.replace(
        recipe,
        model=network,
        width=WIDTHS[network],
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        seed=seed,
        **LINES[line],
    )


def expected(
    networks: Sequence[str], printed: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, float]:
    """Figures of a table by cell, as `resnet18 W4A4 LSQ`."""
    return {
        f"{network} {scheme} {line}": figure
        for scheme, lines in printed.items()
        for line, figures in lines.items()
        for network, figure in zip(networks, figures, strict=True)
    }
