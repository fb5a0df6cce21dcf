"""How a model does around its weights and its images: the loss landscape, and noise.

Landscape: H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, *Visualizing the Loss Landscape of
Neural Nets*, NeurIPS 2018, arXiv 1712.09913, section 4. A random direction is scaled filter by
filter to the norm of the weights' filter, so that networks that compute the same with weights of
other sizes look the same.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_fpq.keras_compat import keras
from tf_fpq.sharpness.loss_hessian import LossHessian


class Landscape(NamedTuple):
    """Losses on a plane through the weights.

        surface = tf_fpq.sharpness.landscape(hessian)
        plt.contourf(surface.places, surface.places, surface.losses)

    Attributes:
      places: Coordinates along both directions, `[points]`; 0 is in the middle.
      losses: `[points, points]`, rows along the first direction.
    """

    places: np.ndarray
    losses: np.ndarray


def landscape(
    hessian: LossHessian, *, extent: float = 1.0, points: int = 21, seed: int = 0
) -> Landscape:
    """The loss at `w + a d1 + b d2` for two filter-normalised random directions.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        surface = tf_fpq.sharpness.landscape(hessian, points=11)

    Args:
      hessian: Model, images and loss.
      extent: Largest coordinate: at 1 a filter is moved by as much as its own norm.
      points: Points a side, odd, so that the weights themselves are one.
      seed: Of the directions, which are the same for all models of one size before they are scaled.

    Raises:
      ValueError: If `extent` is not positive or `points` is even.
    """
    if extent <= 0 or points < 1 or points % 2 == 0:
        raise ValueError(
            f"extent must be positive and points odd. Received: extent={extent}, points={points}."
        )
    generator = np.random.default_rng(seed)
    first, second = (filter_normalised(hessian, generator) for _ in range(2))
    places = np.linspace(-extent, extent, points)
    losses = np.empty((points, points))
    for row, a in enumerate(places):
        for column, b in enumerate(places):
            with hessian.moved(a * first + b * second):
                losses[row, column] = hessian.loss()
    return Landscape(places, losses)


def filter_normalised(hessian: LossHessian, generator: np.random.Generator) -> np.ndarray:
    """A random vector of which every filter has the norm of the weights' filter.

    A filter is what makes one output channel: the slice at an index of the last axis, of a
    depthwise kernel at an index of the last two.
    """
    parts = []
    for variable in hessian.variables:
        weights = variable.numpy()
        direction = generator.standard_normal(weights.shape).astype(np.float32)
        depthwise = weights.ndim == 4 and "depthwise" in variable.name
        axes = (0, 1) if depthwise else tuple(range(weights.ndim - 1))
        norms = [
            np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True)) for x in (weights, direction)
        ]
        parts.append(direction * (norms[0] / np.maximum(norms[1], 1e-12)))
    return np.concatenate([part.ravel() for part in parts])


class Noise(NamedTuple):
    """What noise of one size does.

        for noise in tf_fpq.sharpness.under_input_noise(student, images, labels, [0.0, 0.1]):
            print(noise.sigma, noise.accuracy)

    Attributes:
      sigma: Its size.
      accuracy: Share of images whose largest output is the label's, mean over the draws.
      variance: Variance of an output over the draws, mean over images and outputs.
    """

    sigma: float
    accuracy: float
    variance: float


def under_input_noise(
    model: keras.Model,
    images: Any,
    labels: Any,
    sigmas: Sequence[float],
    *,
    draws: int = 8,
    seed: int = 0,
) -> list[Noise]:
    """Accuracy and output variance with Gaussian noise on the images.

        clean, noisy = tf_fpq.sharpness.under_input_noise(student, images, labels, [0.0, 0.1])
        print(clean.accuracy - noisy.accuracy)

    Args:
      model: A float model or a student.
      images: Array of images, preprocessed.
      labels: Class numbers.
      sigmas: Standard deviations, in the images' units.
      draws: Draws of each, at least 2.
      seed: Of the noise, which is the same for every model.

    Raises:
      ValueError: If `draws` is below 2.
    """
    images = np.asarray(images, np.float32)

    def outputs(sigma: float, generator: np.random.Generator) -> np.ndarray:
        noise = generator.standard_normal(images.shape).astype(np.float32)
        return _predict(model, images + np.float32(sigma) * noise)

    return _noises(outputs, labels, sigmas, draws, seed)


def under_weight_noise(
    hessian: LossHessian,
    images: Any,
    labels: Any,
    sigmas: Sequence[float],
    *,
    draws: int = 8,
    seed: int = 0,
) -> list[Noise]:
    """Accuracy and output variance with filter-normalised noise on the kernels.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        [noise] = tf_fpq.sharpness.under_weight_noise(hessian, images, labels, [0.1])

    Args:
      hessian: Model and kernels.
      images: Array of images, preprocessed.
      labels: Class numbers.
      sigmas: Norms of a filter's noise, as shares of the filter's norm.
      draws: Draws of each, at least 2.
      seed: Of the noise, which is the same for every model of one size.

    Raises:
      ValueError: If `draws` is below 2.
    """

    def outputs(sigma: float, generator: np.random.Generator) -> np.ndarray:
        with hessian.moved(sigma * filter_normalised(hessian, generator)):
            return _predict(hessian.model, images)

    return _noises(outputs, labels, sigmas, draws, seed)


def _noises(
    outputs: Callable[[float, np.random.Generator], np.ndarray],
    labels: Any,
    sigmas: Sequence[float],
    draws: int,
    seed: int,
) -> list[Noise]:
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for a variance. Received: draws={draws}.")
    found = []
    for sigma in sigmas:
        generator = np.random.default_rng(seed)
        several = np.stack([outputs(sigma, generator) for _ in range(draws)])
        accuracy = np.mean(np.argmax(several, axis=-1) == np.asarray(labels))
        variance = np.mean(np.var(several, axis=0, ddof=1))
        found.append(Noise(float(sigma), float(accuracy), float(variance)))
    return found


def _predict(model: keras.Model, images: Any) -> np.ndarray:
    batches = [images[i : i + 256] for i in range(0, len(images), 256)]
    return np.concatenate([model.predict_on_batch(batch) for batch in batches])
