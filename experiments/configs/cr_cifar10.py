"""CR's headline on CIFAR-10.

python -m experiments.sweep --config=experiments/configs/cr_cifar10.py
python -m experiments.report --config=experiments/configs/cr_cifar10.py
"""

from experiments.configs import papers
from experiments.study import Study

NETWORKS = ("resnet18", "mobilenet_v1", "mobilenet_v2", "regnet_x_200mf")

STUDY = Study(
    claim="CR gains several points over its baseline on CIFAR-10.",
    source="arXiv 2402.13497, abstract: +3.79 points for ResNet-18 and +3.84 for MobileNet. Which"
    " widths and which MobileNet was not recovered, so all are here",
    expected={"ResNet-18, CR minus baseline": 3.79, "MobileNet, CR minus baseline": 3.84},
    results="experiments/results/cr_cifar10.jsonl",
    regime="CIFAR-10",
    runs=lambda rows: papers.grid("cifar10", NETWORKS, ["W4A4", "W2A4", "W2A2"], ["LSQ", "CR"]),
    hardware=papers.HARDWARE,
    time=papers.TIME,
)
