"""Random small networks over all layers that the exporter takes.

A network is a chain of 4 to 12 blocks with branches: a block is one layer or a small pattern
(squeeze and excite, a 1D detour), and a join brings in an earlier tensor. Everything follows from
one seed.
"""

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from experiments.evidence import fuzz_weights
from experiments.evidence.fuzz_weights import chance, spread
from tf_fpq.keras_compat import keras

layers = keras.layers

SIZES = (4, 6, 8, 9)
CHANNELS = (1, 2, 3, 4, 6, 8, 12)
LARGEST = 3000

Block = Callable[[np.random.Generator, Any], Any]


def build(seed: int, weights: str = "spread") -> keras.Model:
    """The network of a seed, with random weights.

    Args:
      seed: Of everything.
      weights: A kind of `fuzz_weights.KINDS`. Networks of "trained_like" weights begin with a
        convolution, have several outputs in half of the cases, and no batch norm at all in a fifth.
    """
    trained = weights == "trained_like"
    rng = np.random.default_rng([seed, 3] if trained else seed)
    keras.utils.set_random_seed(seed)
    image = keras.Input((pick(rng, SIZES), pick(rng, SIZES), pick(rng, CHANNELS)))
    tensors = [image, _conv_norm(rng, image)] if trained else [image]
    for _ in range(int(rng.integers(4, 13))):
        tensors.append(_next(rng, tensors))
    outputs = [_head(rng, tensors[-1])]
    if rng.random() < (0.5 if trained else 0.2):
        outputs.append(pick(rng, tensors[1:]))
    model = keras.Model(image, outputs[0] if len(outputs) == 1 else outputs, name=f"fuzz_{seed}")
    if trained and chance(rng, 0.2):
        model = keras.models.clone_model(model, clone_function=_without_norm)
    fuzz_weights.KINDS[weights](rng, model)
    return model


def images_for(seed: int, model: keras.Model, count: int) -> np.ndarray:
    """Random images: normal values at a random scale and offset, one of them constant."""
    rng = np.random.default_rng([seed, 1])
    images = rng.normal(rng.normal(), 2.0 ** rng.uniform(-3, 3), (count, *model.input_shape[1:]))
    images[0] = images[0].flat[0]
    return images.astype(np.float32)


def _without_norm(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, layers.BatchNormalization):
        return layers.Activation("linear", name=layer.name)
    return type(layer).from_config(layer.get_config())


def pick(rng: np.random.Generator, options: Any) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def _next(rng: np.random.Generator, tensors: list[Any]) -> Any:
    x = tensors[-1]
    if chance(rng, 0.25):
        return _join(rng, x, pick(rng, tensors))
    for _ in range(20):
        block, smallest = pick(rng, BLOCKS)
        if min(x.shape[1:3]) >= smallest:
            y = block(rng, x)
            if math.prod(y.shape[1:]) <= LARGEST and min(y.shape[1:]) > 0:
                return y
    return layers.ReLU()(x)


def _join(rng: np.random.Generator, x: Any, other: Any) -> Any:
    """Joins `x` and an earlier tensor, brought to the shape of `x` where needed."""
    if other.shape[1:3] != x.shape[1:3]:
        other = layers.Resizing(*x.shape[1:3], interpolation=pick(rng, ("bilinear", "nearest")))(
            other
        )
    if chance(rng, 0.25):
        return layers.Concatenate()([x, other] if chance(rng) else [other, x, x])
    if other.shape[-1] != x.shape[-1]:
        other = layers.Conv2D(x.shape[-1], 1)(other)
    kind = int(rng.integers(10))
    if kind == 0:
        return x + other
    if kind == 1:
        return x * other
    if kind == 2:
        return x - other
    many = (layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply)
    if kind < 8:
        tensors = [x, other] if chance(rng, 0.7) else [x, other, x]
        return pick(rng, many)()(tensors)
    return layers.Subtract()([x, other])


def _activation(
    rng: np.random.Generator,
    names: tuple[str | None, ...] = (None, "relu", "relu6", "swish", "tanh"),
) -> Any:
    return pick(rng, names)


