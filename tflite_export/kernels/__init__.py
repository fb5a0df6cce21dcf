"""Integer kernels: one function per TFLite operator kind, equal to the interpreter's code for code.

`KERNELS[kind](operator, tensors, rounding)` checks the operator, decides everything that is known
statically (multipliers, tables, float32 or float64 accumulation) and returns a function from the
int32 codes of the operator's non-constant inputs, batch first, to the int32 codes of its output.
`rounding` is the kernel set:

*   `"single"`: the default interpreter on x86, that is XNNPACK where it takes the operator and the
    builtin kernel elsewhere;
*   `"double"`: the reference kernels (`OpResolverType.BUILTIN_REF`), which TensorFlow Lite for
    Microcontrollers shares.

Each function's docstring gives its inputs, options and formula. The options' defaults are in
`operator_options.OPTIONS`.
"""

from collections.abc import Callable

from tflite_export.kernels import (
    activation,
    base,
    convolution,
    elementary,
    elementwise,
    lookup,
    pooling,
    resize,
    shape,
    softmax,
)
from tflite_export.kernels.rounding import ROUNDINGS, Rounding

KERNELS: dict[str, Callable[..., base.Kernel]] = {
    "CONV_2D": convolution.conv_2d,
    "DEPTHWISE_CONV_2D": convolution.depthwise_conv_2d,
    "FULLY_CONNECTED": convolution.fully_connected,
    "TRANSPOSE_CONV": convolution.transpose_conv,
    "ADD": elementwise.add,
    "SUB": elementwise.add,
    "MUL": elementwise.mul,
    "MAXIMUM": elementwise.extremum,
    "MINIMUM": elementwise.extremum,
    "MEAN": pooling.reduce_sum,
    "SUM": pooling.reduce_sum,
    "REDUCE_MAX": pooling.reduce_extremum,
    "REDUCE_MIN": pooling.reduce_extremum,
    "AVERAGE_POOL_2D": pooling.average_pool_2d,
    "MAX_POOL_2D": pooling.max_pool_2d,
    "RESHAPE": shape.reshape,
    "EXPAND_DIMS": shape.reshape,
    "SQUEEZE": shape.reshape,
    "PAD": shape.pad,
    "CONCATENATION": shape.concatenation,
    "SLICE": shape.slice_,
    "STRIDED_SLICE": shape.strided_slice,
    "TRANSPOSE": shape.transpose,
    "SPLIT": shape.split,
    "SPACE_TO_DEPTH": shape.space_to_depth,
    "DEPTH_TO_SPACE": shape.space_to_depth,
    "RESIZE_BILINEAR": resize.resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize.resize_nearest_neighbor,
    "RELU": lookup.relu,
    "RELU6": lookup.relu,
    "RELU_N1_TO_1": lookup.relu,
    "RELU_0_TO_1": lookup.relu,
    "LEAKY_RELU": activation.leaky_relu,
    "PRELU": activation.prelu,
    "HARD_SWISH": activation.hard_swish,
    "LOGISTIC": activation.logistic,
    "TANH": activation.logistic,
    "GELU": elementary.gelu,
    "RSQRT": elementary.rsqrt,
    "QUANTIZE": lookup.quantize,
    "DEQUANTIZE": lookup.dequantize,
    "SOFTMAX": softmax.softmax,
}

__all__ = ["KERNELS", "ROUNDINGS", "Rounding"]
