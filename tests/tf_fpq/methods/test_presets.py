"""Presets, and every combination in one step."""

import itertools

import numpy as np
import pytest

from tests.tf_fpq.small_student import bytes_of, fit, pair
from tf_fpq.methods import presets
from tf_fpq.training.qat_model import QatModel


def test_fpq_presets():
    noise, follow = presets.fpq()
    assert (noise.probability, noise.position, follow.weight) == (0.1, "pre", 0.1)
    assert presets.fpq("paper", probability=0.5)[1].weight == 1.0
    assert presets.fpq("paper", probability=0.5)[0].probability == 0.5
    with pytest.raises(
        ValueError, match="preset must be one of tuned, paper. Received: preset='best'"
    ):
        presets.fpq("best")


def test_cr_preset_takes_the_arguments_of_its_method():
    (method,) = presets.cr(weight=0.5)
    assert (method.weight, method.ramp_up, method.decay) == (0.5, 0.15, 0.999)


def test_the_recipe_of_2_bits_is_distilled_logits_at_the_worst_nearby_weights():
    sharpness, follow = presets.recipe(2, temperature=2.0, from_logits=False)
    assert (sharpness.name, sharpness.rho) == ("sam", 0.05)
    assert (follow.name, follow.temperature, follow.from_logits) == ("kd", 2.0, False)


@pytest.mark.parametrize("weight_bits", [3, 4, 8])
def test_the_recipe_of_more_bits_is_distilled_logits_noise_and_consistency(weight_bits):
    noise, consistency, follow = presets.recipe(weight_bits, temperature=2.0, from_logits=False)
    assert (noise.name, noise.probability) == ("sfp", 0.5)
    assert (consistency.name, consistency.from_logits) == ("cr", False)
    assert (follow.name, follow.temperature, follow.from_logits) == ("kd", 2.0, False)


@pytest.mark.parametrize("weight_bits", [1, 9, 2.5, "W4A4"])
def test_a_recipe_is_of_a_width(weight_bits):
    with pytest.raises(ValueError, match="from 2 to 8. Received: weight_bits="):
        presets.recipe(weight_bits)


def test_names():
    assert presets.methods_from_names("none") == presets.methods_from_names("") == []
    assert [method.name for method in presets.methods_from_names("fpq, cr,kd")] == [
        "sfp",
        "csd",
        "cr",
        "kd",
    ]
    assert [method.name for method in presets.methods_from_names(("csd", "fpq"))] == ["csd", "sfp"]
    assert presets.methods_from_names("sfp", sfp={"seed": 3}, cr={"weight": 2.0})[0].seed == 3
    with pytest.raises(ValueError, match="Received: methods='fpq,crr' with crr"):
        presets.methods_from_names("fpq,crr")
    with pytest.raises(ValueError, match="with spf"):
        presets.methods_from_names("fpq", spf={"seed": 3})


@pytest.mark.parametrize(
    "names",
    [
        "sam,kd",
        "sfp,cr,kd",
        pytest.param("fpq,cr", marks=pytest.mark.slow),
        "fpq,kd,cr,sam,dampening,freezing",
    ],
)
def test_methods_compose_in_one_step(names):
    teacher, student = pair()
    before, ours = bytes_of(teacher), bytes_of(student)
    model = QatModel(student, teacher, presets.methods_from_names(names, sfp={"seed": 0}))
    history = fit(model)
    logged = {f"{method.name}_loss" for method in model.methods if method.has_loss}
    assert logged | {"loss", "task_loss", "accuracy"} == set(history)
    assert np.isfinite(list(itertools.chain(*history.values()))).all()
    assert bytes_of(teacher) == before and bytes_of(student) != ours
    parts = sum(history[name][0] for name in [*logged, "task_loss"])
    assert history["loss"][0] == pytest.approx(parts, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("names", list(itertools.combinations(presets.METHODS, 2)))
def test_every_pair_of_methods_trains(names):
    teacher, student = pair()
    history = fit(QatModel(student, teacher, presets.methods_from_names(",".join(names))), epochs=1)
    assert np.isfinite(history["loss"]).all()
