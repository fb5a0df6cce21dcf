"""Landscape and noise, against formulas of a linear model."""

import numpy as np
import pytest

from tests.tf_fpq import small_student
from tests.tf_fpq.sharpness import known
from tf_fpq import sharpness
from tf_fpq.keras_compat import keras
from tf_fpq.sharpness.surroundings import filter_normalised


def test_a_landscape_of_a_quadratic_is_the_quadratic():
    hessian = known.quadratic()
    found = sharpness.landscape(hessian, extent=0.5, points=5, seed=3)
    generator = np.random.default_rng(3)
    first, second = (filter_normalised(hessian, generator) for _ in range(2))
    np.testing.assert_allclose(found.places, [-0.5, -0.25, 0, 0.25, 0.5])
    for a, losses in zip(found.places, found.losses, strict=True):
        for b, loss in zip(found.places, losses, strict=True):
            weights = np.arange(1.0, 7.0) + a * first + b * second
            np.testing.assert_allclose(loss, weights**2 @ known.EIGENVALUES / 2, rtol=1e-4)


def test_a_landscape_leaves_the_weights():
    hessian = known.quadratic()
    before = small_student.bytes_of(hessian.model)
    middle = sharpness.landscape(hessian, points=3).losses[1, 1]
    assert middle == hessian.loss() and small_student.bytes_of(hessian.model) == before


def test_directions_have_the_norms_of_the_weights_filters():
    _, student = small_student.pair()
    hessian = sharpness.LossHessian(student, small_student.images(), small_student.labels())
    parts = hessian.split(filter_normalised(hessian, np.random.default_rng(0)))
    for variable, part in zip(hessian.variables, parts, strict=True):
        axes = (0, 1) if "depthwise" in variable.name else tuple(range(part.ndim - 1))
        norms = [np.sqrt((x**2).sum(axis=axes)) for x in (variable.numpy(), part)]
        np.testing.assert_allclose(*norms, rtol=1e-4)


def classifier():
    """Two outputs, `w x` with `w = [[3, 0], [0, 4]]`."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    model.layers[-1].kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    return model


def test_variance_under_input_noise_is_that_of_a_linear_map():
    images = np.float32([[1, 0], [0, 1]] * 50)
    quiet, loud = sharpness.under_input_noise(
        classifier(), images, [0, 1] * 50, [0.0, 0.5], draws=10
    )
    assert quiet == (0.0, 1.0, 0.0)
    np.testing.assert_allclose(loud.variance, 0.25 * (9 + 16) / 2, rtol=0.15)
    # 3 x1 > 4 x2 of x = (1, 0) plus noise of 0.5: a normal distribution, at 3 / (0.5 * 5).
    assert 0.85 < loud.accuracy < 0.95


def test_variance_under_weight_noise_is_that_of_a_linear_map():
    """Noise of a filter's norm times sigma, in a random direction of two."""
    images, labels = np.float32([[1, 0], [0, 1]]), [0, 1]
    model = classifier()
    hessian = sharpness.LossHessian(model, images, labels)
    before = small_student.bytes_of(model)
    quiet, loud = sharpness.under_weight_noise(hessian, images, labels, [0.0, 0.2], draws=60)
    assert quiet == (0.0, 1.0, 0.0)
    np.testing.assert_allclose(loud.variance, 0.04 * (9 + 16) / 2 / 2, rtol=0.3)
    assert small_student.bytes_of(model) == before


@pytest.mark.parametrize("arguments", [{"extent": 0.0}, {"points": 4}])
def test_wrong_arguments_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        sharpness.landscape(known.quadratic(), **arguments)


def test_one_draw_has_no_variance():
    with pytest.raises(ValueError, match="draws=1"):
        sharpness.under_input_noise(classifier(), np.zeros((1, 2)), [0], [0.1], draws=1)
