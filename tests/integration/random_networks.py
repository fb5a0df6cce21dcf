"""Random small networks for hypothesis: a chain of blocks with branches, from a list of choices
that shrinks well."""

import functools
from typing import Any

import numpy as np

from tf_fpq.keras_compat import keras

layers = keras.layers


def _conv(x: Any, n: int) -> Any:
    dilation = 1 + (n % 5 == 0)
    strides = 2 if dilation == 1 and n % 4 == 3 and x.shape[1] > 4 else 1
    groups = 2 if x.shape[-1] % 2 == 0 and n % 3 == 0 else 1
    return layers.Conv2D(
        4, 1 + n % 3, strides, "same", dilation_rate=dilation, groups=groups, use_bias=n % 2 == 0
    )(x)


def _depthwise(x: Any, n: int) -> Any:
    return layers.DepthwiseConv2D(
        3, 1 + (n % 4 == 3 and x.shape[1] > 4), "same", depth_multiplier=1 + n % 2
    )(x)


def _norm(x: Any, n: int) -> Any:
    return layers.BatchNormalization(center=n % 3 > 0, scale=n % 4 > 0)(x)


def _clamp(x: Any, n: int) -> Any:
    return [
        layers.ReLU(),
        layers.ReLU(6.0),
        layers.ReLU(1.5),
        layers.LeakyReLU(0.1),
        layers.Activation("swish"),
    ][n % 5](x)


def _function(x: Any, n: int) -> Any:
    names = ("sigmoid", "tanh", "softmax", "hard_sigmoid", "relu6")
    return layers.Activation(names[n % 5])(x)


def _pool(x: Any, n: int) -> Any:
    kind = layers.MaxPooling2D if n % 2 else layers.AveragePooling2D
    return kind(2, 1 + (n % 3 == 0 and x.shape[1] > 4), padding="same")(x)


def _move(x: Any, n: int) -> Any:
    return [
        layers.ZeroPadding2D(1),
        layers.Cropping2D(1),
        layers.Permute((2, 1, 3)),
        layers.Dropout(0.5),
    ][n % 4](x)


def _resize(x: Any, n: int) -> Any:
    return layers.Resizing(6, 6, interpolation=("bilinear", "nearest")[n % 2])(x)


def _gate(x: Any, n: int) -> Any:
    gate = layers.Dense(x.shape[-1], activation=("sigmoid", "hard_sigmoid")[n % 2])(
        layers.GlobalAveragePooling2D(keepdims=True)(x)
    )
    return layers.Multiply()([x, gate])


def _transposed(x: Any, n: int) -> Any:
    return layers.Conv2DTranspose(3, 3, 1 + (x.shape[1] < 5), ("same", "valid")[n % 2])(x)


def _join(x: Any, other: Any, n: int) -> Any:
    """Brings `other` to the shape of `x` and joins both."""
    if other.shape[1:3] != x.shape[1:3]:
        other = layers.Resizing(*x.shape[1:3])(other)
    if n % 6 == 5:
        return layers.Concatenate()([x, other])
    if other.shape[-1] != x.shape[-1]:
        other = layers.Conv2D(x.shape[-1], 1)(other)
    kinds = (layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum)
    return kinds[n % 6]()([x, other])


BLOCKS = (_conv, _depthwise, _norm, _clamp, _function, _pool, _move, _resize, _gate, _transposed)


def build(choices: list[tuple[int, int]], head: int) -> keras.Model:
    """The network of a list of choices: the block, or the earlier tensor to join, and its
    variant."""
    image = keras.Input((8, 8, 3))
    tensors = [image]
    for kind, variant in choices:
        x = tensors[-1]
        if kind >= len(BLOCKS):
            x = _join(x, tensors[variant * 7 % len(tensors)], variant)
        elif min(x.shape[1:3]) > 2 or BLOCKS[kind] is not _move:
            x = BLOCKS[kind](x, variant)
        tensors.append(x)
    x = (
        layers.Flatten()(x)
        if head == 0 and np.prod(x.shape[1:]) < 600
        else layers.GlobalAveragePooling2D()(x)
    )
    x = layers.Dense(5, activation=("linear", "softmax")[head % 2])(x)
    return keras.Model(image, [x, tensors[len(tensors) // 2]] if head == 2 else x)


def networks(st: Any) -> Any:
    """Strategy of `(function that builds a network, weight bits, activation bits, seed)`."""
    choice = st.tuples(st.integers(0, len(BLOCKS) + 1), st.integers(0, 59))
    bits = st.integers(2, 8)
    make = st.builds(
        functools.partial,
        st.just(build),
        st.lists(choice, min_size=2, max_size=8),
        st.integers(0, 3),
    )
    return st.tuples(make, bits, bits, st.integers(0, 1000))
