"""What the studies on Fashion-MNIST share: data, network and length. Chosen once; see
experiments/README.md for why.
"""

import dataclasses

from experiments.config import Config

# Few images, which a float network learns by heart.
INTERPOLATING = Config(
    dataset="fashion_mnist",
    train_examples=1000,
    resolution=14,
    shift=1,
    width=8,
    batch_size=64,
    float_epochs=160,
    epochs=80,
)

# All images but the held out ones, for a network too narrow to learn them by heart.
UNDER_FITTING = dataclasses.replace(
    INTERPOLATING, train_examples=50_000, width=4, float_epochs=4, epochs=2
)

SEEDS = range(8)

# Rows of `interpolating.py` and `under_fitting.py`: other studies read what was chosen.
INTERPOLATING_RESULTS = "experiments/results/interpolating.jsonl"
UNDER_FITTING_RESULTS = "experiments/results/under_fitting.jsonl"
