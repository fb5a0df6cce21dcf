"""LEAKY_RELU, PRELU, HARD_SWISH, LOGISTIC and TANH on codes.

All but PRELU are tables of 256 codes.
"""

import numpy as np
import tensorflow as tf

from tflite_export import deployed
from tflite_export.kernels import base, fixed_point, lookup
from tflite_export.kernels import rounding as rounding_lib

# XNNPACK takes LEAKY_RELU for these ratios of scales on the positive and (in magnitude) the
# negative side.
LEAKY_RATIOS = (2.0**-8, 2.0**7)

LOGISTIC_GRID = (1 / 256, -128)


def leaky_relu(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """LEAKY_RELU: inputs `(x,)`, free grids. Options: alpha=0.2 (not negative).

    single: per sign `((q - z_in) * m + 128) >> 8 + z_out`, `m = rint(256 * s_in / s_out [*
    alpha])`, when XNNPACK takes both ratios, else as double. double: per sign a fixed-point
    multiplier with double rounding.
    """
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    alpha = np.float32(base.options(operator)["alpha"])
    if alpha < 0:
        base.fail(operator, f"alpha must not be negative. Received: alpha={alpha}.")
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    ratios = (s_in / s_out, s_in / s_out * alpha)
    taken = rounding == "single" and all(LEAKY_RATIOS[0] <= r <= LEAKY_RATIOS[1] for r in ratios)
    low, high = rounding_lib.RANGES[output.dtype]

    def eight_bit(codes: tf.Tensor, ratio: np.float32) -> tf.Tensor:
        levels = tf.bitwise.right_shift(
            (codes - x.zero_point) * int(np.rint(np.float32(256) * ratio)) + 128, 8
        )
        return tf.clip_by_value(levels + output.zero_point, low, high)

    def fixed(codes: tf.Tensor, ratio: np.float32) -> tf.Tensor:
        return rounding_lib.double_rounding(
            codes - x.zero_point, ratio, output.one_zero_point, low, high
        )

    scale = eight_bit if taken else fixed
    # The builtin kernel multiplies by alpha before it divides by the output scale.
    negative = ratios[1] if taken else s_in * alpha / s_out
    return lookup.from_table(
        x, lambda q: tf.where(q >= x.zero_point, scale(q, ratios[0]), scale(q, negative))
    )


def prelu(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """PRELU: inputs `(x, alpha int8 constant)` on free grids. No options.

    `alpha` is broadcast from the last axes.

    XNNPACK does not take int8 PRELU: all kernel sets use fixed-point multipliers, `s_in / s_out`
    where `q >= z_in`, else `s_in * s_alpha / s_out` on `(q - z_in) * (alpha - z_alpha)`.
    """
    del rounding
    x, slope = base.input_tensors(operator, tensors)
    output = base.output_tensor(operator, tensors)
    alpha = tf.constant(
        base.constant(operator, tensors, 1, "alpha").astype(np.int32) - slope.zero_point
    )
    s_in, s_alpha, s_out = (base.scalar_scale(operator, t) for t in (x, slope, output))
    low, high = rounding_lib.RANGES[output.dtype]

    def run(codes: tf.Tensor) -> tf.Tensor:
        centered = codes - x.zero_point
        positive = rounding_lib.double_rounding(
            centered, s_in / s_out, output.one_zero_point, low, high
        )
        negative = rounding_lib.double_rounding(
            centered * alpha, s_in * s_alpha / s_out, output.one_zero_point, low, high
        )
        return tf.where(centered >= 0, positive, negative)

    return run


def hard_swish(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """HARD_SWISH, `x * clip(x + 3, 0, 6) / 6`: inputs `(x,)`. No options.

    Grids are free, with `s_in / 128 < s_out`: the runtime takes no others.

    XNNPACK does not take int8 HARD_SWISH: on x86 all kernel sets run the 16-bit fixed-point rule of
    the reference; the ARM builtin kernel rounds its last shift's ties upward and may differ by 1
    LSB.
    """
    del rounding
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    if s_in / np.float32(128) >= s_out:
        base.fail(
            operator, f"needs input scale / 128 < output scale. Received: {s_in:g} and {s_out:g}."
        )

    def table(codes: tf.Tensor) -> np.ndarray:
        levels = fixed_point.hard_swish(codes.numpy().astype(np.int64) - x.zero_point, s_in, s_out)
        return np.clip(levels + output.zero_point, *rounding_lib.RANGES[output.dtype])

    return lookup.from_table(x, table)


def logistic(
    operator: deployed.Operator, tensors: base.Tensors, rounding: rounding_lib.Rounding
) -> base.Kernel:
    """LOGISTIC and TANH: inputs `(x,)`. No options.

    LOGISTIC writes scale 1/256 and zero point -128, TANH any grid.

    Both kernel sets fill a table of 256 codes from `f(s_in (q - z_in))` in float32:

    single (XNNPACK): `rint(f * float32(1 / s_out) + z_out)`, ties to even, the exponential of
    LOGISTIC in float64; double: `round(f * float32(1 / s_out)) + z_out`, ties away from zero, the
    exponential in float32.

    The tables equal ours but where the C library's `expf` or `tanhf` errs by a last bit next to a
    tie: at most 1 LSB.
    """
    x, output = base.input_tensors(operator, tensors)[0], base.output_tensor(operator, tensors)
    s_in, s_out = base.scalar_scale(operator, x), base.scalar_scale(operator, output)
    if operator.kind == "LOGISTIC" and (s_out, output.zero_point) != LOGISTIC_GRID:
        base.fail(
            operator,
            f"needs output scale 1/256, zero point -128. Received: {s_out:g}, {output.zero_point}.",
        )
    function = (
        _tanh
        if operator.kind == "TANH"
        else _sigmoid_float64
        if rounding == "single"
        else _sigmoid_float32
    )

    def table(codes: tf.Tensor) -> np.ndarray:
        values = s_in * (codes.numpy() - x.zero_point).astype(np.float32)
        steps = function(values) * (np.float32(1) / s_out)
        if rounding == "single":
            levels = np.rint(steps + np.float32(output.zero_point))
        else:
            levels = rounding_lib.round_half_away(steps) + output.zero_point
        return np.clip(levels, *rounding_lib.RANGES[output.dtype])

    return lookup.from_table(x, table)


def _tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x.astype(np.float64)).astype(np.float32)


def _sigmoid_float64(x: np.ndarray) -> np.ndarray:
    # XNNPACK's own end, above which all are 1; it keeps the exponential finite.
    exponentials = np.exp(np.minimum(x.astype(np.float64), 100))
    return (exponentials / (1 + exponentials)).astype(np.float32)


def _sigmoid_float32(x: np.ndarray) -> np.ndarray:
    # Beyond float32 the exponential is infinite and its reciprocal 0, in C too.
    with np.errstate(over="ignore"):
        exponentials = np.exp(-x.astype(np.float64)).astype(np.float32)
    return np.float32(1) / (np.float32(1) + exponentials)
