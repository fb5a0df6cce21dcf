"""Pictures of landscapes: density, surface, noise, features, and what happens over the epochs."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from matplotlib import figure
import numpy as np

from experiments import records
from tf_fpq import graph, roles, sharpness
from tf_fpq.keras_compat import keras

# Shares of a filter's norm, and standard deviations of images that have the standard deviation 1.
WEIGHT_NOISE = (0.0, 0.05, 0.1, 0.2, 0.3)
INPUT_NOISE = (0.0, 0.1, 0.2, 0.4, 0.8)


@dataclasses.dataclass(frozen=True)
class Curves:
    """What was followed over the epochs.

    Attributes:
      measured: Epochs at which the Hessian was measured, from 1.
      traces: Its traces there.
      oscillating: Share of oscillating weights after every epoch.
    """

    measured: list[int]
    traces: list[float]
    oscillating: list[float]


def densities(found: Mapping[str, sharpness.Density], path: pathlib.Path) -> None:
    """Densities of the Hessian's eigenvalues, on a logarithmic scale."""
    drawn = figure.Figure(figsize=(7, 4), layout="constrained")
    axis = drawn.subplots()
    for name, density in found.items():
        axis.semilogy(density.eigenvalues, density.density + 1e-12, label=name)
    axis.set(xlabel="eigenvalue of the loss's Hessian by the kernels", ylabel="density")
    axis.set_ylim(bottom=1e-6)
    axis.legend()
    _save(drawn, path)


def landscapes(found: Mapping[str, sharpness.Landscape], path: pathlib.Path) -> None:
    """Surfaces of the loss along two filter-normalised directions, all to one scale."""
    drawn = figure.Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
    axes = drawn.subplots(1, len(found), squeeze=False, subplot_kw={"projection": "3d"})[0]
    # A loss of twice that of guessing is a wall; what is above it would flatten everything else.
    ceiling = min(5.0, max(float(x.losses.max()) for x in found.values()))
    for axis, (name, landscape) in zip(axes, found.items(), strict=True):
        a, b = np.meshgrid(landscape.places, landscape.places, indexing="ij")
        axis.plot_surface(a, b, np.minimum(landscape.losses, ceiling), cmap="viridis")
        axis.set(title=name, zlim=(0, ceiling))
    _save(drawn, path)


def noises(
    found: Mapping[str, sharpness.LossHessian], images: Any, labels: Any, path: pathlib.Path
) -> None:
    """Accuracy and output variance under noise on the images and on the kernels."""
    drawn = figure.Figure(figsize=(9, 6), layout="constrained")
    axes = drawn.subplots(2, 2, sharex="col")
    for name, hessian in found.items():
        on_images = sharpness.under_input_noise(hessian.model, images, labels, INPUT_NOISE)
        on_kernels = sharpness.under_weight_noise(hessian, images, labels, WEIGHT_NOISE)
        for column, several in enumerate((on_images, on_kernels)):
            sigmas = [noise.sigma for noise in several]
            axes[0, column].plot(sigmas, [100 * n.accuracy for n in several], "o-", label=name)
            axes[1, column].plot(sigmas, [n.variance for n in several], "o-")
    axes[0, 0].set(ylabel="accuracy, %", title="noise on images")
    axes[0, 1].set(title="noise on kernels, share of a filter's norm")
    axes[1, 0].set(ylabel="variance of a class score", xlabel="standard deviation")
    axes[1, 1].set(xlabel="standard deviation")
    axes[0, 0].legend()
    _save(drawn, path)


def features(models: Mapping[str, keras.Model], images: Any, path: pathlib.Path) -> None:
    """Distribution of the middle convolution's output, of float network and students."""
    drawn = figure.Figure(figsize=(7, 4), layout="constrained")
    axis = drawn.subplots()
    for name, model in models.items():
        layer = middle_convolution(model)
        shown = keras.Model(model.inputs, model.get_layer(layer).output)
        values = shown.predict(images, batch_size=256, verbose=0).ravel()
        axis.hist(values, bins=200, density=True, histtype="step", label=name)
    axis.set(xlabel=f"output of {layer}", ylabel="density", yscale="log")
    axis.legend()
    _save(drawn, path)


def middle_convolution(model: keras.Model) -> str:
    """Name of the convolution half way through a network."""
    names = [call.name for call in graph.calls(model) if roles.is_convolution(call.layer)]
    return names[len(names) // 2]


def epochs(curves: Mapping[str, Sequence[Curves]], path: pathlib.Path) -> None:
    """Trace and oscillation over the epochs of quantization-aware training.

    A thin line is a seed, a thick one the mean.
    """
    drawn = figure.Figure(figsize=(7, 6), layout="constrained")
    above, below = drawn.subplots(2, 1, sharex=True)
    for number, (name, seeds) in enumerate(curves.items()):
        color = f"C{number}"
        traces = np.asarray([curve.traces for curve in seeds])
        shares = 100 * np.asarray([curve.oscillating for curve in seeds])
        numbers = range(1, shares.shape[1] + 1)
        above.plot(seeds[0].measured, traces.T, color=color, linewidth=0.6, alpha=0.5)
        below.plot(numbers, shares.T, color=color, linewidth=0.6, alpha=0.5)
        above.plot(seeds[0].measured, traces.mean(0), "o-", color=color, label=name)
        below.plot(numbers, shares.mean(0), color=color)
    above.set(ylabel="trace of the Hessian", yscale="log")
    below.set(ylabel="oscillating weights, %", xlabel="epoch")
    above.legend()
    _save(drawn, path)


def _save(drawn: figure.Figure, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_whole(path, lambda temporary: drawn.savefig(temporary, dpi=110))
