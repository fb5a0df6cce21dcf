"""What the integer kernels of the phone compute, on step sizes that train.

Here are the operators that sum no products. Each function computes the int8 codes that XNNPACK
writes for inputs on their grid, or the builtin kernel where XNNPACK does not take the operator.
That is the "single" rounding of `tflite_export/kernels`, where each rule stands with its proof
against the interpreter. A function returns the operator's float output, moved into the cells of
those codes. A function of one code is a table of 256 values.

Operators that are missing here need none: they only move codes, or float arithmetic and kernel
differ next to ties alone.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import tensorflow as tf

from tf_fpq import roles
from tf_fpq.autograph import translated
from tf_fpq.conversion.normalization import ChannelMean, ReciprocalRoot
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import numerics
from tf_fpq.student_layers import fixed_point, reciprocal_root
from tf_fpq.student_layers.fixed_point import INT8_MAX, INT8_MIN
from tf_fpq.student_layers.quantized_layers import QuantizeActivation

layers = keras.layers

# Terms up to which the integer sum of levels is read off a float32 mean. In any order of summation
# its error is below `(n + 4) * n * 255 / 2^24` levels, 0.26 here, and half a level would be wrong.
_TERMS_OF_A_MEAN = 128
# Ratios of scales that XNNPACK's 8-bit multipliers take.
_EIGHT_BIT_RATIOS = (2.0**-8, 2.0**7)
# Fraction bits of XNNPACK's bilinear weights: an int8 code times two of them fits int32.
_BILINEAR_BITS = 11


@dataclasses.dataclass(frozen=True)
class Grid:
    """The int8 grid of a tensor, without gradients.

    Attributes:
      step_size: Scalar float32.
      zero_point: int8 code of the value 0, integer-valued scalar float32.
      lowest: Lowest int8 code. The highest is 127 at every width.
    """

    step_size: tf.Tensor
    zero_point: tf.Tensor
    lowest: int

    @classmethod
    def of(cls, quantize: QuantizeActivation) -> "Grid":
        """The grid of a built layer; its codes end at the container's highest code."""
        spec = quantize.quantizer.spec
        step_size, zero_point = (
            tf.stop_gradient(tf.reshape(part, ()))
            for part in quantize.quantizer.grid(quantize.variables_of_quantizer)
        )
        offset = INT8_MAX - spec.qmax
        return cls(step_size, zero_point + float(offset), spec.qmin + offset)

    def levels(self, x: tf.Tensor) -> tf.Tensor:
        """`code - zero_point` of values on the grid, as float32."""
        return tf.round(x / self.step_size)

    def moved(self, y: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """`y` in the cells of int8 codes, an integer or integer-valued tensor."""
        levels = tf.cast(codes, tf.float32) - self.zero_point
        lowest, highest = (float(code) - self.zero_point for code in (self.lowest, INT8_MAX))
        return numerics.into_cell(y, self.step_size, levels, lowest, highest)


@dataclasses.dataclass(frozen=True)
class Operands:
    """What an operator reads and writes.

    Attributes:
      layer: The Keras layer, wrapped or not.
      inputs: What it reads, each on its grid.
      y: Its output in float32; its input itself for a tensor that moves to another grid.
      sources: The inputs' grids.
      output: The output's grid.
    """

    layer: keras.layers.Layer
    inputs: tuple[tf.Tensor, ...]
    y: tf.Tensor
    sources: tuple[Grid, ...]
    output: Grid

    @property
    def x(self) -> tf.Tensor:
        """The first input."""
        return self.inputs[0]

    @property
    def source(self) -> Grid:
        """The first input's grid."""
        return self.sources[0]

    def function(self, x: tf.Tensor) -> tf.Tensor:
        """What the layer, one without weights, computes of another tensor."""
        return x if self.y is self.x else translated(roles.inner(self.layer).call)(x)


# Returns the output, moved into the cells of the deployed codes.
Arithmetic = Callable[[Operands], tf.Tensor]


def of(layer: keras.layers.Layer) -> Arithmetic | None:
    """The arithmetic of a layer that reads a quantized tensor, or None if it needs none."""
    inner = roles.inner(layer)
    if type(inner) is layers.PReLU and inner is layer:
        return None  # its slopes are float
    if roles.role(inner) is roles.Role.CLAMP:
        return _relu
    if type(inner) is layers.Activation:
        return _FUNCTIONS.get(roles.activation_name(inner))
    if getattr(inner, "interpolation", "bilinear") == "nearest":
        return None
    return _ARITHMETIC.get(type(inner))


def _clip(codes: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(codes, tf.cast(INT8_MIN, codes.dtype), tf.cast(INT8_MAX, codes.dtype))


def _by_codes(codes: Callable[[Operands], tf.Tensor]) -> Arithmetic:
    """The arithmetic of an operator from a function that computes its output's codes."""
    return lambda operands: operands.output.moved(operands.y, codes(operands))


def _sum_of_levels(operands: Operands, count: tf.Tensor, known: int | None) -> tf.Tensor:
    """Exact sum of levels behind each mean in `operands.y`, integer-valued float32.

    Args:
      operands: The operator, a mean.
      count: Terms of each mean.
      known: The most terms a mean has, where that is static.
    """
    step_size = operands.source.step_size
    if known is not None and known <= _TERMS_OF_A_MEAN:
        return tf.round(operands.y * count / step_size)
    return tf.round(operands.function(operands.source.levels(operands.x)) * count)


@_by_codes
def _average_pool(operands: Operands) -> tf.Tensor:
    """AVERAGE_POOL_2D: the mean of the raw codes inside the image, ties away from zero."""
    layer = roles.inner(operands.layer)
    inside = [
        _inside(operands.x, axis, layer.pool_size[axis - 1], layer.strides[axis - 1], layer.padding)
        for axis in (1, 2)
    ]
    count = inside[0][:, None, None] * inside[1][:, None]
    levels = _sum_of_levels(operands, tf.cast(count, tf.float32), math.prod(layer.pool_size))
    zero_point = tf.cast(operands.source.zero_point, tf.int32)
    total = tf.cast(levels, tf.int32) + count * zero_point
    return tf.truncatediv(total + tf.sign(total) * (count // 2), count)


def _inside(x: tf.Tensor, axis: int, size: int, stride: int, padding: str) -> tf.Tensor:
    """How many rows or columns of each window lie inside the image, int32."""
    length = _length(x, axis)
    if padding == "valid":
        return tf.fill([(length - size) // stride + 1], size)
    outputs = -(-length // stride)
    before = tf.maximum((outputs - 1) * stride + size - length, 0) // 2
    starts = tf.range(outputs) * stride - before
    return tf.minimum(starts + size, length) - tf.maximum(starts, 0)


def _length(x: tf.Tensor, axis: int) -> Any:
    """A dimension: a number where it is static, else a tensor."""
    return x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]


@_by_codes
def _mean(operands: Operands) -> tf.Tensor:
    """MEAN over height and width.

    In float32 it is `rint(sum x * r + (z_out - n z_in * r))` with `r = s_in / s_out * (1 / n)`.
    """
    x, source, output = operands.x, operands.source, operands.output
    known = x.shape[1:3].num_elements()
    count = tf.cast(_length(x, 1) * _length(x, 2), tf.float32)
    offset = count * source.zero_point
    total = _sum_of_levels(operands, count, known) + offset
    scale = source.step_size / output.step_size * (1.0 / count)
    return _clip(tf.round(total * scale + (output.zero_point - offset * scale)))


@_by_codes
def _channel_mean(operands: Operands) -> tf.Tensor:
    """FULLY_CONNECTED of one unit with weights `1 / channels`.

    The weights' codes are 64, the largest power of two within int8, on the scale
    `1 / (64 channels)`.
    """
    source, output = operands.source, operands.output
    total = tf.reduce_sum(source.levels(operands.x), -1, keepdims=True)
    weight = tf.constant(1.0 / operands.x.shape[-1] / 64, tf.float32)
    scale = source.step_size * weight / output.step_size
    return _clip(tf.round(64.0 * total * scale) + output.zero_point)


@_by_codes
def _bilinear(operands: Operands) -> tf.Tensor:
    """RESIZE_BILINEAR with half-pixel centers.

    Each axis has weights of 11 bits. Their product has 22, which are rounded off with ties upward.
    """
    codes = tf.cast(operands.source.levels(operands.x) + operands.source.zero_point, tf.int32)
    for axis in (2, 1):
        codes = _interpolate(codes, axis, _length(operands.x, axis), _length(operands.y, axis))
    half = 2 ** (2 * _BILINEAR_BITS - 1)
    return tf.bitwise.right_shift(codes + half, 2 * _BILINEAR_BITS)


def _interpolate(codes: tf.Tensor, axis: int, length: Any, target: Any) -> tf.Tensor:
    """Codes resized along one axis, times `2^11`."""
    ratio = tf.cast(length, tf.float32) / tf.cast(target, tf.float32)
    last = tf.cast(length - 1, tf.float32)
    positions = tf.range(tf.cast(target, tf.float32)) * ratio + (0.5 * ratio - 0.5)
    positions = tf.clip_by_value(positions, 0.0, last)
    first = tf.floor(positions)
    one = 2**_BILINEAR_BITS
    weight = tf.cast(tf.round((positions - first) * float(one)), tf.int32)
    weight = tf.reshape(weight, [-1] + [1] * (3 - axis))
    left = tf.gather(codes, tf.cast(first, tf.int32), axis=axis)
    right = tf.gather(codes, tf.cast(tf.minimum(first + 1.0, last), tf.int32), axis=axis)
    return left * (one - weight) + right * weight


def _table(function: Callable[[tf.Tensor, Operands], tf.Tensor]) -> Arithmetic:
    """The arithmetic of a function of one code, as a table of all 256.

    Args:
      function: Maps `code - zero_point`, int64, to levels of the output.
    """

    def arithmetic(operands: Operands) -> tf.Tensor:
        source, output = operands.source, operands.output
        all_codes = tf.range(INT8_MIN, INT8_MAX + 1, dtype=tf.int64)
        levels = all_codes - tf.cast(source.zero_point, tf.int64)
        values = tf.cast(levels, tf.float32) * source.step_size
        codes = tf.cast(function(levels, operands), tf.int64)
        codes = _clip(codes + tf.cast(output.zero_point, tf.int64))
        table = output.moved(operands.function(values), codes)
        # Truncated after one half is added, levels on their grid round as `source.levels`.
        index = operands.x / source.step_size + (source.zero_point - (INT8_MIN - 0.5))
        return tf.gather(table, tf.clip_by_value(tf.cast(index, tf.int32), 0, 255))

    return arithmetic


@_table
def requantize(levels: tf.Tensor, operands: Operands) -> tf.Tensor:
    """QUANTIZE from one grid to another, by an 8-bit multiplier.

    Where XNNPACK does not take the ratio of the steps, the file goes there over a grid in between,
    `2^7` times as coarse or as fine as the first.
    """
    step_in, step_out = operands.source.step_size, operands.output.step_size
    ratio, (lowest, highest) = step_in / step_out, _EIGHT_BIT_RATIOS
    zero_point = tf.cast(operands.output.zero_point, tf.int64)
    coarse = fixed_point.multiply_eight_bits(levels, lowest * 2)
    fine = _clip(levels * int(highest) + zero_point) - zero_point
    between = tf.where(ratio < lowest, coarse, tf.where(ratio > highest, fine, levels))
    step = tf.where(ratio < lowest, highest, tf.where(ratio > highest, lowest * 2, 1.0)) * step_in
    return fixed_point.multiply_eight_bits(between, step / step_out)


@_table
def _relu(levels: tf.Tensor, operands: Operands) -> tf.Tensor:
    """RELU and RELU6 as operators of their own, which round twice.

    A bound other than 6 is a MINIMUM in the file.
    """
    step_size = operands.output.step_size
    _, high = roles.clamp(roles.inner(operands.layer)) or (0.0, math.inf)
    scaled = tf.maximum(fixed_point.multiply(levels, operands.source.step_size / step_size), 0)
    if math.isinf(high):
        return scaled
    bound = fixed_point.round_away(high / step_size) if high == 6.0 else tf.round(high / step_size)
    return tf.minimum(scaled, tf.cast(tf.minimum(bound, 255.0), tf.int64))


@_table
def _leaky_relu(levels: tf.Tensor, operands: Operands) -> tf.Tensor:
    """LEAKY_RELU, with an 8-bit multiplier for each sign where XNNPACK takes both ratios.

    Elsewhere the builtin kernel runs, which rounds twice.
    """
    step_in, step_out = operands.source.step_size, operands.output.step_size
    alpha = tf.constant(float(roles.inner(operands.layer).alpha), tf.float32)
    ratio = step_in / step_out
    lowest, highest = (function(ratio, ratio * alpha) for function in (tf.minimum, tf.maximum))
    taken = (lowest >= _EIGHT_BIT_RATIOS[0]) & (highest <= _EIGHT_BIT_RATIOS[1])
    coarse = [fixed_point.multiply_eight_bits(levels, part) for part in (ratio, ratio * alpha)]
    fine = [fixed_point.multiply(levels, part) for part in (ratio, step_in * alpha / step_out)]
    pairs = zip(coarse, fine, strict=True)
    positive, negative = (tf.where(taken, left, right) for left, right in pairs)
    return tf.where(levels >= 0, positive, negative)


@_by_codes
def _subtract(operands: Operands) -> tf.Tensor:
    """SUB by 20-bit multipliers, ties upward.

    Steps of a layer normalization may be in small ratios to each other, which makes ties frequent.
    Sums of two tensors (ADD) go without: their steps are trained or measured apart, and residual
    networks would pay for it in every step.
    """
    output = operands.output
    ratios = [source.step_size / output.step_size for source in operands.sources]
    levels = [
        tf.cast(source.levels(x), tf.int64)
        for source, x in zip(operands.sources, operands.inputs, strict=True)
    ]
    total = fixed_point.weighted_sum([levels[0], -levels[1]], ratios)
    return _clip(total + tf.cast(output.zero_point, tf.int64))


@_by_codes
def _prelu(operands: Operands) -> tf.Tensor:
    """PRELU, which rounds twice: codes of x times codes of alpha on the negative side."""
    source, output = operands.source, operands.output
    ((_, weight, quantizer, variables),) = operands.layer.quantized_weights()
    alpha = tf.cast(quantizer.codes(weight, variables), tf.int64)
    step = tf.stop_gradient(tf.reshape(quantizer.grid(variables)[0], ()))
    levels = tf.cast(source.levels(operands.x), tf.int64)
    positive = fixed_point.multiply(levels, source.step_size / output.step_size)
    slope = source.step_size * step / output.step_size
    negative = fixed_point.multiply(levels * alpha, slope)
    chosen = tf.where(levels >= 0, positive, negative)
    return _clip(chosen + tf.cast(output.zero_point, tf.int64))


@_table
def _reciprocal_root(levels: tf.Tensor, operands: Operands) -> tf.Tensor:
    """RSQRT, behind an ADD of epsilon where that can be seen."""
    source = operands.source
    epsilon, step_out = roles.inner(operands.layer).epsilon, operands.output.step_size
    return reciprocal_root.levels(levels, epsilon, source.step_size, source.zero_point, step_out)


def _rounded_function(function: Callable[[tf.Tensor], tf.Tensor], away: bool) -> Arithmetic:
    """A table filled in float32 from `steps = f(s_in * level) * float32(1 / s_out)`.

    Args:
      function: f.
      away: Whether steps round with ties away from zero (builtin kernels); else `steps + z_out`
        rounds, with ties to even (XNNPACK).
    """

    def table(levels: tf.Tensor, operands: Operands) -> tf.Tensor:
        values = function(operands.source.step_size * tf.cast(levels, tf.float32))
        steps = values * (1.0 / operands.output.step_size)
        if away:
            return fixed_point.round_away(steps)
        zero_point = operands.output.zero_point
        return tf.round(steps + zero_point) - zero_point

    return _table(table)


def _in_float64(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """`function` computed in float64 and rounded to float32, as near as a C library's last bit."""
    return lambda x: tf.cast(function(tf.cast(x, tf.float64)), tf.float32)


def _gelu(x: tf.Tensor) -> tf.Tensor:
    scaled = x * tf.constant(math.sqrt(0.5), tf.float32)
    return 0.5 * x * (1.0 + _in_float64(tf.math.erf)(scaled))


_FUNCTIONS: dict[str, Arithmetic] = {
    "sigmoid": _rounded_function(_in_float64(tf.sigmoid), away=False),
    "tanh": _rounded_function(_in_float64(tf.tanh), away=False),
    "gelu": _rounded_function(_gelu, away=True),
}

_ARITHMETIC: dict[type, Arithmetic] = {
    layers.AveragePooling2D: _average_pool,
    layers.GlobalAveragePooling2D: _mean,
    layers.Resizing: _bilinear,
    layers.Subtract: _subtract,
    layers.UpSampling2D: _bilinear,
    layers.LeakyReLU: _leaky_relu,
    layers.PReLU: _prelu,
    ChannelMean: _channel_mean,
    ReciprocalRoot: _reciprocal_root,
}
