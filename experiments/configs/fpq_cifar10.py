"""FPQ on CIFAR-10, as published.

python -m experiments.sweep --config=experiments/configs/fpq_cifar10.py
python -m experiments.report --config=experiments/configs/fpq_cifar10.py
"""

from experiments.configs import papers
from experiments.study import Study

NETWORKS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2")
PRINTED = {
    "W4A4": {
        "PACT": (88.15, 85.27, 80.77, 79.88),
        "LSQ": (86.69, 90.01, 82.39, 84.45),
        "LSQ+": (88.40, 90.30, 84.32, 84.30),
        "KD": (88.86, 90.34, 84.77, 83.79),
        "FPQ": (90.16, 90.62, 84.94, 85.53),
    },
    "W2A4": {
        "PACT": (87.55, 85.24, 69.04, 67.18),
        "LSQ": (88.36, 90.01, 78.15, 78.15),
        "LSQ+": (87.76, 89.62, 81.26, 77.00),
        "KD": (88.83, 90.18, 78.84, 75.56),
        "FPQ": (89.92, 90.39, 81.45, 79.33),
    },
    "W2A2": {
        "PACT": (76.90, 64.94, 11.71, 10.58),
        "LSQ": (87.60, 87.79, 75.29, 70.32),
        "LSQ+": (87.60, 86.10, 74.22, 72.18),
        "KD": (88.06, 89.20, 68.62, 67.15),
        "FPQ": (88.11, 89.40, 76.25, 73.00),
    },
}

STUDY = Study(
    claim="FPQ is better than PACT, LSQ, LSQ+ and KD on CIFAR-10 with four networks at W4A4, W2A4"
    " and W2A2.",
    source="arXiv 2503.11159, its table of CIFAR-10, every cell but the float line (88.72, 89.95,"
    " 85.52, 85.81)",
    expected=papers.expected(NETWORKS, PRINTED),
    results="experiments/results/fpq_cifar10.jsonl",
    regime="CIFAR-10",
    runs=lambda rows: papers.grid("cifar10", NETWORKS, list(PRINTED), list(PRINTED["W4A4"])),
    hardware=papers.HARDWARE,
    time=papers.TIME,
)
