r"""The search of `recipe_search.py` where a narrow network cannot learn its 50,000 images by heart.

    python -m experiments.sweep --workers=2 \
        --config=experiments/configs/recipe_search_under_fitting.py

There KD, and KD with SAM, are behind plain LSQ on the validation images of `under_fitting.py`: what
keeps a student from learning by heart keeps this one from learning at all. So candidates are those
that steady a training, and milder distillation; LSQ itself is the first of them. The last three
join what was best when 13 had their rows.
"""

from experiments.configs import recipe_search, settings

MILD = {"kd": {"weight": 0.3}}
SHARP = {"kd": {"temperature": 1.0}}

CANDIDATES = (
    {"methods": ("none",)},
    {"methods": ("none",), "stages": ("W4A4",)},
    {"methods": ("kd",), "method_arguments": MILD},
    {"methods": ("kd",), "method_arguments": MILD, "stages": ("W4A4",)},
    {"methods": ("kd",), "method_arguments": {"kd": {"weight": 0.1}}},
    {"methods": ("kd",), "method_arguments": SHARP},
    {"methods": ("kd",), "schedules": {"kd.weight": recipe_search.FADED}},
    {"methods": ("csd",), "schedules": {"csd.weight": recipe_search.STRONG_EARLY}},
    {"methods": ("csd",), "csd_weight": 0.01},
    {"methods": ("sfp",)},
    {"methods": ("sam",)},
    {"methods": ("dampening",)},
    {"methods": ("freezing",)},
    {"methods": ("kd",), "method_arguments": SHARP, "task_weight": 0.0},
    {"methods": ("sfp", "kd"), "method_arguments": SHARP},
    {"methods": ("kd", "csd"), "method_arguments": SHARP, "csd_weight": 0.01},
)

SEARCH = recipe_search.Search(
    (2, 2),
    CANDIDATES,
    "experiments/results/recipe_search_under_fitting.jsonl",
    settings.UNDER_FITTING,
    settings.UNDER_FITTING_RESULTS,
)
STUDY = SEARCH.study(
    "A narrow student of 50,000 images at W2A2 is better with 4 bits first, mild"
    " distillation or fewer oscillations than LSQ alone."
)
