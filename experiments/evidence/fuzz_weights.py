"""Random weights for the networks of the fuzz.

*   "spread": channel scales spread over 2^-6..2^6, as if the network had not been trained long.
*   "trained_like": what long trainings leave behind. Weight decay drives gammas to 1e-20 and to
    exact zeros, and channels die with them; statistics span 12 orders of magnitude; biases lie far
    beyond what the products reach, so that channels saturate.
"""

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from tf_fpq.keras_compat import keras

layers = keras.layers

# Exponents of the channel scales.
SPREAD = 6.0
# Exponents of ten of the smallest gamma, and of moving variances.
GAMMAS = -20.0
VARIANCES = (-8.0, 4.0)
Randomize = Callable[[np.random.Generator, keras.Model], None]


def chance(rng: np.random.Generator, probability: float = 0.5) -> bool:
    """True with a probability."""
    return bool(rng.random() < probability)


def spread(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Factors from 2^-6 to 2^6."""
    return 2.0 ** rng.uniform(-SPREAD, SPREAD, shape)


def randomize(rng: np.random.Generator, model: keras.Model) -> None:
    """Random weights: kernels and gammas with spread channels, now and then one that is zero;
    statistics as after a training.
    """
    for layer in model.layers:
        layer.set_weights([_value(rng, layer, variable) for variable in layer.weights])


def randomize_as_trained(rng: np.random.Generator, model: keras.Model) -> None:
    """Weights as of a long training, with weight decay; see the module.

    In half of the networks the moving statistics are those of random images, so that activations
    are normalized, in the others they are random too.
    """
    for layer in model.layers:
        layer.set_weights([_trained_value(rng, layer, variable) for variable in layer.weights])
    if chance(rng):
        _measure_statistics(rng, model)


def _measure_statistics(rng: np.random.Generator, model: keras.Model) -> None:
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    before = [(norm.momentum, norm.get_weights()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(rng.normal(0, 1, (8, *model.input_shape[1:])).astype(np.float32), training=True)
    for norm, (momentum, values) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not all(np.isfinite(value).all() for value in norm.get_weights()):
            norm.set_weights(values)


def _kind(variable: Any) -> str:
    return variable.name.split("/")[-1].split(":")[0]


def _value(rng: np.random.Generator, layer: Any, variable: Any) -> np.ndarray:
    kind, shape = _kind(variable), tuple(variable.shape)
    if kind == "moving_variance":
        return spread(rng, shape) if chance(rng) else rng.uniform(0.5, 2, shape)
    if kind == "gamma":
        scale = spread(rng, shape) if chance(rng) else rng.uniform(0.5, 1.5, shape)
        return scale * rng.choice([1, 1, 1, -1, 0], shape, p=[0.25, 0.25, 0.25, 0.2, 0.05])
    if "kernel" in kind:
        channels = _channels(layer, kind, shape)
        scale = spread(rng, channels) if chance(rng) else np.ones(channels)
        scale = np.where(rng.random(channels) < 0.03, 0.0, scale)
        return rng.normal(0, 1, shape) * scale / math.sqrt(max(1, math.prod(shape[:-1])))
    if kind == "alpha":
        return rng.uniform(-0.5, 0.5, shape)
    if kind in ("bias", "beta", "moving_mean"):
        return rng.normal(0, 0.3, shape) * (spread(rng, shape) if chance(rng, 0.3) else 1.0)
    return variable.numpy()


def _channels(layer: Any, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one factor per output channel of a kernel."""
    if isinstance(layer, layers.Conv2DTranspose):
        return 1, 1, shape[2], 1
    kept = 2 if kind == "depthwise_kernel" else 1
    return (*[1] * (len(shape) - kept), *shape[-kept:])


def _trained_value(rng: np.random.Generator, layer: Any, variable: Any) -> np.ndarray:
    kind, shape = _kind(variable), tuple(variable.shape)
    if kind == "moving_variance":
        return 10.0 ** rng.uniform(*VARIANCES, shape) if chance(rng) else rng.uniform(0.5, 2, shape)
    if kind == "gamma":
        return _gamma(rng, shape)
    if "kernel" in kind:
        channels = _channels(layer, kind, shape)
        return _tails(rng, shape) * _gamma(rng, channels) / math.sqrt(max(1, math.prod(shape[:-1])))
    if kind == "alpha":
        return rng.uniform(-0.5, 1.5, shape)
    if kind in ("bias", "beta", "moving_mean"):
        far = 10.0 ** rng.uniform(-3, 3, shape)
        return rng.normal(0, 0.5, shape) * np.where(rng.random(shape) < 0.2, far, 1.0)
    return variable.numpy()


def _gamma(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Factors of channels: most near 1, some anywhere down to 1e-20, some exactly 0, some
    negative.
    """
    dead = rng.uniform(0, 0.6) if chance(rng, 0.7) else 0.0
    alive = rng.uniform(0.3, 2.0, shape)
    tiny = np.where(rng.random(shape) < 0.15, 0.0, 10.0 ** rng.uniform(GAMMAS, 0, shape))
    sign = np.where(rng.random(shape) < 0.2, -1.0, 1.0)
    return sign * np.where(rng.random(shape) < dead, tiny, alive)


def _tails(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Normal values, in half of the kernels with heavy tails, as trained kernels have."""
    return rng.standard_t(3, shape) if chance(rng) else rng.normal(0, 1, shape)


KINDS: dict[str, Randomize] = {"spread": randomize, "trained_like": randomize_as_trained}
