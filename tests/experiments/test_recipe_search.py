"""The search for a recipe: what is searched, and that the library's recipe is what was found."""

from experiments import study
from experiments.config import Config
from experiments.configs import recipe_search
from tf_fpq import recipe


def test_every_candidate_is_a_configuration_and_no_two_are_the_same():
    keys = {study.key(study.plain(Config(**changes))) for changes in recipe_search.CANDIDATES}
    assert len(keys) == len(recipe_search.CANDIDATES)


def test_everything_that_the_issue_names_is_searched():
    text = repr(recipe_search.CANDIDATES)
    for what in (
        *("temperature", "task_weight", "kd.weight", "csd_weight", "csd.weight", "squat"),
        *("noise_probability", "noise_position", "sfp.probability", "'cr'", "stages"),
        *("average_from", "mixup"),
    ):
        assert what in text, what


def test_the_librarys_recipe_is_what_the_search_found_once_it_has():
    found = recipe_search.winner()
    settings = {name: value for name, value in recipe.SETTINGS.items() if value}
    if found is None:
        # Until then it is the plain candidate that evidence is strongest for.
        assert settings["methods"] == recipe_search.CANDIDATES[0]["methods"]
        (kd,) = Config(methods=("kd",)).make_methods()
        assert settings["method_arguments"] == {"kd": {"temperature": kd.temperature}}
    else:
        assert settings.items() >= found.items()
