"""From Keras layers to TFLite operators: one function per layer class.

`start` makes the operator that a layer begins; `join` adds an affine layer or a clamp to the
operator before it.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from tf_fpq import roles
from tf_fpq.conversion import normalization
from tf_fpq.keras_compat import keras
from tflite_export.deployed import Tensor
from tflite_export.lowering import folding
from tflite_export.lowering.kernel import Kernel
from tflite_export.lowering.network import Network, Start
from tflite_export.lowering.records import UNBOUNDED, Codes, Pending

layers = keras.layers


def join(layer: keras.layers.Layer, pending: Pending) -> Pending:
    """Adds an affine layer or a clamp to the operator before it."""
    if roles.role(layer) is roles.Role.AFFINE and pending.kernel is not None:
        return dataclasses.replace(
            pending,
            kernel=pending.kernel.fold(*folding.affine(layer), folding.offset_variable(layer)),
        )
    bounds = roles.clamp(layer)
    if roles.role(layer) is not roles.Role.CLAMP or bounds is None:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) reads a float tensor; quantize the"
            " model again."
        )
    return dataclasses.replace(pending, clamp=bounds) if bounds != UNBOUNDED else pending


def start(
    builder: Network, layer: keras.layers.Layer, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes | Pending:
    """The operator that `layer` begins, or the tensor it moves codes to.

    Args:
      builder: What the operator and its tensors are added to.
      layer: The layer, wrapped or not.
      name: Name of the call.
      sources: What it reads.
      output: The student's symbolic output, for its shape.

    Raises:
      ValueError: If the layer has no operator.
    """
    inner = roles.inner(layer)
    function = STARTS.get(type(inner)) or _STARTS_BY_NAME.get(type(inner).__name__)
    if function is None:
        raise ValueError(
            f"Layer {name!r} ({type(inner).__name__}) has no TFLite operator here;"
            " tflite_export.register_operator gives it one, or write it in Keras layers"
            " (tf_fpq.register_layer)."
        )
    return function(builder, layer, name, sources, output)


def _shape(output: Any) -> tuple[int, ...]:
    return (1, *output.shape[1:])


def _any_batch(output: Any) -> np.ndarray:
    """The shape as an operator's argument: -1 is however many images there are."""
    return np.array([-1, *output.shape[1:]])


def _window(layer: Any) -> dict[str, Any]:
    return {"strides": tuple(layer.strides), "padding": layer.padding.upper()}


def _pool_window(layer: Any) -> dict[str, Any]:
    return {**_window(layer), "filter": tuple(layer.pool_size)}


def _clamp(layer: Any) -> tuple[float, float]:
    return roles.clamp(roles.inner(layer)) or UNBOUNDED


