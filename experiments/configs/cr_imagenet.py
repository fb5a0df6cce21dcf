"""CR on ImageNet.

python -m experiments.sweep --config=experiments/configs/cr_imagenet.py
python -m experiments.report --config=experiments/configs/cr_imagenet.py
"""

from experiments.configs import papers
from experiments.study import Study

NETWORKS = ("resnet18", "mobilenet_v2", "regnet_x_200mf")

STUDY = Study(
    claim="CR gains over its baseline on ImageNet at 2 and 4 bits.",
    source="arXiv 2402.13497 v2, whose summaries name ImageNet. Its table could not be read: no"
    " figure is expected, only the sign of CR minus LSQ",
    results="experiments/results/cr_imagenet.jsonl",
    regime="ImageNet",
    runs=lambda rows: papers.imagenet(NETWORKS, ["W4A4", "W2A4", "W2A2"], ["LSQ", "CR"]),
    hardware=papers.IMAGENET_HARDWARE,
    time=papers.TIME,
)
