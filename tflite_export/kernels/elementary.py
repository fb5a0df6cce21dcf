"""RSQRT and GELU on codes.

They are functions of one int8 code, so tables of 256 codes. XNNPACK takes neither for int8, so all
kernel sets agree.
"""

import math

import numpy as np
import tensorflow as tf

from tf_fpq.student_layers import reciprocal_root
from tflite_export import deployed
from tflite_export.kernels import base, lookup
from tflite_export.kernels import rounding as rounding_lib


def rsqrt(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """RSQRT, `1 / sqrt(x)`: inputs `(x,)`. No options.

    No code may be below the zero point; the runtime refuses such an image.

    `x = q - z_in` goes through a fixed-point Newton iteration to `1 / sqrt(x)` with 20 fractional
    bits, then through the fixed-point multiplier of `1 / (sqrt(s_in) s_out)`. `x = 0` gives the
    highest code.
    """
    del rounding
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    # float32 under the root, then float64: the order of types is the result.
    real = np.float64(1) / np.float64(np.sqrt(s_in) * s_out)
    multiplier, shift = rounding_lib.quantize_multiplier(real)
    low, high = rounding_lib.RANGES[output.dtype]

    def table(codes: tf.Tensor) -> tf.Tensor:
        offsets = np.asarray(codes, np.int64) - x.zero_point
        scaled = rounding_lib.multiply_by_quantized_multiplier(
            tf.ones_like(offsets),
            *reciprocal_root.inverse_root(np.maximum(offsets, 1), reciprocal_root.SHIFT),
        )
        levels = rounding_lib.multiply_by_quantized_multiplier(
            scaled, multiplier, shift - reciprocal_root.SHIFT
        )
        return tf.where(offsets > 0, tf.clip_by_value(levels + output.zero_point, low, high), high)

    return lookup.from_table(x, table)


def gelu(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """GELU: inputs `(x,)`, free grids. Options: approximate=False.

    The table is computed in float32, `x (1 + erf(x / sqrt 2)) / 2` or with `approximate` its tanh
    form, and rounded with ties away from zero.
    """
    del rounding
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    function = _tanh_gelu if base.options(operator)["approximate"] else _erf_gelu
    low, high = rounding_lib.RANGES[output.dtype]

    def table(codes: tf.Tensor) -> np.ndarray:
        values = s_in * (np.asarray(codes) - x.zero_point).astype(np.float32)
        inverse = np.float32(1) / s_out
        levels = rounding_lib.round_half_away(function(values) * inverse).astype(np.int64)
        return np.clip(levels + output.zero_point, low, high).astype(np.int32)

    return lookup.from_table(x, table)


def _erf_gelu(x: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf, otypes=[np.float64])(x * np.float32(math.sqrt(0.5))).astype(
        np.float32
    )
    return np.float32(0.5) * x * (np.float32(1) + erf)


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