def _conv(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    inner = roles.inner(layer)
    kernel = folding.quantized_kernel(layer, name, lambda codes: codes.transpose(3, 0, 1, 2), 0)
    options = {**_window(inner), "dilations": tuple(inner.dilation_rate)}
    return Pending("CONV_2D", sources, options, _clamp(layer), kernel)


def _depthwise(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    inner = roles.inner(layer)
    kernel = folding.quantized_kernel(
        layer, name, lambda codes: codes.reshape(1, *codes.shape[:2], -1), 3
    )
    options = {
        **_window(inner),
        "dilations": tuple(inner.dilation_rate),
        "depth_multiplier": inner.depth_multiplier,
    }
    return Pending("DEPTHWISE_CONV_2D", sources, options, _clamp(layer), kernel)


def _transpose_conv(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    options = _window(roles.inner(layer))

    def transpose(codes: np.ndarray) -> np.ndarray:
        return folding.at_least_strides(codes, options["strides"]).transpose(2, 0, 1, 3)

    kernel = folding.quantized_kernel(layer, name, transpose, 0)
    return Pending(
        "TRANSPOSE_CONV",
        sources,
        options,
        _clamp(layer),
        kernel,
        leading=(np.array(_shape(output)),),
    )


def _dense(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    kernel = folding.quantized_kernel(layer, name, np.transpose, 0)
    return Pending(
        "FULLY_CONNECTED", sources, {"keep_num_dims": len(output.shape) > 2}, _clamp(layer), kernel
    )


def _affine(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    """A 1x1 depthwise convolution with one exact weight per channel."""
    shape = _shape(output)
    if len(shape) != 4:
        raise ValueError(
            f"Layer {name!r} ({type(layer).__name__}) scales a tensor of shape {shape}; only [1,"
            " height, width, channels] is supported."
        )
    kernel = folding.unit_kernel(name, shape[-1]).fold(*folding.affine(layer))
    return Pending(
        "DEPTHWISE_CONV_2D", sources, {"padding": "VALID", "depth_multiplier": 1}, kernel=kernel
    )


def _activation(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes | Pending:
    kind = {"softmax": "SOFTMAX", "sigmoid": "LOGISTIC", "tanh": "TANH", "gelu": "GELU"}.get(
        roles.activation_name(layer)
    )
    if kind:
        return Pending(kind, sources, {"beta": 1.0} if kind == "SOFTMAX" else {}, clamp=UNBOUNDED)
    bounds = _clamp(layer)
    if bounds == UNBOUNDED:
        return Pending("QUANTIZE", sources, monotone=True)
    return Pending("RELU6" if bounds == (0.0, 6.0) else "RELU", sources, clamp=bounds)


def _arithmetic(kind: str) -> Start:
    def function(
        builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
    ) -> Pending:
        return Pending(kind, sources, monotone=kind != "SUB")

    return function


def _mean(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    return Pending(
        "MEAN",
        sources,
        {"keep_dims": bool(layer.keepdims)},
        constants=(np.array([1, 2]),),
        monotone=True,
    )


def _channel_mean(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    """A Dense of one unit with equal weights.

    It is exact and runs on XNNPACK, unlike a MEAN over channels.
    """
    channels = builder.tensors[sources[0].name].shape[-1]
    codes = np.ones((1, channels), np.int8)
    kernel = Kernel(f"{name}_kernel", codes, 0, np.array([1.0 / channels]), np.zeros(1))
    return Pending(
        "FULLY_CONNECTED", sources, {"keep_num_dims": True}, kernel=kernel, monotone=True
    )


def _reciprocal_root(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    """RSQRT, which has no epsilon of its own.

    Where epsilon is half a step of the variance's grid or more, an ADD brings it in, on a grid of
    that sum.
    """
    epsilon, variance = np.float32(roles.inner(layer).epsilon), builder.tensors[sources[0].name]
    if epsilon >= variance.one_scale / 2 and variance.zero_point == -128:
        scale = np.asarray(variance.one_scale + epsilon / np.float32(255), np.float32)
        total = dataclasses.replace(variance, name=f"{name}_variance", scale=scale)
        constant = Tensor(
            "epsilon",
            (1,),
            "int8",
            np.asarray(epsilon / np.float32(127)),
            0,
            None,
            np.array([127], np.int8),
        )
        return Pending(
            "RSQRT",
            (builder.add(Pending("ADD", sources, constants=(constant,)), total),),
            clamp=(0.0, math.inf),
        )
    return Pending("RSQRT", sources, clamp=(0.0, math.inf))


def _leaky_relu(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    return Pending("LEAKY_RELU", sources, {"alpha": float(layer.alpha)}, monotone=True)


def _prelu(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    ((_, weight, quantizer, variables),) = layer.quantized_weights()
    codes = quantizer.codes(weight, variables).numpy().astype(np.int8)
    scale = np.asarray(quantizer.grid(variables)[0].numpy(), np.float32).reshape(())
    return Pending(
        "PRELU", sources, constants=(Tensor("alpha", codes.shape, "int8", scale, 0, None, codes),)
    )


def _average_pool(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Pending:
    return Pending("AVERAGE_POOL_2D", sources, _pool_window(layer), monotone=True)


def _resize(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes | Pending:
    """Keras resizes with half-pixel centers (tf.image.resize)."""
    size, options = np.array(_shape(output)[1:3]), {"half_pixel_centers": True}
    if layer.interpolation == "nearest":
        return builder.add_moved(
            "RESIZE_NEAREST_NEIGHBOR", name, sources, _shape(output), options, (size,)
        )
    return Pending("RESIZE_BILINEAR", sources, options, constants=(size,), monotone=True)


def _max_pool(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    return builder.add_moved("MAX_POOL_2D", name, sources, _shape(output), _pool_window(layer))


def _global_max(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    options = {"keep_dims": bool(layer.keepdims)}
    return builder.add_moved(
        "REDUCE_MAX", name, sources, _shape(output), options, (np.array([1, 2]),)
    )


def _reshape(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    return builder.add_moved(
        "RESHAPE", name, sources, _shape(output), constants=(_any_batch(output),)
    )


def _permute(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    return builder.add_moved(
        "TRANSPOSE", name, sources, _shape(output), constants=(np.array([0, *layer.dims]),)
    )


def _pad(builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any) -> Codes:
    paddings = np.array([(0, 0), *layer.padding, (0, 0)])
    return builder.add_moved("PAD", name, sources, _shape(output), constants=(paddings,))


def _crop(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    begin = np.array([0, layer.cropping[0][0], layer.cropping[1][0], 0])
    return builder.add_moved(
        "SLICE", name, sources, _shape(output), constants=(begin, _any_batch(output))
    )


def _joint(kind: str) -> Start:
    def function(
        builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
    ) -> Codes:
        options = {"axis": int(layer.axis) % len(_shape(output))} if kind == "CONCATENATION" else {}
        return builder.add_moved(kind, name, sources, _shape(output), options)

    return function


def _nothing(
    builder: Network, layer: Any, name: str, sources: tuple[Codes, ...], output: Any
) -> Codes:
    return sources[0]


# By layer class; `tflite_export.register_operator` adds rows.
STARTS: dict[type, Start] = {
    layers.Conv2D: _conv,
    layers.DepthwiseConv2D: _depthwise,
    layers.Conv2DTranspose: _transpose_conv,
    layers.Dense: _dense,
    **dict.fromkeys((layers.BatchNormalization, layers.Rescaling, layers.Normalization), _affine),
    **dict.fromkeys((layers.ReLU, layers.Activation, layers.Softmax), _activation),
    layers.Add: _arithmetic("ADD"),
    layers.Subtract: _arithmetic("SUB"),
    layers.Multiply: _arithmetic("MUL"),
    layers.GlobalAveragePooling2D: _mean,
    normalization.ChannelMean: _channel_mean,
    normalization.ReciprocalRoot: _reciprocal_root,
    normalization.ChannelAffine: _affine,
    layers.LeakyReLU: _leaky_relu,
    layers.PReLU: _prelu,
    layers.AveragePooling2D: _average_pool,
    **dict.fromkeys((layers.Resizing, layers.UpSampling2D), _resize),
    layers.MaxPooling2D: _max_pool,
    layers.GlobalMaxPooling2D: _global_max,
    **dict.fromkeys((layers.Flatten, layers.Reshape), _reshape),
    layers.Permute: _permute,
    layers.ZeroPadding2D: _pad,
    layers.Cropping2D: _crop,
    layers.Concatenate: _joint("CONCATENATION"),
    layers.Maximum: _joint("MAXIMUM"),
    layers.Minimum: _joint("MINIMUM"),
    **dict.fromkeys(
        (
            layers.Dropout,
            layers.SpatialDropout2D,
            layers.GaussianNoise,
            layers.GaussianDropout,
            layers.ActivityRegularization,
        ),
        _nothing,
    ),
}

_STARTS_BY_NAME: dict[str, Start] = {
    "LayerScale": _affine,
    "Division": _affine,
}
