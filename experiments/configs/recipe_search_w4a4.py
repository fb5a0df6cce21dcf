"""The search of `recipe_search.py` at W4A4, where a student learns its images by heart.

    python -m experiments.sweep --config=experiments/configs/recipe_search_w4a4.py --workers=2

Candidates are those that have something against that: averaged weights, mixtures of images, flat
minima, consistency, and softer targets. It came when the W2A2 recipe, KD with SAM, was not ahead of
KD at W4A4 on test images.
"""

from experiments.configs import recipe_search

CANDIDATES = (
    {"methods": ("kd",)},
    {"methods": ("kd",), "method_arguments": {"kd": {"temperature": 2.0}}},
    {"methods": ("kd",), "method_arguments": {"kd": {"weight": 3.0}}},
    {"methods": ("kd",), "task_weight": 0.0, "mixup": 1.0},
    {"methods": ("kd",), "mixup": 1.0},
    {"methods": ("kd",), "average_from": 0.75},
    {"methods": ("sfp", "kd")},
    {"methods": ("cr", "kd")},
    {"methods": ("sfp", "cr", "kd"), "noise_probability": 0.5},
    {"methods": ("sam",)},
    {"methods": ("sam", "kd")},
    {"methods": ("sam", "kd"), "mixup": 1.0},
    {"methods": ("sam", "kd"), "average_from": 0.75},
    {"methods": ("none",), "mixup": 1.0},
    {"methods": ("none",), "average_from": 0.75},
)

SEARCH = recipe_search.Search((4, 4), CANDIDATES, "experiments/results/recipe_search_w4a4.jsonl")
STUDY = SEARCH.study(
    "At W4A4 some mixture of distillation, consistency and regularisation is better than KD alone."
)
