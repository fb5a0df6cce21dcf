"""Trace, eigenvalues and density of Hessians that are known in full."""

import numpy as np
import pytest

from tests.tf_fpq.sharpness import known
from tf_fpq import sharpness


@pytest.fixture(scope="module")
def network():
    model, images, labels = known.dense_network()
    return sharpness.LossHessian(model, images, labels), known.full_hessian(model, images, labels)


def test_every_probe_of_a_diagonal_hessian_is_its_trace():
    found = sharpness.hessian_trace(known.quadratic(), probes=3, tolerance=0)
    assert found.probes == 3
    np.testing.assert_allclose(found.mean, known.EIGENVALUES.sum(), rtol=1e-5)
    assert found.standard_error < 1e-5


def test_the_trace_ends_when_it_is_calm():
    assert sharpness.hessian_trace(known.quadratic(), probes=100).probes == 4


def test_a_traces_error_is_as_large_as_it_says(network):
    hessian, full = network
    found = sharpness.hessian_trace(hessian, probes=60, tolerance=0)
    assert 0 < found.standard_error < 0.2 * abs(np.trace(full))
    assert abs(found.mean - np.trace(full)) < 4 * found.standard_error


def test_the_seed_chooses_the_probes(network):
    hessian, _ = network
    first, second, other = (
        sharpness.hessian_trace(hessian, probes=2, seed=seed).mean for seed in (1, 1, 2)
    )
    assert first == second != other


def test_top_eigenvalues_of_a_quadratic():
    found = sharpness.top_eigenvalues(known.quadratic(), 3, tolerance=1e-6)
    np.testing.assert_allclose(found, [5.0, 3.0, 2.0], rtol=1e-3)


def test_top_eigenvalues_of_a_dense_network(network):
    hessian, full = network
    values = np.linalg.eigvalsh(full)
    largest = values[np.argsort(-np.abs(values))]
    found = sharpness.top_eigenvalues(hessian, 2, tolerance=1e-6, steps=500)
    np.testing.assert_allclose(found, largest[:2], rtol=1e-3)


def test_with_all_steps_the_nodes_are_the_eigenvalues():
    found = sharpness.spectral_density(known.quadratic(), steps=6, probes=2)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        np.testing.assert_allclose(np.sort(nodes), np.sort(known.EIGENVALUES), atol=1e-4)
        np.testing.assert_allclose(weights, 1 / 6, atol=1e-4)


def test_a_density_has_integral_one_and_the_probes_share_of_the_trace_as_its_mean(network):
    """Of each probe the mean of the nodes is `v * Hv / |v|^2`, whatever the number of steps."""
    hessian, _ = network
    found = sharpness.spectral_density(hessian, steps=5, probes=3, seed=4)
    step = found.eigenvalues[1] - found.eigenvalues[0]
    np.testing.assert_allclose(found.density.sum() * step, 1.0, rtol=1e-3)
    mean = (found.eigenvalues * found.density).sum() * step
    np.testing.assert_allclose(mean, (found.nodes * found.weights).sum() / 3, rtol=1e-3)
    trace = sharpness.hessian_trace(hessian, probes=3, tolerance=0, seed=4).mean
    np.testing.assert_allclose(mean * hessian.size, trace, rtol=1e-3)


def test_lanczos_ends_where_products_lead_nowhere_new():
    """All images are equal: the Hessian has rank 1."""
    images = np.ones((3, 4), np.float32)
    hessian = sharpness.LossHessian(known.linear(4), images, np.zeros(3), known.half_square)
    found = sharpness.spectral_density(hessian, steps=4, probes=1)
    used = found.nodes[found.weights > 1e-6]
    assert set(np.round(used, 4)) <= {0.0, 4.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: sharpness.hessian_trace(h, probes=0), "probes=0"),
        (lambda h: sharpness.hessian_trace(h, tolerance=-1), "tolerance=-1"),
        (lambda h: sharpness.top_eigenvalues(h, 7), "1 to 6.*count=7"),
        (lambda h: sharpness.top_eigenvalues(h, steps=0), "steps=0"),
        (lambda h: sharpness.spectral_density(h, points=0), "points=0"),
        (lambda h: sharpness.spectral_density(h, width=0.0), "width=0.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(known.quadratic())
