"""The first step of quantization: a model in layers that are one integer operator each.

A float layer may do several things: a Dense layer with a softmax, a separable convolution, a sum of
three tensors. `canonical` writes them as the layers of `roles.py`, with the same weights and, up to
float rounding, the same outputs. The layer that holds the kernel keeps its name, so rules and the
teacher's features find it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.conversion import normalization
from tf_fpq.keras_compat import keras
from tf_fpq.roles import Role

layers = keras.layers

# What a rewritten convolution keeps for training.
_TRAINING = ("use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer", "trainable")

_ELEMENTWISE = (Role.AFFINE, Role.CLAMP, Role.FUNCTION, Role.FIXED_GRID)

Rewrite = Callable[["Rewriter", keras.layers.Layer, str, Any], Any]


class Rewriter:
    """Makes each new layer once, however often the old one is called, and remembers the weights it
    starts with.
    """

    def __init__(self, model: keras.Model) -> None:
        self._made: dict[str, keras.layers.Layer] = {}
        self._weights: dict[str, Sequence[np.ndarray]] = {}
        self._copied: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []
        self._two_dimensional: dict[int, tuple[Any, Any]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._taken = {layer.name for layer in model.layers} | {
            call.name for call in graph.calls(model)
        }

    def name(self, name: str, part: str) -> str:
        """Name of a new layer that does `part` of what the layer or call `name` did; no other layer
        has it.
        """
        if (name, part) not in self._names:
            self._names[name, part] = graph.unique_name(f"{name}_{part}", self._taken)
        return self._names[name, part]

    def make(
        self,
        layer_class: type,
        name: str,
        weights: Sequence[np.ndarray] | None = None,
        **config: Any,
    ) -> Any:
        """The layer `name`, made at the first call."""
        if name not in self._made:
            self._made[name] = layer_class(name=name, dtype="float32", **config)
            if weights is not None:
                self._weights[name] = weights
        return self._made[name]

    def copy(self, layer: keras.layers.Layer, **changes: Any) -> Any:
        """A copy of `layer` with its weights and some arguments changed."""
        if layer.name not in self._made:
            self._made[layer.name] = graph.copy_layer(layer, **changes)
            self._copied.append((layer, self._made[layer.name]))
        return self._made[layer.name]

    def set_weights(self) -> None:
        """Gives all made layers their weights; they are built by now."""
        for source, target in self._copied:
            graph.copy_weights(source, target)
        for name, weights in self._weights.items():
            self._made[name].set_weights(weights)

    def in_two_dimensions(self, name: str, x: Any, apply: Callable[[Any], Any]) -> Any:
        """Applies a 2D layer to a tensor of rank 2 or 3, whose last axes become width and channels.

        The tensor that comes out is remembered in its 2D form too, so that a batch norm after a
        Conv1D follows the convolution directly.
        """
        value = self.two_dimensional(x)
        if value is None:
            shape = (*[1] * (4 - x.shape.rank), *x.shape[1:])
            value = self.make(layers.Reshape, self.name(name, "as_image"), target_shape=shape)(x)
        value = apply(value)
        if value.shape.rank != 4:
            return value
        shape = tuple(value.shape[2 if x.shape.rank == 3 else 3 :])
        flat = self.make(layers.Reshape, self.name(name, "from_image"), target_shape=shape)(value)
        self._two_dimensional[id(flat)] = (flat, value)
        return flat

    def two_dimensional(self, x: Any) -> Any | None:
        """The 2D form of a tensor that `in_two_dimensions` returned."""
        return self._two_dimensional.get(id(x), (None, None))[1]


def canonical(model: keras.Model) -> keras.Model:
    """Returns `model` in canonical layers: itself if it is canonical already, else a new model
    without shared variables.

    Args:
      model: A flat functional model.
    """
    reads = {key: len(readers) for key, readers in graph.readers(model).items()}
    reads.update(
        (id(tensor), 2) for tensor in model.outputs
    )  # a tensor that must exist is none to fold into
    rewrites = {call.name: _rewrite(call.layer, call.inputs, reads) for call in graph.calls(model)}
    if not any(rewrites.values()):
        return model
    rewriter = Rewriter(model)

    def make_call(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewrite = rewrites[call.name]
        if rewrite is not None:
            return rewrite(rewriter, call.layer, call.name, args[0])
        copy = rewriter.copy(call.layer)
        if _is_elementwise(call.layer) and rewriter.two_dimensional(args[0]) is not None:
            return rewriter.in_two_dimensions(call.name, args[0], copy)
        return copy(*args, **kwargs)

    inputs = graph.new_inputs(model)
    result = keras.Model(
        inputs, graph.replay(model, tf.nest.flatten(inputs), make_call), name=model.name
    )
    rewriter.set_weights()
    return result


def register(layer_class: type, rewrite: Rewrite) -> None:
    """Says how a layer class of your own is written in layers that are supported.

    Args:
      layer_class: The class; subclasses are classes of their own.
      rewrite: `rewrite(rewriter, layer, name, x)` returns what `layer(x)` returns, made by
        `rewriter.make(layer_class, name, weights, **config)`, where `weights` are the arrays the
        new layer starts with. Names are `name`, that of the call, and `rewriter.name(name, part)`;
        a layer with a kernel should have `layer.name`, which rules and the teacher's features go
        by.
    """
    _LAYERS[layer_class] = rewrite


def _rewrite(
    layer: keras.layers.Layer, inputs: Sequence[Any], reads: Mapping[int, int]
) -> Rewrite | None:
    """How `layer`, called on those tensors, is written in canonical layers, or None if it is
    one.
    """
    if type(layer) in roles.KERNELS and roles.clamp(layer) is None:
        # One that is not supported stays, for the error to name the layer that the user knows.
        return (
            _split_activation
            if roles.activation_name(layer) in {*_ACTIVATIONS, *roles.ACTIVATION_ROLES}
            else None
        )
    if type(layer) is layers.Activation:
        return _ACTIVATIONS.get(roles.activation_name(layer))
    if type(layer) in _CHAINS and len(inputs) > 2:
        return _chain
    if (
        type(layer) is layers.ReLU
        and layer.negative_slope
        and not layer.threshold
        and layer.max_value is None
    ):
        return _leaky_relu
    if type(layer) is layers.Conv2D and _is_depthwise(layer, inputs[0]):
        return _depthwise
    if type(layer) is layers.LayerNormalization:
        return (
            normalization.layer_normalization
            if normalization.is_along_channels(layer, inputs[0].shape.rank)
            else None
        )
    if (
        roles.role(layer) is Role.AFFINE
        and inputs[0].shape.rank < 4
        and roles.problem(layer) is None
    ):
        return None if _follows_kernel(inputs[0], reads) else _affine
    return _LAYERS.get(type(layer)) or _LAYERS_BY_NAME.get(type(layer).__name__)


def _follows_kernel(x: Any, reads: Mapping[int, int]) -> bool:
    """Whether `x` comes, unclamped and for one reader only, out of a kernel that an affine layer
    can fold into.
    """
    layer = graph.producer(x)
    return (
        roles.role(layer) is Role.KERNEL
        and roles.activation_name(layer) == "linear"
        and reads[id(x)] == 1
    )


def _is_elementwise(layer: keras.layers.Layer) -> bool:
    """Whether `layer` computes each value by itself, in whatever shape."""
    return roles.role(layer) in _ELEMENTWISE and type(layer) not in (layers.PReLU, layers.Softmax)


def _affine(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """An affine operator of its own is a depthwise convolution, which takes `[batch, height, width,
    channels]`.
    """
    axis = {"axis": -1} if getattr(layer, "axis", ()) else {}
    return rewriter.in_two_dimensions(name, x, rewriter.copy(layer, **axis))


def _identity(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """`Activation("linear")` would put its input on a new grid for nothing."""
    return x


def _activate(rewriter: Rewriter, function: Any, name: str, x: Any) -> Any:
    """Applies an activation function, itself in canonical layers."""
    layer = layers.Activation(function, name=name)
    rewrite = _ACTIVATIONS.get(roles.activation_name(layer))
    if rewrite is not None:
        return rewrite(rewriter, layer, name, x)
    return rewriter.make(layers.Activation, name, activation=function)(x)


def _split_activation(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    value = rewriter.copy(layer, activation="linear")(x)
    return _activation_of(rewriter, layer, name, value)


def _activation_of(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """The activation function of `layer` as a layer of its own."""
    function = roles.activation_name(layer)
    return (
        x
        if function == "linear"
        else _activate(rewriter, layer.activation, rewriter.name(name, function), x)
    )


def _swish(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    gate = rewriter.make(layers.Activation, rewriter.name(name, "sigmoid"), activation="sigmoid")(x)
    return rewriter.make(layers.Multiply, name)([x, gate])


def _hard_sigmoid(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    line = rewriter.make(layers.Rescaling, rewriter.name(name, "line"), scale=0.2, offset=0.5)(x)
    return rewriter.make(layers.ReLU, name, max_value=1.0)(line)


def _leaky_relu(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    return rewriter.make(layers.LeakyReLU, layer.name, alpha=float(layer.negative_slope))(x)


def _chain(rewriter: Rewriter, layer: Any, name: str, xs: Sequence[Any]) -> Any:
    """A sum, product, maximum or minimum of many tensors as one of two, again and again."""
    value = xs[0]
    for index, x in enumerate(xs[1:]):
        last = index == len(xs) - 2
        value = rewriter.make(type(layer), name if last else rewriter.name(name, str(index)))(
            [value, x]
        )
    return value


def _average(rewriter: Rewriter, layer: Any, name: str, xs: Sequence[Any]) -> Any:
    total = _chain(rewriter, layers.Add(), rewriter.name(name, "sum"), xs)
    return rewriter.make(layers.Rescaling, name, scale=1.0 / len(xs))(total)


def _is_depthwise(layer: Any, x: Any) -> bool:
    """Whether every group of a grouped convolution is one channel, at strides that a depthwise
    convolution takes too.

    A kernel constraint acts along axes that a depthwise kernel does not have.
    """
    even = layer.strides[0] == layer.strides[1] and 1 in (
        layer.strides[0],
        max(layer.dilation_rate),
    )
    even = even and layer.kernel_constraint is None
    return layer.data_format == "channels_last" and 1 < layer.groups == x.shape[-1] and even


def _depthwise(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """Output channel `c * multiplier + m` of either layer reads input channel `c`."""
    kernel, *bias = layer.get_weights()
    kernel = kernel.reshape(*kernel.shape[:2], layer.groups, -1)
    config = {
        key: getattr(layer, key)
        for key in ("kernel_size", "strides", "padding", "dilation_rate", *_TRAINING)
    }
    config |= {
        "depthwise_regularizer": layer.kernel_regularizer,
        "depth_multiplier": kernel.shape[-1],
    }
    value = rewriter.make(layers.DepthwiseConv2D, layer.name, [kernel, *bias], **config)(x)
    return _activation_of(rewriter, layer, name, value)


def _separable(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    """Depthwise, then a 1x1 convolution that has the layer's name."""
    depthwise, pointwise, *bias = layer.get_weights()
    kept = (
        "kernel_size",
        "strides",
        "padding",
        "dilation_rate",
        "depth_multiplier",
        "data_format",
        "trainable",
    )
    config = {
        key: getattr(layer, key) for key in (*kept, "depthwise_regularizer", "depthwise_constraint")
    }
    spread_name = rewriter.name(layer.name, "depthwise")
    spread = rewriter.make(
        layers.DepthwiseConv2D, spread_name, [depthwise], use_bias=False, **config
    )(x)
    config = {key: getattr(layer, key) for key in ("filters", "data_format", *_TRAINING)}
    config |= {
        f"kernel_{key}": getattr(layer, f"pointwise_{key}") for key in ("regularizer", "constraint")
    }
    mixed = rewriter.make(layers.Conv2D, layer.name, [pointwise, *bias], kernel_size=1, **config)(
        spread
    )
    return _activation_of(rewriter, layer, name, mixed)