def _conv(rng: np.random.Generator, x: Any) -> Any:
    size, dilation = int(rng.integers(1, 4)), 1 + chance(rng, 0.2)
    strides = 1 if dilation > 1 else 1 + chance(rng, 0.25)
    channels = x.shape[-1]
    groups = pick(rng, [n for n in (1, 2, 3, channels) if channels % n == 0])
    padding = "valid" if chance(rng, 0.3) and min(x.shape[1:3]) > 2 * size else "same"
    filters = groups * int(rng.integers(1, 1 + max(1, 8 // groups)))
    config = {
        "dilation_rate": dilation,
        "groups": groups,
        "use_bias": chance(rng),
        "activation": _activation(rng),
    }
    return layers.Conv2D(filters, size, strides, padding, **config)(x)


def _depthwise(rng: np.random.Generator, x: Any) -> Any:
    config = {
        "depth_multiplier": 1 + chance(rng, 0.3),
        "use_bias": chance(rng),
        "activation": _activation(rng),
    }
    return layers.DepthwiseConv2D(int(rng.integers(1, 4)), 1 + chance(rng, 0.25), "same", **config)(
        x
    )


def _separable(rng: np.random.Generator, x: Any) -> Any:
    return layers.SeparableConv2D(
        int(rng.integers(1, 9)), 3, padding="same", activation=_activation(rng)
    )(x)


def _transposed(rng: np.random.Generator, x: Any) -> Any:
    strides, padding = 1 + chance(rng), pick(rng, ("same", "valid"))
    return layers.Conv2DTranspose(
        int(rng.integers(1, 6)), int(rng.integers(1, 4)), strides, padding
    )(x)


def _dense(rng: np.random.Generator, x: Any) -> Any:
    return layers.Dense(int(rng.integers(1, 9)), activation=_activation(rng), use_bias=chance(rng))(
        x
    )


def _norm(rng: np.random.Generator, x: Any) -> Any:
    x = layers.BatchNormalization(center=chance(rng, 0.8), scale=chance(rng, 0.8))(x)
    return layers.ReLU(pick(rng, (None, 6.0, 1.5)))(x) if chance(rng) else x


def _conv_norm(rng: np.random.Generator, x: Any) -> Any:
    x = layers.Conv2D(
        int(rng.integers(1, 9)), pick(rng, (1, 3)), padding="same", use_bias=chance(rng, 0.3)
    )(x)
    return _norm(rng, x)


def _layer_norm(rng: np.random.Generator, x: Any) -> Any:
    return layers.LayerNormalization(epsilon=1e-3)(x)


def _clamp(rng: np.random.Generator, x: Any) -> Any:
    made = (
        layers.ReLU(),
        layers.ReLU(6.0),
        layers.ReLU(pick(rng, (0.7, 1.0, 3.0))),
        layers.ReLU(negative_slope=0.125),
        layers.LeakyReLU(pick(rng, (0.01, 0.2, 0.9))),
        layers.PReLU(shared_axes=[1, 2]),
        layers.PReLU(),
    )
    return pick(rng, made)(x)


def _function(rng: np.random.Generator, x: Any) -> Any:
    names = (
        "sigmoid",
        "tanh",
        "softmax",
        "hard_sigmoid",
        "swish",
        "gelu",
        "relu",
        "relu6",
        "linear",
    )
    return layers.Activation(pick(rng, names))(x)


def _affine(rng: np.random.Generator, x: Any) -> Any:
    channels = x.shape[-1]
    factors, offsets = spread(rng, channels), rng.normal(0, 1, channels)
    made = (
        lambda: layers.Rescaling(float(rng.normal()), float(rng.normal()))(x),
        lambda: layers.Rescaling(factors.tolist(), offsets.tolist())(x),
        lambda: layers.Normalization(mean=offsets.tolist(), variance=(factors**2).tolist())(x),
        lambda: x + float(rng.normal()),
        lambda: x * float(rng.normal()),
        lambda: 1.0 - x,
        lambda: x / 3.0,
    )
    return pick(rng, made)()


def _pool(rng: np.random.Generator, x: Any) -> Any:
    kind = pick(rng, (layers.MaxPooling2D, layers.AveragePooling2D))
    return kind(
        int(rng.integers(2, 4)), int(rng.integers(1, 3)), padding=pick(rng, ("same", "valid"))
    )(x)


def _move(rng: np.random.Generator, x: Any) -> Any:
    sides = ((int(rng.integers(2)), 1), (0, int(rng.integers(2))))
    made = (
        lambda: layers.ZeroPadding2D(sides)(x),
        lambda: layers.Cropping2D(sides)(x),
        lambda: layers.Permute((2, 1, 3))(x),
        lambda: layers.Dropout(0.5)(x),
        lambda: layers.Reshape((x.shape[2], x.shape[1], x.shape[3]))(x),
    )
    return pick(rng, made)()


def _resize(rng: np.random.Generator, x: Any) -> Any:
    interpolation = pick(rng, ("bilinear", "nearest"))
    if chance(rng):
        return layers.UpSampling2D(2, interpolation=interpolation)(x)
    return layers.Resizing(
        int(rng.integers(2, 9)), int(rng.integers(2, 9)), interpolation=interpolation
    )(x)


def _gate(rng: np.random.Generator, x: Any) -> Any:
    """Squeeze and excite."""
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    if chance(rng):
        squeezed = layers.Conv2D(2, 1, activation="relu")(squeezed)
    gate = layers.Dense(x.shape[-1], activation=pick(rng, ("sigmoid", "hard_sigmoid", "tanh")))(
        squeezed
    )
    return layers.Multiply()([x, gate] if chance(rng) else [gate, x])


def _one_dimensional(rng: np.random.Generator, x: Any) -> Any:
    """A detour over a tensor of rank 3."""
    height, width, channels = x.shape[1:]
    y = layers.Reshape((height * width, channels))(x)
    made = (
        lambda: layers.Conv1D(
            4, 3, padding=pick(rng, ("same", "causal", "valid")), activation=_activation(rng)
        )(y),
        lambda: layers.MaxPooling1D(2)(y),
        lambda: layers.AveragePooling1D(2)(y),
        lambda: layers.ZeroPadding1D(1)(y),
        lambda: layers.Cropping1D(1)(y),
        lambda: layers.UpSampling1D(2)(y),
        lambda: layers.Dense(3, activation="relu")(y),
    )
    y = pick(rng, made)()
    if chance(rng):
        y = layers.ReLU()(layers.BatchNormalization()(y))
    return layers.Reshape((1, *y.shape[1:]))(y)


# Blocks and the smallest height and width they take.
BLOCKS: tuple[tuple[Block, int], ...] = (
    (_conv, 1),
    (_conv_norm, 1),
    (_conv_norm, 1),
    (_depthwise, 1),
    (_separable, 1),
    (_transposed, 1),
    (_dense, 1),
    (_norm, 1),
    (_layer_norm, 1),
    (_clamp, 1),
    (_function, 1),
    (_affine, 1),
    (_pool, 3),
    (_move, 3),
    (_resize, 1),
    (_gate, 1),
    (_one_dimensional, 2),
)


def _head(rng: np.random.Generator, x: Any) -> Any:
    """Class scores, or the tensor as it is."""
    kind = int(rng.integers(5))
    if kind == 0:
        return layers.ReLU()(x) if chance(rng) else x
    if kind == 1:
        x = layers.Flatten()(x) if math.prod(x.shape[1:]) < 600 else layers.GlobalMaxPooling2D()(x)
    else:
        x = pick(rng, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))()(x)
    x = layers.Dense(8, activation="relu")(x) if chance(rng, 0.3) else x
    x = layers.BatchNormalization()(x) if chance(rng, 0.2) else x
    return layers.Dense(5, activation=pick(rng, (None, "softmax", "sigmoid")))(x)
