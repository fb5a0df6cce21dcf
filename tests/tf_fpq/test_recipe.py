"""The recommended mixture: methods and callbacks out of settings."""

import numpy as np
import pytest

from tests.tf_fpq.small_student import fit, images, pair
from tf_fpq import callbacks
from tf_fpq.methods.distillation import KnowledgeDistillation
from tf_fpq.recipe import SETTINGS, recipe
from tf_fpq.training.qat_model import QatModel


def test_the_recipe_is_distillation_of_the_logits_and_trains():
    methods, more = recipe()
    (method,) = methods
    assert isinstance(method, KnowledgeDistillation) and method.temperature == 4.0 and not more
    teacher, student = pair()
    assert np.isfinite(fit(QatModel(student, teacher, methods), callbacks=more)["kd_loss"]).all()


def test_two_calls_share_no_method():
    assert recipe().methods[0] is not recipe().methods[0]


def test_schedules_and_averaging_become_callbacks():
    settings = {
        "methods": ("sfp", "kd"),
        "method_arguments": {"sfp": {"probability": 0.5}},
        "schedules": {"sfp.probability": [[0, 0.5], [1, 0]]},
        "average_from": 0.5,
    }
    methods, more = recipe([images()], settings)
    assert [type(callback) for callback in more] == [
        callbacks.Schedule,
        callbacks.WeightAveraging,
    ]
    teacher, student = pair()
    fit(QatModel(student, teacher, methods), epochs=4, callbacks=more)
    # The last step begins at 7/8 of the training.
    assert float(methods[0].coefficient("probability")) == pytest.approx(0.5 / 8)
    assert more[1].count == 2


def test_what_is_no_method_and_no_callback_is_refused():
    with pytest.raises(ValueError, match="out of methods.*Received: mixup"):
        recipe(settings={**SETTINGS, "mixup": 1.0})
    with pytest.raises(ValueError, match="batches=None"):
        recipe(settings={**SETTINGS, "average_from": 0.75})
