"""FPQ on CIFAR-100, as published; there it does not win everywhere.

python -m experiments.sweep --config=experiments/configs/fpq_cifar100.py
python -m experiments.report --config=experiments/configs/fpq_cifar100.py
"""

from experiments.configs import papers
from experiments.study import Study

NETWORKS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2")
PRINTED = {
    "W4A4": {
        "LSQ": (75.30, 78.20, 68.63, 69.01),
        "KD": (74.70, 78.80, 70.96, 71.66),
        "FPQ": (75.84, 78.8, 67.55, 68.24),
    },
    "W2A4": {
        "LSQ": (74.93, 77.82, 65.13, 66.15),
        "KD": (74.35, 77.34, 66.90, 63.77),
        "FPQ": (75.77, 78.11, 64.68, 65.35),
    },
    "W2A2": {
        "LSQ": (71.80, 62.79, 55.53, 31.08),
        "KD": (73.13, 63.16, 55.37, 28.56),
        "FPQ": (71.73, 65.23, 58.46, 33.16),
    },
}

STUDY = Study(
    claim="FPQ is better than LSQ on CIFAR-100 with ResNets, and with MobileNets at W2A2.",
    source="arXiv 2503.11159, its table of CIFAR-100, the lines LSQ, KD and FPQ (float: 75.40,"
    " 78.94, 70.22, 71.30)",
    expected=papers.expected(NETWORKS, PRINTED),
    results="experiments/results/fpq_cifar100.jsonl",
    regime="CIFAR-100",
    runs=lambda rows: papers.grid("cifar100", NETWORKS, list(PRINTED), list(PRINTED["W4A4"])),
    hardware=papers.HARDWARE,
    time=papers.TIME,
)
