"""LSQ on ImageNet, as published: the anchor that the methods of this project are beside.

python -m experiments.sweep --config=experiments/configs/lsq_imagenet.py
python -m experiments.report --config=experiments/configs/lsq_imagenet.py

FPQ (arXiv 2503.11159) prints tables of CIFAR-10 and CIFAR-100 alone: its line here has no figure.
"""

from experiments.configs import papers
from experiments.study import Study

NETWORKS = ("resnet18",)
PRINTED = {
    "W4A4": {"LSQ": (71.1,), "KD": (71.2,)},
    "W3A3": {"LSQ": (70.2,), "KD": (70.6,)},
    "W2A2": {"LSQ": (67.6,), "KD": (67.9,)},
}

STUDY = Study(
    claim="LSQ loses 3 points on ImageNet at 2 bits, none at 4, and KD adds a few tenths; FPQ adds"
    " to that.",
    source="arXiv 1902.08153, tables 1 and 4, the cells of ResNet-18 (float: 70.5); FPQ's line has"
    " no printed figure",
    expected=papers.expected(NETWORKS, PRINTED),
    results="experiments/results/lsq_imagenet.jsonl",
    regime="ImageNet",
    runs=lambda rows: papers.imagenet(NETWORKS, list(PRINTED), ["LSQ", "KD", "FPQ"]),
    hardware=papers.IMAGENET_HARDWARE,
    time=papers.TIME,
)
