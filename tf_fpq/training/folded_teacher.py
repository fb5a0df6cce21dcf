"""A frozen network whose batch norms are folded into its kernels, once.

It runs at the price of its convolutions. A batch norm multiplies a channel by
`slope = gamma / sqrt(variance + epsilon)` and adds `beta - slope * mean`. A convolution with the
kernel `slope * kernel` and that offset as bias computes both.

A worked number: gamma 0.5, beta 1, mean 3 and variance 4 give the slope 0.25 and the offset
1 - 0.25 * 3 = 0.25.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras


@dataclasses.dataclass(frozen=True)
class _Fold:
    """A layer with a kernel and the batch norm that is its only reader.

    Attributes:
      kernel: The call of the layer with the kernel.
      norm: The call of the batch norm.
      slope: What the batch norm multiplies a channel by, float64.
      offset: What it adds.
      variance: The smallest variance of a channel, before and behind the batch norm.
    """

    kernel: graph.Call
    norm: graph.Call
    slope: np.ndarray
    offset: np.ndarray
    variance: float


def folded_graph(model: keras.Model, shown: Mapping[str, float | None]) -> keras.Model:
    """A copy of `model` in inference with outputs `{"predictions": ..., "features": ...}`.

    Where a convolution's or Dense layer's only reader is a batch norm, one layer with kernel
    `slope * kernel` computes both. All others are the model's own layers. The model is not changed,
    and the copy keeps what it had when it was folded.

    Args:
      model: A functional model.
      shown: Names of the calls whose outputs are features. With None a feature is exactly that
        output. With a number it may be an affine map of each channel with a positive slope, and is,
        unless a channel has less variance than that in the model's moving statistics; a batch norm
        with gamma 0 therefore stays, and the sign of a negative gamma is applied behind the
        feature.
    """
    folds = [fold for fold in _folds(model) if _may_fold(fold, shown)]
    kernels = {fold.kernel.name: fold for fold in folds}
    norms = {fold.norm.name: fold for fold in folds}
    features: dict[str, Any] = {}

    def make_call(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.name in norms:
            fold = norms[call.name]
            return _signed(fold, args[0]) if fold.kernel.name in shown else args[0]
        if call.name in kernels:
            value = _folded_layer(kernels[call.name], args[0], call.name in shown)
        else:
            value = call.layer(*args, **kwargs)
        if call.name in shown:
            features[call.name] = value
        return value

    inputs = [
        keras.Input(t.shape[1:], dtype=t.dtype, name=n)
        for t, n in zip(model.inputs, model.input_names)
    ]
    predictions = graph.replay(model, inputs, make_call)
    inputs = inputs if len(inputs) > 1 else inputs[0]
    return graph.functional(inputs, {"predictions": predictions, "features": features})


def _folds(model: keras.Model) -> Iterator[_Fold]:
    readers = graph.readers(model)
    writers = {id(call.outputs[0]): call for call in graph.calls(model)}
    outputs = {id(tensor) for tensor in model.outputs}
    for norm in graph.calls(model):
        kernel = writers.get(id(norm.inputs[0]))
        if kernel is None or type(norm.layer) is not keras.layers.BatchNormalization:
            continue
        alone = len(readers[id(norm.inputs[0])]) == 1 and id(norm.inputs[0]) not in outputs
        if alone and _is_linear_kernel(kernel.layer) and _normalizes_channels(norm):
            yield _fold(kernel, norm)


def _is_linear_kernel(layer: keras.layers.Layer) -> bool:
    channels_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return bool(_channel_axes(layer)) and channels_last and roles.activation_name(layer) == "linear"


def _channel_axes(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Axes of the kernel along which the channels lie; none for a layer that has no kernel or one
    grid for all of it.
    """
    kernel = roles.KERNELS.get(type(layer))
    return () if kernel is None or kernel.axis is None else kernel.axis


def _normalizes_channels(norm: graph.Call) -> bool:
    rank = norm.inputs[0].shape.rank
    return [axis % rank for axis in np.ravel(norm.layer.axis)] == [rank - 1]


def _fold(kernel: graph.Call, norm: graph.Call) -> _Fold:
    layer = norm.layer
    variance = layer.moving_variance.numpy().astype(np.float64)
    gamma = layer.gamma.numpy().astype(np.float64) if layer.scale else np.ones_like(variance)
    beta = layer.beta.numpy() if layer.center else np.zeros_like(variance)
    slope = gamma / np.sqrt(variance + layer.epsilon)
    # Behind the batch norm the variance of a channel is gamma^2.
    smallest = min(variance.min(), np.square(gamma).min())
    return _Fold(kernel, norm, slope, beta - slope * layer.moving_mean.numpy(), smallest)


def _may_fold(fold: _Fold, shown: Mapping[str, float | None]) -> bool:
    if fold.norm.name in shown:
        return False
    if fold.kernel.name not in shown:
        return True
    least = shown[fold.kernel.name]
    return least is not None and 0 < least <= fold.variance


def _folded_layer(fold: _Fold, value: Any, is_shown: bool) -> Any:
    """`fold.kernel.layer` and batch norm in one; a feature's slopes are positive."""
    layer = fold.kernel.layer
    slope = np.abs(fold.slope) if is_shown else fold.slope
    offset = np.sign(fold.slope) * fold.offset if is_shown else fold.offset
    kernel = getattr(layer, roles.KERNELS[type(layer)].name).numpy()
    axes = _channel_axes(layer)
    along = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    bias = slope * layer.bias.numpy() if layer.use_bias else 0.0
    config = {**layer.get_config(), "name": fold.kernel.name, "use_bias": True, "trainable": False}
    folded = type(layer).from_config(config)
    result = folded(value)
    folded.set_weights([kernel * slope.reshape(along), offset + bias])
    return result


def _signed(fold: _Fold, value: Any) -> Any:
    """The batch norm's output of a feature with positive slopes."""
    if (fold.slope > 0).all():
        return value
    dtype = fold.norm.layer.get_config()["dtype"]
    signs = np.sign(fold.slope).tolist()
    return keras.layers.Rescaling(signs, name=f"{fold.norm.name}_signs", dtype=dtype)(value)
