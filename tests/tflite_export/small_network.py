"""A hand-made quantized residual network with every core operator, for the tests of twin, writer,
reader and borders.
"""

import numpy as np

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export import deployed as deployed_lib


def residual_network(seed: int = 0, classes: int = 10) -> deployed_lib.DeployedModel:
    """8x8x3 images -> conv, depthwise, pointwise, residual add, pad, max pool, mean, dense,
    softmax; int8 throughout.
    """
    rng = np.random.default_rng(seed)
    tensors: list[deployed_lib.Tensor] = [cases.activation("image", (1, 8, 8, 3), 1 / 255, -128)]
    operators: list[deployed_lib.Operator] = []

    def apply(kind, inputs, name, shape, scale, zero_point, **options):
        tensors.append(cases.activation(name, shape, scale, zero_point))
        operators.append(deployed_lib.Operator(kind, tuple(inputs), (name,), options))

    def weighted(kind, x, name, weights_shape, axis, shape, scale, zero_point, **options):
        channels = weights_shape[axis]
        weights = rng.integers(-7, 8, weights_shape).astype(np.int8)
        scales = (0.02 * 2.0 ** rng.uniform(-2, 2, channels)).astype(np.float32)
        source = next(t for t in tensors if t.name == x)
        bias = rng.integers(-60, 60, channels).astype(np.int32)
        tensors.append(cases.constant(f"{name}/weights", weights, scales, axis=axis))
        tensors.append(cases.constant(f"{name}/bias", bias, source.scale * scales, axis=0))
        apply(
            kind, (x, f"{name}/weights", f"{name}/bias"), name, shape, scale, zero_point, **options
        )

    weighted(
        "CONV_2D", "image", "stem", (8, 3, 3, 3), 0, (1, 8, 8, 8), 0.05, 112, activation="RELU"
    )
    weighted(
        "DEPTHWISE_CONV_2D",
        "stem",
        "depthwise",
        (1, 3, 3, 8),
        3,
        (1, 8, 8, 8),
        0.03,
        112,
        activation="RELU",
    )
    weighted("CONV_2D", "depthwise", "project", (8, 1, 1, 8), 0, (1, 8, 8, 8), 0.01, -3)
    apply("ADD", ("stem", "project"), "add", (1, 8, 8, 8), 0.02, -20, activation="RELU6")
    tensors.append(cases.constant("pads", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)))
    apply("PAD", ("add", "pads"), "padded", (1, 10, 10, 8), 0.02, -20)
    apply("MAX_POOL_2D", ("padded",), "pooled", (1, 5, 5, 8), 0.02, -20)
    tensors.append(cases.constant("axes", np.array([1, 2], np.int32)))
    apply("MEAN", ("pooled", "axes"), "mean", (1, 8), 0.004, -128)
    weighted("FULLY_CONNECTED", "mean", "logits", (classes, 8), 0, (1, classes), 0.006, 4)
    apply("SOFTMAX", ("logits",), "probabilities", (1, classes), 1 / 256, -128)
    return deployed_lib.DeployedModel(
        {t.name: t for t in tensors},
        tuple(operators),
        ("image",),
        ("probabilities",),
        name="residual",
    )