def _conv1d(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    if layer.kernel_constraint is not None:
        raise ValueError(
            f"Layer {layer.name!r} has a kernel_constraint along axes that its form as an integer"
            " operator, a 2D convolution, does not have; remove it."
        )
    kernel, *bias = layer.get_weights()
    config = {
        key: getattr(layer, key)
        for key in ("filters", "groups", "padding", "kernel_regularizer", *_TRAINING)
    }
    config |= {
        key: (1, *getattr(layer, key)) for key in ("kernel_size", "strides", "dilation_rate")
    }
    causal = layer.padding == "causal"
    if causal:
        config["padding"] = "valid"

    def apply(value: Any) -> Any:
        if causal:
            sides = ((0, 0), (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0))
            value = rewriter.make(
                layers.ZeroPadding2D, rewriter.name(layer.name, "causal"), padding=sides
            )(value)
        value = rewriter.make(layers.Conv2D, layer.name, [kernel[None], *bias], **config)(value)
        return _activation_of(rewriter, layer, name, value)

    return rewriter.in_two_dimensions(name, x, apply)


def _pool1d(layer_class: type) -> Rewrite:
    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        config = {
            "pool_size": (1, *layer.pool_size),
            "strides": (1, *layer.strides),
            "padding": layer.padding,
        }
        return rewriter.in_two_dimensions(name, x, rewriter.make(layer_class, layer.name, **config))

    return rewrite


def _global_pool1d(layer_class: type) -> Rewrite:
    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        return rewriter.in_two_dimensions(
            name, x, rewriter.make(layer_class, layer.name, keepdims=layer.keepdims)
        )

    return rewrite


def _sides1d(layer_class: type, argument: str) -> Rewrite:
    def rewrite(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
        sides = {argument: ((0, 0), tuple(getattr(layer, argument)))}
        return rewriter.in_two_dimensions(name, x, rewriter.make(layer_class, layer.name, **sides))

    return rewrite


def _upsampling1d(rewriter: Rewriter, layer: Any, name: str, x: Any) -> Any:
    return rewriter.in_two_dimensions(
        name, x, rewriter.make(layers.UpSampling2D, layer.name, size=(1, layer.size))
    )


def _custom_scale(rewriter: Rewriter, layer: Any, name: str, xs: Sequence[Any]) -> Any:
    """InceptionResNetV2's `CustomScaleLayer`: `x[0] + scale * x[1]`."""
    scaled = rewriter.make(layers.Rescaling, rewriter.name(name, "scale"), scale=layer.scale)(xs[1])
    return rewriter.make(layers.Add, name)([xs[0], scaled])


_ACTIVATIONS: dict[str, Rewrite] = {
    "linear": _identity,
    "swish": _swish,
    "silu": _swish,
    "hard_sigmoid": _hard_sigmoid,
}

_CHAINS = (layers.Add, layers.Multiply, layers.Maximum, layers.Minimum)

_LAYERS: dict[type, Rewrite] = {
    layers.SeparableConv2D: _separable,
    layers.Average: _average,
    layers.Conv1D: _conv1d,
    layers.MaxPooling1D: _pool1d(layers.MaxPooling2D),
    layers.AveragePooling1D: _pool1d(layers.AveragePooling2D),
    layers.GlobalMaxPooling1D: _global_pool1d(layers.GlobalMaxPooling2D),
    layers.GlobalAveragePooling1D: _global_pool1d(layers.GlobalAveragePooling2D),
    layers.ZeroPadding1D: _sides1d(layers.ZeroPadding2D, "padding"),
    layers.Cropping1D: _sides1d(layers.Cropping2D, "cropping"),
    layers.UpSampling1D: _upsampling1d,
}

_LAYERS_BY_NAME: dict[str, Rewrite] = {"CustomScaleLayer": _custom_scale}
