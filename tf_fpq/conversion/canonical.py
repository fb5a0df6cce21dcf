"""The first step of quantization: a model in layers that are one integer operator each.

A float layer may do several things: a Dense layer with a softmax, a separable convolution, a sum of
three tensors. `canonical` writes them as the layers of `roles.py`, with the same weights and, up to
float rounding, the same outputs. The layer that holds the kernel keeps its name, so rules and the
teacher's features find it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.conversion import canonical_rules, normalization
from tf_fpq.conversion.rewriter import TRAINING, Rewrite, Rewriter
from tf_fpq.keras_compat import keras
from tf_fpq.roles import Role

layers = keras.layers

_ELEMENTWISE = (Role.AFFINE, Role.CLAMP, Role.FUNCTION, Role.FIXED_GRID)


def canonical(model: keras.Model) -> keras.Model:
    """Returns `model` in canonical layers.

    It is `model` itself if it is canonical already, else a new model without shared variables.

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
    result = graph.functional(
        inputs, graph.replay(model, tf.nest.flatten(inputs), make_call), name=model.name
    )
    rewriter.set_weights()
    return result


def _rewrite(
    layer: keras.layers.Layer, inputs: Sequence[Any], reads: Mapping[int, int]
) -> Rewrite | None:
    """How `layer`, called on those tensors, is written in canonical layers.

    None if it is a canonical layer.
    """
    if type(layer) in roles.KERNELS and roles.clamp(layer) is None:
        # One that is not supported stays, for the error to name the layer that the user knows.
        return (
            canonical_rules.split_activation
            if roles.activation_name(layer)
            in {*canonical_rules.ACTIVATIONS, *roles.ACTIVATION_ROLES}
            else None
        )
    if type(layer) is layers.Activation:
        return canonical_rules.ACTIVATIONS.get(roles.activation_name(layer))
    if type(layer) in _CHAINS and len(inputs) > 2:
        return _chain
    if (
        type(layer) is layers.ReLU
        and layer.negative_slope
        and not layer.threshold
        and layer.max_value is None
    ):
        return canonical_rules.leaky_relu
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
        return None if _follows_kernel(inputs[0], reads) else canonical_rules.affine
    return LAYERS.get(type(layer)) or _LAYERS_BY_NAME.get(type(layer).__name__)


def _follows_kernel(x: Any, reads: Mapping[int, int]) -> bool:
    """Whether `x` comes out of a kernel that an affine layer can fold into.

    It must be unclamped and have one reader only.
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
    """Whether every group of a grouped convolution is one channel.

    Its strides must be those that a depthwise convolution takes too.

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
        for key in ("kernel_size", "strides", "padding", "dilation_rate", *TRAINING)
    }
    config |= {
        "depthwise_regularizer": layer.kernel_regularizer,
        "depth_multiplier": kernel.shape[-1],
    }
    value = rewriter.make(layers.DepthwiseConv2D, layer.name, [kernel, *bias], **config)(x)
    return canonical_rules.activation_of(rewriter, layer, name, value)


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
    config = {key: getattr(layer, key) for key in ("filters", "data_format", *TRAINING)}
    config |= {
        f"kernel_{key}": getattr(layer, f"pointwise_{key}") for key in ("regularizer", "constraint")
    }
    mixed = rewriter.make(layers.Conv2D, layer.name, [pointwise, *bias], kernel_size=1, **config)(
        spread
    )
    return canonical_rules.activation_of(rewriter, layer, name, mixed)


def _custom_scale(rewriter: Rewriter, layer: Any, name: str, xs: Sequence[Any]) -> Any:
    """InceptionResNetV2's `CustomScaleLayer`: `x[0] + scale * x[1]`."""
    scaled = rewriter.make(layers.Rescaling, rewriter.name(name, "scale"), scale=layer.scale)(xs[1])
    return rewriter.make(layers.Add, name)([xs[0], scaled])


_CHAINS = (layers.Add, layers.Multiply, layers.Maximum, layers.Minimum)

# How layer classes are written; `tf_fpq.register_layer` adds rows.
LAYERS: dict[type, Rewrite] = {
    layers.SeparableConv2D: _separable,
    layers.Average: _average,
    layers.Conv1D: canonical_rules.conv1d,
    layers.MaxPooling1D: canonical_rules.pool1d(layers.MaxPooling2D),
    layers.AveragePooling1D: canonical_rules.pool1d(layers.AveragePooling2D),
    layers.GlobalMaxPooling1D: canonical_rules.global_pool1d(layers.GlobalMaxPooling2D),
    layers.GlobalAveragePooling1D: canonical_rules.global_pool1d(layers.GlobalAveragePooling2D),
    layers.ZeroPadding1D: canonical_rules.sides1d(layers.ZeroPadding2D, "padding"),
    layers.Cropping1D: canonical_rules.sides1d(layers.Cropping2D, "cropping"),
    layers.UpSampling1D: canonical_rules.upsampling1d,
    layers.Cropping3D: canonical_rules.cropping3d,
    layers.GlobalMaxPooling3D: canonical_rules.global_pool3d(layers.GlobalMaxPooling2D),
    layers.GlobalAveragePooling3D: canonical_rules.global_pool3d(layers.GlobalAveragePooling2D),
}

_LAYERS_BY_NAME: dict[str, Rewrite] = {"CustomScaleLayer": _custom_scale}
