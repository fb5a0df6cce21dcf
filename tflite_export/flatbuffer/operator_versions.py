"""Operator versions, and the oldest runtime that has them.

The rules are those of TFLite's `op_version.cc` and `runtime_version.cc`.
"""

from collections.abc import Mapping
import math

import numpy as np

from tflite_export import deployed as deployed_lib

METADATA_NAME = "min_runtime_version"
METADATA_BYTES = 16
OLDEST_RUNTIME = "1.14.0"

# int8 version of a kind where it is not 2.
INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 3,
    **dict.fromkeys(
        (
            "RESHAPE",
            "EXPAND_DIMS",
            "SQUEEZE",
            "HARD_SWISH",
            "LEAKY_RELU",
            "PRELU",
            "DEPTH_TO_SPACE",
        ),
        1,
    ),
    **dict.fromkeys(("RELU_N1_TO_1", "RELU_0_TO_1"), 1),
}
RUNTIMES = {
    ("CONV_2D", 6): "2.9.0",
    ("CONV_2D", 7): "2.11.0",
    ("DEPTHWISE_CONV_2D", 7): "2.11.0",
    ("FULLY_CONNECTED", 5): "2.0.0",
    ("FULLY_CONNECTED", 6): "2.1.0",
    ("FULLY_CONNECTED", 10): "2.11.0",
    ("FULLY_CONNECTED", 12): "2.17.0",
    ("MUL", 3): "1.15.0",
    ("RELU", 2): "2.1.0",
    ("SUM", 2): "1.15.0",
    ("RESIZE_BILINEAR", 3): "2.2.0",
    ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("DEPTH_TO_SPACE", 1): "2.1.0",
    ("TRANSPOSE_CONV", 3): "2.3.0",
    ("TRANSPOSE_CONV", 4): "2.13.0",
    ("GELU", 2): "2.9.0",
    ("RSQRT", 2): "2.10.0",
    ("RELU_0_TO_1", 1): "2.10.0",
    ("LEAKY_RELU", 1): "1.13.1",
    ("HARD_SWISH", 1): "1.15.0",
}


def version(operator: deployed_lib.Operator, tensors: Mapping[str, deployed_lib.Tensor]) -> int:
    """Lowest version of the operator that covers its types and options."""
    inputs = [tensors[name] for name in operator.inputs]
    kind, default = operator.kind, INT8_VERSIONS.get(operator.kind, 2)
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        if inputs[1].dtype == "int4":
            return 7
        return 6 if kind == "CONV_2D" and inputs[0].shape[-1] != inputs[1].shape[-1] else default
    if kind == "FULLY_CONNECTED":
        return _fully_connected(operator, inputs)
    if kind == "TRANSPOSE_CONV":
        return 4 if operator.options.get("activation", "NONE") != "NONE" else len(inputs) - 1
    if kind == "MUL":
        product = math.prod(float(tensor.one_scale) for tensor in inputs)
        return 3 if product >= float(tensors[operator.outputs[0]].one_scale) else default
    if kind == "QUANTIZE":
        return 1 if inputs[0].dtype == "float32" else default
    if kind in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
        return (
            3
            if operator.options.get("half_pixel_centers") or operator.options.get("align_corners")
            else default
        )
    return default


def runtime_of(kind: str, number: int) -> str:
    """Oldest TensorFlow Lite release that has a version of an operator."""
    return RUNTIMES.get((kind, number), OLDEST_RUNTIME)


def as_numbers(release: str) -> tuple[int, ...]:
    """A release such as "2.17.0" as numbers that compare."""
    return tuple(int(part) for part in release.split("."))


def minimum_runtime(deployed: deployed_lib.DeployedModel) -> str:
    """Oldest TensorFlow Lite release that has all operator versions of the model."""
    needed = [
        runtime_of(operator.kind, version(operator, deployed.tensors))
        for operator in deployed.operators
    ]
    return max([OLDEST_RUNTIME, *needed], key=as_numbers)


def metadata(deployed: deployed_lib.DeployedModel) -> bytes:
    """`minimum_runtime` as the metadata buffer holds it: 16 bytes, zero-filled."""
    return minimum_runtime(deployed).encode().ljust(METADATA_BYTES, b"\0")


def _fully_connected(operator: deployed_lib.Operator, inputs: list[deployed_lib.Tensor]) -> int:
    if inputs[1].scale is not None and np.size(inputs[1].scale) > 1:
        return 12
    if inputs[1].dtype == "int4":
        return 10
    if len(inputs) == 2:
        return 6
    return 5 if operator.options.get("keep_num_dims") else INT8_VERSIONS["FULLY_CONNECTED"]
