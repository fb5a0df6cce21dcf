"""TFDS builders of the data that comes with the machine rather than by download."""

from experiments.datasets.digits import Digits
from experiments.datasets.fashion_mnist_idx import FashionMnistIdx

__all__ = ["Digits", "FashionMnistIdx"]
