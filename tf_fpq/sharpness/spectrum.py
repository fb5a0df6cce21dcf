"""Trace, largest eigenvalues and density of a loss's Hessian, from products with vectors alone.

Trace: M. F. Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989.
Density: B. Ghorbani, S. Krishnan, Y. Xiao, *An Investigation into Neural Net Optimization via
Hessian Eigenvalue Density*, ICML 2019, arXiv 1901.10159, section 3, after stochastic Lanczos
quadrature (S. Ubaru, J. Chen, Y. Saad, 2017).
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_fpq.sharpness.loss_hessian import LossHessian


class Trace(NamedTuple):
    """An estimated trace.

        trace = tf_fpq.sharpness.hessian_trace(hessian)
        print(f"{trace.mean:.1f} +- {trace.standard_error:.1f}, {trace.probes} probes")

    Attributes:
      mean: The estimate.
      standard_error: Its standard error over the probes; NaN for one probe.
      probes: Number of probes.
    """

    mean: float
    standard_error: float
    probes: int


def hessian_trace(
    hessian: LossHessian, *, probes: int = 100, tolerance: float = 1e-3, seed: int = 0
) -> Trace:
    """The trace, as the mean of `v * Hv` over random signs `v` (Hutchinson).

    The expectation is the trace, whatever the Hessian is; of a diagonal one every probe is exact.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        print(tf_fpq.sharpness.hessian_trace(hessian).mean)

    Args:
      hessian: The Hessian.
      probes: Number of probes at most.
      tolerance: Ends when a probe moves the mean by less than this share of it, three times in a
        row; 0 takes all probes. Fewer would end by chance. The papers' figures are 100 and 1e-3.
      seed: Of the probes, which are the same for every model of one size.

    Raises:
      ValueError: If `probes` is below 1 or the tolerance negative.
    """
    _check_at_least("probes", probes, 1)
    _check_at_least("tolerance", tolerance, 0)
    generator = np.random.default_rng(seed)
    values: list[float] = []
    calm = 0
    for _ in range(probes):
        vector = _signs(generator, hessian.size)
        before = np.mean(values) if values else np.inf
        values.append(float(tf.tensordot(vector, hessian.product(vector), 1)))
        calm = calm + 1 if abs(np.mean(values) - before) < tolerance * abs(np.mean(values)) else 0
        if calm == 3:
            break
    count = len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return Trace(float(np.mean(values)), error, count)


def top_eigenvalues(
    hessian: LossHessian,
    count: int = 1,
    *,
    steps: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """The eigenvalues of largest magnitude, by power iteration.

    A vector is multiplied and normalised until `v * Hv` moves by less than the tolerance; the next
    one is kept orthogonal to those before.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        print(tf_fpq.sharpness.top_eigenvalues(hessian, count=2))

    Args:
      hessian: The Hessian.
      count: How many.
      steps: Products for each at most.
      tolerance: Relative change of an eigenvalue at which it is taken.
      seed: Of the first vectors.

    Returns:
      The eigenvalues in the order in which they were found, mostly by magnitude.

    Raises:
      ValueError: If `count` or `steps` is below 1 or `count` above the Hessian's size.
    """
    _check_at_least("steps", steps, 1)
    if not 1 <= count <= hessian.size:
        raise ValueError(f"count must be 1 to {hessian.size}. Received: count={count}.")
    generator = np.random.default_rng(seed)
    found: list[tf.Tensor] = []
    values: list[float] = []
    for _ in range(count):
        vector = _unit(_orthogonal(_signs(generator, hessian.size), found))
        value = np.inf
        for _ in range(steps):
            product = _orthogonal(hessian.product(vector), found)
            before, value = value, float(tf.tensordot(vector, product, 1))
            norm = float(tf.norm(product))
            if not norm or abs(value - before) <= tolerance * abs(value):
                break
            vector = product / norm
        found.append(vector)
        values.append(value)
    return values


class Density(NamedTuple):
    """A density of eigenvalues.

        density = tf_fpq.sharpness.spectral_density(hessian)
        plt.semilogy(density.eigenvalues, density.density)

    Attributes:
      eigenvalues: Places, `[points]`.
      density: Values there; the integral is 1.
      nodes: Ritz values, `[probes, steps]`.
      weights: Their weights; those of a probe add up to 1.
    """

    eigenvalues: np.ndarray
    density: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray


def spectral_density(
    hessian: LossHessian,
    *,
    steps: int = 40,
    probes: int = 2,
    points: int = 1000,
    width: float = 0.01,
    seed: int = 0,
) -> Density:
    """The density of the eigenvalues, by stochastic Lanczos quadrature.

    A probe's Lanczos tridiagonal matrix has eigenvalues (nodes) and weights, the squares of its
    eigenvectors' first elements; the density is the mean over probes of Gaussians at the nodes.
    Vectors are orthogonalised against all before them, twice, since float32 loses orthogonality.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        density = tf_fpq.sharpness.spectral_density(hessian, steps=40)

    Args:
      hessian: The Hessian.
      steps: Lanczos steps; with as many as the Hessian's size the nodes are its eigenvalues.
      probes: Random vectors.
      points: Places of the density.
      width: Standard deviation of the Gaussians, as a share of the range of the nodes.
      seed: Of the probes.

    Raises:
      ValueError: If a number is below 1 or the width not positive.
    """
    for name, value in (("steps", steps), ("probes", probes), ("points", points)):
        _check_at_least(name, value, 1)
    if width <= 0:
        raise ValueError(f"width must be positive. Received: width={width}.")
    generator = np.random.default_rng(seed)
    steps = min(steps, hessian.size)
    found = [lanczos(hessian, _signs(generator, hessian.size), steps) for _ in range(probes)]
    # A probe that ended early has fewer nodes: the rest get weight 0.
    nodes, weights = (np.stack([_padded(pair[i], steps) for pair in found]) for i in (0, 1))
    used = nodes[weights > 0]
    low, high = float(used.min()), float(used.max())
    sigma = width * max(high - low, abs(high), float(np.finfo(np.float32).tiny))
    places = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    bells = np.exp(-0.5 * np.square((places - nodes[..., np.newaxis]) / sigma))
    density = (weights[..., np.newaxis] * bells).sum(axis=(0, 1)) / probes
    return Density(places, density / (sigma * np.sqrt(2 * np.pi)), nodes, weights)


def lanczos(hessian: LossHessian, start: tf.Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Lanczos iteration from one vector.

    Ends early where the vectors so far span all that products of `start` do.
    """
    basis = [_unit(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        product = hessian.product(basis[-1])
        diagonal.append(float(tf.tensordot(basis[-1], product, 1)))
        rest = _orthogonal(_orthogonal(product, basis), basis)
        norm = float(tf.norm(rest))
        # Below, what is left of a product is float32's rounding of it.
        if step + 1 == steps or norm <= 1e-5 * float(tf.norm(product)):
            break
        beside.append(norm)
        basis.append(rest / norm)
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, np.square(vectors[0])


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)))


def _signs(generator: np.random.Generator, size: int) -> tf.Tensor:
    return tf.constant(generator.choice([-1.0, 1.0], size), tf.float32)


def _unit(vector: tf.Tensor) -> tf.Tensor:
    return vector / tf.norm(vector)


def _orthogonal(vector: tf.Tensor, basis: list[tf.Tensor]) -> tf.Tensor:
    """`vector` without its parts along the orthonormal `basis`."""
    for other in basis:
        vector = vector - tf.tensordot(other, vector, 1) * other
    return vector


def _check_at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}. Received: {name}={value}.")
