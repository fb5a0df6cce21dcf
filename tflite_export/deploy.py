"""From a trained student to its deployed model: batch norm folded into integer weights, biases on their int32 grid.

A convolution, the batch norm and the activation after it become one operator. The fold only rescales: with
`f = gamma / sqrt(variance + epsilon)`, channel `c` keeps its codes (negated where `f < 0`), its scale is `step_size * |f|` and
its bias `beta + f * (b - mean)`, rounded to multiples of `input scale * weight scale`. That rounding, and the integer
arithmetic of the runtime, are all that separates student and file.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras
from tf_fpq.layers import QuantizeActivation, QuantizedLayer
from tflite_export.deployed import DeployedModel, Operator, Tensor

layers = keras.layers

# The highest code of every grid sits at the container's highest code, so its saturation is the grid's upper clip.
INT8_MAX = 127
INT32_MAX = 2**31 - 1

FUSED = {"linear": "NONE", "relu": "RELU", "relu6": "RELU6"}


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of the deployed graph; `nonnegative` if none of its values is below zero."""

    name: str
    nonnegative: bool = False


@dataclasses.dataclass(frozen=True)
class Pending:
    """An operator whose output grid is not known yet: the next `QuantizeActivation` brings it.

    Attributes:
      kind: TFLite's operator name.
      sources: Its input tensors.
      options: Its options.
      activation: Fused activation, "linear", "relu" or "relu6".
      kernel: Weights of a convolution or Dense, or None.
      constants: Constant int32 inputs after the sources, such as the axes of a mean.
    """

    kind: str
    sources: tuple[Codes, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    activation: str = "linear"
    kernel: "Kernel | None" = None
    constants: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Integer weights in TFLite's layout with their channel scales (float64), and the float bias of each channel."""

    name: str
    codes: np.ndarray
    axis: int
    scale: np.ndarray
    bias: np.ndarray

    def fold(self, factor: np.ndarray, offset: np.ndarray) -> "Kernel":
        """The kernel whose output is `factor * output + offset`. A channel with factor 0 keeps a harmless scale and no codes."""
        dead = factor == 0
        scale = np.where(dead, self.scale, self.scale * np.abs(factor))
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        codes = self.codes * np.sign(factor).astype(self.codes.dtype).reshape(shape)
        return dataclasses.replace(self, codes=codes, scale=scale, bias=self.bias * factor + offset)


def deploy(student: keras.Model) -> DeployedModel:
    """Builds the deployed model of `student`.

    Raises:
      ValueError: If the student was not made by `tf_fpq.quantize_model`, or a layer of it is not quantized.
    """
    return _Builder(student).build()


class _Builder:
    """Walks a student once and collects tensors and operators."""

    def __init__(self, student: keras.Model):
        self._student = student
        self._tensors: dict[str, Tensor] = {}
        self._operators: list[Operator] = []
        self._values: dict[int, Codes | Pending | None] = {id(tensor): None for tensor in student.inputs}
        self._inputs: list[str] = []

    def build(self) -> DeployedModel:
        for call in graph.calls(self._student):
            sources = [self._values[id(tensor)] for tensor in call.inputs]
            self._values[id(call.outputs[0])] = self._visit(call, sources)
        outputs = [self._output(tensor) for tensor in self._student.outputs]
        return DeployedModel(
            self._tensors, tuple(self._operators), tuple(self._inputs), tuple(outputs), self._student.name
        )

    def _output(self, tensor: Any) -> str:
        value = self._values[id(tensor)]
        if not isinstance(value, Codes):
            raise ValueError(
                f"{self._student.name!r} is not a quantized student: an output of it is on no integer grid."
            )
        return value.name

    def _visit(self, call: graph.Call, sources: list[Any]) -> Codes | Pending:
        layer, name = call.layer, graph.call_name(call)
        if isinstance(layer, QuantizeActivation):
            return self._quantize(layer, name, sources[0], call.outputs[0])
        handler = _HANDLERS.get(type(roles.inner(layer)))
        if handler is None:
            raise ValueError(f"Layer {name!r} ({type(layer).__name__}) cannot be exported.")
        if isinstance(sources[0], Pending):
            return handler(self, layer, name, sources[0], call.outputs[0])
        if not all(isinstance(source, Codes) for source in sources):
            raise ValueError(f"Layer {name!r} reads a float tensor; make the student with tf_fpq.quantize_model.")
        return handler(self, layer, name, tuple(sources), call.outputs[0])

    def _quantize(self, layer: QuantizeActivation, name: str, value: Any, output: Any) -> Codes:
        """Gives a pending operator, or a model input, the grid of `layer`."""
        step_size, zero_point = (
            np.asarray(part, np.float32) for part in layer.quantizer.grid(layer.variables_of_quantizer)
        )
        spec = layer.quantizer.spec
        lowest = INT8_MAX - (spec.qmax - spec.qmin)
        grid = {"dtype": "int8", "scale": step_size.reshape(()), "zero_point": INT8_MAX - spec.qmax + int(zero_point)}
        tensor = Tensor(name, _shape(output), **grid)
        if value is None:
            self._inputs.append(name)
            self._tensors[name] = tensor
            return self._clipped(name, tensor, lowest) if lowest > -128 else Codes(name)
        if isinstance(value, Codes):
            raise ValueError(f"Layer {name!r} quantizes a tensor that is quantized already.")
        nonnegative = value.activation != "linear" or (
            value.kernel is None and all(s.nonnegative for s in value.sources)
        )
        needs_clip = lowest > -128 and not nonnegative
        inner = dataclasses.replace(tensor, name=f"{name}_unclipped") if needs_clip else tensor
        self._tensors[inner.name] = inner
        self._emit(value, inner)
        return self._clipped(name, tensor, lowest) if needs_clip else Codes(name, nonnegative)

    def _clipped(self, name: str, tensor: Tensor, lowest: int) -> Codes:
        """Adds the lower clip that an int8 container does not give to a signed low-bit grid."""
        source = tensor.name if name in self._inputs else f"{name}_unclipped"
        target = f"{name}_clipped" if name in self._inputs else name
        bound = f"{name}_lowest"
        self._tensors[bound] = dataclasses.replace(tensor, name=bound, shape=(), data=np.array(lowest, np.int8))
        self._tensors[target] = dataclasses.replace(tensor, name=target)
        self._operators.append(Operator("MAXIMUM", (source, bound), (target,)))
        return Codes(target)

    def _emit(self, pending: Pending, output: Tensor) -> None:
        inputs = tuple(source.name for source in pending.sources)
        if pending.kernel is not None:
            inputs += self._add_kernel(pending.kernel, self._tensors[inputs[0]])
        inputs += self._add_constants(output.name, pending.constants)
        options = dict(pending.options)
        if pending.kind in _FUSING:
            options["activation"] = FUSED[pending.activation]
        self._operators.append(Operator(pending.kind, inputs, (output.name,), options))

    def _add_kernel(self, kernel: Kernel, source: Tensor) -> tuple[str, str]:
        """Adds the constant tensors of weights and bias and returns their names."""
        scale = kernel.scale.astype(np.float32)
        weights = Tensor(kernel.name, kernel.codes.shape, "int8", scale, 0, kernel.axis, kernel.codes.astype(np.int8))
        bias_scale = (source.scale * scale).astype(np.float32)
        bias = np.rint(kernel.bias / (np.float64(source.scale) * scale.astype(np.float64)))
        if np.abs(bias).max() > INT32_MAX:
            channel = int(np.abs(bias).argmax())
            raise ValueError(
                f"The bias of channel {channel} of {kernel.name!r} does not fit int32 on its grid: value {kernel.bias[channel]:.3g} in "
                f"steps of {bias_scale[channel]:.3g}. The channel's weights are next to nothing; retrain, or set them to zero."
            )
        bias_name = f"{kernel.name}_bias"
        self._tensors[weights.name] = weights
        self._tensors[bias_name] = Tensor(bias_name, bias.shape, "int32", bias_scale, 0, 0, bias.astype(np.int32))
        return weights.name, bias_name

    def _add_constants(self, name: str, constants: tuple[np.ndarray, ...]) -> tuple[str, ...]:
        names = tuple(f"{name}_constant_{index}" for index in range(len(constants)))
        for constant_name, data in zip(names, constants, strict=True):
            self._tensors[constant_name] = Tensor(constant_name, data.shape, "int32", data=data.astype(np.int32))
        return names

    def add_moved(
        self,
        kind: str,
        name: str,
        source: Codes,
        output: Any,
        options: dict[str, Any] | None = None,
        constants: tuple[np.ndarray, ...] = (),
    ) -> Codes:
        """Adds an operator that only moves codes: output on the input's grid."""
        grid = self._tensors[source.name]
        self._tensors[name] = Tensor(name, _shape(output), grid.dtype, grid.scale, grid.zero_point)
        inputs = (source.name, *self._add_constants(name, constants))
        self._operators.append(Operator(kind, inputs, (name,), options or {}))
        return Codes(name, source.nonnegative)


def _shape(tensor: Any) -> tuple[int, ...]:
    """Static shape with batch 1."""
    shape = (1, *tensor.shape[1:])
    if None in shape:
        raise ValueError(
            f"{tensor.name!r} has no static shape: {tuple(tensor.shape)}. Give the model's input a fixed size."
        )
    return shape


def _kernel(layer: QuantizedLayer, transpose: Callable[[np.ndarray], np.ndarray], axis: int) -> Kernel:
    """Integer weights of a quantized layer in TFLite's layout."""
    if not isinstance(layer, QuantizedLayer):
        raise ValueError(
            f"Layer {layer.name!r} has a float kernel: no rule matched it. Add a rule for it and quantize again."
        )
    ((_, weight, quantizer, variables),) = layer.quantized_weights()
    codes = transpose(quantizer.codes(weight, variables).numpy()).astype(np.int8)
    step_size, _ = quantizer.grid(variables)
    channels = codes.shape[axis]
    scale = np.broadcast_to(transpose(np.broadcast_to(step_size.numpy(), weight.shape)), codes.shape)
    scale = np.moveaxis(scale, axis, 0).reshape(channels, -1)[:, 0].astype(np.float64)
    inner = layer.layer
    bias = inner.bias.numpy().astype(np.float64) if inner.use_bias else np.zeros(channels)
    return Kernel(f"{layer.name}_kernel", codes, axis, scale, bias)


def _window(layer: keras.layers.Layer) -> dict[str, Any]:
    return {"strides": tuple(layer.strides), "padding": layer.padding.upper()}


def _conv(builder: _Builder, layer: Any, name: str, sources: tuple[Codes, ...], output: Any) -> Pending:
    inner = roles.inner(layer)
    kernel = _kernel(layer, lambda codes: codes.transpose(3, 0, 1, 2), 0)
    options = {**_window(inner), "dilations": tuple(inner.dilation_rate)}
    return Pending("CONV_2D", sources, options, roles.activation_name(inner), kernel)


def _depthwise(builder: _Builder, layer: Any, name: str, sources: tuple[Codes, ...], output: Any) -> Pending:
    inner = roles.inner(layer)
    kernel = _kernel(layer, lambda codes: codes.reshape(1, *codes.shape[:2], -1), 3)
    options = {**_window(inner), "dilations": tuple(inner.dilation_rate), "depth_multiplier": inner.depth_multiplier}
    return Pending("DEPTHWISE_CONV_2D", sources, options, roles.activation_name(inner), kernel)


def _dense(builder: _Builder, layer: Any, name: str, sources: tuple[Codes, ...], output: Any) -> Pending:
    kernel = _kernel(layer, np.transpose, 0)
    options = {"keep_num_dims": len(output.shape) > 2}
    return Pending("FULLY_CONNECTED", sources, options, roles.activation_name(roles.inner(layer)), kernel)


def _batch_norm(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Pending:
    if not isinstance(value, Pending) or value.kernel is None or value.activation != "linear":
        raise ValueError(f"Batch normalization {name!r} does not follow a convolution or Dense layer.")
    gamma = layer.gamma.numpy().astype(np.float64) if layer.scale else 1.0
    beta = layer.beta.numpy().astype(np.float64) if layer.center else 0.0
    mean, variance = (moment.numpy().astype(np.float64) for moment in (layer.moving_mean, layer.moving_variance))
    factor = gamma / np.sqrt(variance + layer.epsilon)
    return dataclasses.replace(value, kernel=value.kernel.fold(factor, beta - mean * factor))


def _activation(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Codes | Pending:
    activation = roles.activation_name(layer)
    if isinstance(value, Pending):
        return value if activation == "linear" else dataclasses.replace(value, activation=activation)
    if roles.role(layer) is roles.Role.FIXED_GRID:
        return _softmax(builder, layer, name, value, output)
    return Pending(FUSED[activation], value, activation=activation)


def _softmax(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Pending:
    return Pending("SOFTMAX", value, {"beta": 1.0})


def _add(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Pending:
    return Pending("ADD", value)


def _mean(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Pending:
    return Pending("MEAN", value, {"keep_dims": bool(layer.keepdims)}, constants=(np.array([1, 2]),))


def _average_pool(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Pending:
    return Pending("AVERAGE_POOL_2D", value, {**_window(layer), "filter": tuple(layer.pool_size)})


def _max_pool(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Codes:
    return builder.add_moved(
        "MAX_POOL_2D", name, value[0], output, {**_window(layer), "filter": tuple(layer.pool_size)}
    )


def _reshape(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Codes:
    return builder.add_moved("RESHAPE", name, value[0], output, constants=(np.array(_shape(output)),))


def _pad(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Codes:
    paddings = np.array([(0, 0), *layer.padding, (0, 0)])
    return builder.add_moved("PAD", name, value[0], output, constants=(paddings,))


def _nothing(builder: _Builder, layer: Any, name: str, value: Any, output: Any) -> Any:
    return value if isinstance(value, Pending) else value[0]


_FUSING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD"}

_HANDLERS: dict[type, Callable[..., Any]] = {
    layers.Conv2D: _conv,
    layers.DepthwiseConv2D: _depthwise,
    layers.Dense: _dense,
    layers.BatchNormalization: _batch_norm,
    layers.ReLU: _activation,
    layers.Activation: _activation,
    layers.Softmax: _softmax,
    layers.Add: _add,
    layers.GlobalAveragePooling2D: _mean,
    layers.AveragePooling2D: _average_pool,
    layers.MaxPooling2D: _max_pool,
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.ZeroPadding2D: _pad,
    layers.Dropout: _nothing,
}


def student_codes(student: keras.Model) -> Callable[[Any], dict[str, tf.Tensor]]:
    """A function of images that returns the student's own codes of its deployed activation tensors, int8 values by tensor name."""
    quantized = {
        graph.call_name(c): (c.layer, c.outputs[0])
        for c in graph.calls(student)
        if isinstance(c.layer, QuantizeActivation)
    }
    probe = keras.Model(student.inputs, {name: output for name, (_, output) in quantized.items()})

    def codes(images: Any) -> dict[str, tf.Tensor]:
        values = probe(images, training=False)
        return {
            name: layer.codes(values[name]) + float(INT8_MAX - layer.quantizer.spec.qmax)
            for name, (layer, _) in quantized.items()
        }

    return codes
