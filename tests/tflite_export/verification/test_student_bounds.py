"""The student rounds as the phone does: on inputs that lie on their grids its codes are the integer
twin's, for every operator, at every width, on random grids."""

from collections.abc import Callable
import functools
from typing import Any
import warnings

import numpy as np
import pytest

import tf_fpq
from tf_fpq.conversion import normalization
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.lowering import builder
from tflite_export.runtimes import litert
from tflite_export.twin import integer_twin
from tflite_export.verification import student_bounds, student_layers

layers = keras.layers


def _layer(kind: type, **config: Any) -> Callable[[Any], Any]:
    return lambda x, name: kind(name=name, **config)(x)


def _joined(kind: type) -> Callable[[Any], Any]:
    """A layer that reads the input and what a ReLU makes of it."""
    return lambda x, name: kind(name=name)([x, layers.ReLU(name=f"{name}_positive")(x)])


def _positive(kind: type, **config: Any) -> Callable[[Any], Any]:
    return lambda x, name: kind(name=name, **config)(layers.ReLU(name=f"{name}_positive")(x))


def _mixed(x: Any, name: str) -> Any:
    """A probability on the grid of its neighbour: a QUANTIZE."""
    other = layers.Activation("sigmoid", name=f"{name}_gate")(x)
    return layers.Concatenate(name=name)([x, other])


SLOPES = keras.initializers.RandomUniform(-0.5, 0.5, seed=1)
# The operator that each layer is; all read the image, so that all are given codes on their grid.
OPERATORS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "pool_2": ("AVERAGE_POOL_2D", _layer(layers.AveragePooling2D)),
    "pool_3_same": (
        "AVERAGE_POOL_2D",
        _layer(layers.AveragePooling2D, pool_size=3, strides=2, padding="same"),
    ),
    "pool_2_3_same": (
        "AVERAGE_POOL_2D",
        _layer(layers.AveragePooling2D, pool_size=(2, 3), strides=1, padding="same"),
    ),
    "pool_large": ("AVERAGE_POOL_2D", _layer(layers.AveragePooling2D, pool_size=(12, 11))),
    "mean": ("MEAN", _layer(layers.GlobalAveragePooling2D)),
    "resizing": ("RESIZE_BILINEAR", _layer(layers.Resizing, height=7, width=17)),
    "upsampling": ("RESIZE_BILINEAR", _layer(layers.UpSampling2D, interpolation="bilinear")),
    "nearest": (
        "RESIZE_NEAREST_NEIGHBOR",
        _layer(layers.Resizing, height=7, width=17, interpolation="nearest"),
    ),
    "max_pool": ("MAX_POOL_2D", _layer(layers.MaxPooling2D)),
    "relu": ("RELU", _layer(layers.ReLU)),
    "relu_6": ("RELU6", _layer(layers.ReLU, max_value=6.0)),
    "relu_1": ("RELU", _layer(layers.ReLU, max_value=1.25)),
    "leaky": ("LEAKY_RELU", _layer(layers.LeakyReLU, alpha=0.2)),
    "leaky_little": ("LEAKY_RELU", _layer(layers.LeakyReLU, alpha=0.001)),
    "prelu": ("PRELU", _layer(layers.PReLU, shared_axes=[1, 2], alpha_initializer=SLOPES)),
    "sigmoid": ("LOGISTIC", _layer(layers.Activation, activation="sigmoid")),
    "tanh": ("TANH", _layer(layers.Activation, activation="tanh")),
    "gelu": ("GELU", _layer(layers.Activation, activation="gelu")),
    "softmax": ("SOFTMAX", _layer(layers.Activation, activation="softmax")),
    "mixed": ("QUANTIZE", _mixed),
    "channel_mean": ("FULLY_CONNECTED", _layer(normalization.ChannelMean)),
    "root": ("RSQRT", _positive(normalization.ReciprocalRoot)),
    "halved": ("DEPTHWISE_CONV_2D", _layer(layers.Rescaling, scale=0.3)),
    "add": ("ADD", _joined(layers.Add)),
    "sub": ("SUB", _joined(layers.Subtract)),
    "mul": ("MUL", _joined(layers.Multiply)),
    "maximum": ("MAXIMUM", _joined(layers.Maximum)),
    "minimum": ("MINIMUM", _joined(layers.Minimum)),
}
# On equal codes these equal the twin on every code.
EXACT = (
    "AVERAGE_POOL_2D",
    "GELU",
    "LEAKY_RELU",
    "LOGISTIC",
    "MAXIMUM",
    "MAX_POOL_2D",
    "MEAN",
    "MINIMUM",
    "PRELU",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "RSQRT",
    "SUB",
    "TANH",
)


@functools.cache
def differing(bits: int) -> dict[str, tuple[int, int]]:
    """By name of the layer: codes that student and twin make differently of the twin's own codes,
    and how many of these no tie explains."""
    rng = np.random.default_rng(bits)
    student, images = _student(bits, rng)
    found, deployed = _compared(student, images), builder.deploy(student)
    for name, expected, made in zip(
        deployed.outputs, integer_twin.IntegerTwin(deployed)(images), student(images), strict=True
    ):
        # Codes that moved and have no grid of their own are compared as they are.
        found.setdefault(name, (int(np.count_nonzero(expected != made)), 0))
    return {name: found[output] for name, output in zip(OPERATORS, deployed.outputs, strict=False)}


def _compared(
    student: keras.Model, images: np.ndarray, lowered: builder.Lowered | None = None
) -> dict[str, tuple[int, int]]:
    """For each grid, codes that differ from the deployed model's and those beyond ties."""
    lowered = lowered or builder.lower(student)
    deployed = lowered.deployed
    codes = integer_twin.IntegerTwin(deployed).codes(images)
    codes = {name: value.numpy().astype(np.int8) for name, value in codes.items()}
    found = {}
    for layer in student_layers.student_layers(student):
        grids = {name: deployed.tensors[name] for name in layer.sources}
        given = {
            name: litert.dequantize(codes[name], float(grid.one_scale), grid.one_zero_point)
            for name, grid in grids.items()
        }
        operators = student_bounds.operators_between(deployed, layer.sources, layer.name)
        slack = student_bounds.slack(deployed, operators, lowered.float_sums, "xnnpack")
        unrounded, wanted = layer.unrounded(given, (images,)), codes[layer.name]
        nearest = layer.codes_towards(wanted, unrounded, slack)
        found[layer.name] = tuple(
            int(np.count_nonzero(part != wanted)) for part in (layer.codes(unrounded), nearest)
        )
    return found


def _student(bits: int, rng: np.random.Generator) -> tuple[keras.Model, np.ndarray]:
    """All operators beside each other on an image of this width, on random grids."""
    keras.utils.set_random_seed(bits)
    image = keras.Input((12, 11, 5), name="image")
    outputs = [make(image, name) for name, (_, make) in OPERATORS.items()]
    outputs.append(layers.Conv2D(2, 1, name="conv")(image))
    student = tf_fpq.quantize_model(
        keras.Model(image, outputs), [tf_fpq.QuantRule("conv", activation_bits=bits)]
    )
    images = rng.normal(rng.normal(), 2.0 ** rng.uniform(-1, 2), (24, 12, 11, 5))
    images = images.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_fpq.calibrate(student, images, verbose=0)
    for layer in student.layers:
        if isinstance(layer, QuantizeActivation):
            step, zero_point = layer.quantizer.grid(layer.variables_of_quantizer)
            factor = np.float32(2.0 ** rng.uniform(-1, 1))
            layer.quantizer.set_grid(
                layer.variables_of_quantizer, step.numpy() * factor, zero_point.numpy()
            )
    return student, images


WIDTHS = [
    bits if bits in (2, 4, 8) else pytest.param(bits, marks=pytest.mark.slow)
    for bits in range(2, 9)
]


@pytest.mark.parametrize("bits", WIDTHS)
def test_student_and_twin_agree_operator_by_operator(bits):
    wrong = {}
    for name, (differ, beyond) in differing(bits).items():
        if beyond or (differ and OPERATORS[name][0] in EXACT):
            wrong[name] = (differ, beyond)
    assert not wrong


def _two_layers(make: Callable[[Any], Any], **steps: float) -> tuple[keras.Model, np.ndarray]:
    """A student of an image, a layer, and a convolution of the image; steps by layer name."""
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3), name="image")
    outputs = [make(image), layers.Conv2D(2, 1, name="conv")(image)]
    student = tf_fpq.quantize_model(keras.Model(image, outputs), [tf_fpq.QuantRule()])
    images = np.random.default_rng(0).uniform(-4, 4, (64, 4, 4, 3)).astype(np.float32)
    tf_fpq.calibrate(student, images, verbose=0)
    for name, step in steps.items():
        layer = student.get_layer(f"{name}_quantize")
        layer.quantizer.set_grid(layer.variables_of_quantizer, np.float32(step), np.float32(128))
    return student, images


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda x: layers.Rescaling(0.1, name="y")(x), {"image": 0.05, "y": 0.01}),
        (lambda x: layers.Multiply(name="y")([x, x]), {"image": 0.1, "y": 0.02}),
        (lambda x: layers.Add(name="y")([x, x]), {"image": 0.07, "y": 0.28}),
    ],
)
def test_an_operator_that_puts_every_other_code_on_a_tie_is_right(make, steps):
    student, images = _two_layers(make, **steps)
    differ, beyond = _compared(student, images)["y_quantize"]
    assert beyond == 0
    if "Add" not in type(student.get_layer("y")).__name__:
        assert differ > 0.05 * images.size  # more than many a fault makes


@pytest.mark.parametrize(("moved", "faulty"), [(0.0, False), (0.02, True)])
def test_a_fiftieth_of_a_step_in_one_channel_is_no_tie(moved, faulty):
    student, images = _two_layers(lambda x: layers.Conv2D(8, 3, name="y")(x))
    builder.round_biases(student)
    lowered = builder.lower(student)
    move = np.float32(moved) * lowered.deployed.tensors["y_quantize"].one_scale
    bias = student.get_layer("y").layer.bias
    bias.assign(bias + move * (np.arange(8) == 5))
    differ, beyond = _compared(student, images, lowered)["y_quantize"]
    assert bool(beyond) == faulty
    # The share of codes would not tell: it is a fiftieth of one channel's.
    assert differ < 0.005 * 64 * 2 * 2 * 8


def test_equal_grids_add_exactly():
    image = keras.Input((4, 4, 3), name="image")
    total = layers.Add(name="total")([image, layers.MaxPooling2D(2, 1, "same")(image)])
    student = tf_fpq.quantize_model(
        keras.Model(image, [total, layers.Conv2D(2, 1, name="conv")(image)]), [tf_fpq.QuantRule()]
    )
    for name in ("image_quantize", "total_quantize"):
        layer = student.get_layer(name)
        layer.quantizer.set_grid(layer.variables_of_quantizer, np.float32(0.03), np.float32(100))
    images = np.random.default_rng(0).normal(0, 2, (64, 4, 4, 3)).astype(np.float32)
    expected = integer_twin.IntegerTwin(builder.deploy(student)).codes(images)
    found = builder.student_codes(student)(images)
    assert np.array_equal(found["total_quantize"], expected["total_quantize"])
    assert len(np.unique(expected["total_quantize"])) > 200


def test_a_layer_normalization_of_two_channels_is_exact_in_its_ties():
    """The mean of two channels has half of their range: their difference ties on every other
    code."""
    image = keras.Input((4, 4, 2), name="image")
    mean = normalization.ChannelMean(name="mean")(image)
    difference = layers.Subtract(name="difference")([image, mean])
    student = tf_fpq.quantize_model(
        keras.Model(image, [difference, layers.Conv2D(2, 1, name="conv")(image)]),
        [tf_fpq.QuantRule()],
    )
    for name, step, zero_point in (
        ("image", 0.02, 0),
        ("mean", 0.01, 0),
        ("difference", 0.02, 128),
    ):
        layer = student.get_layer(f"{name}_quantize")
        layer.quantizer.set_grid(
            layer.variables_of_quantizer, np.float32(step), np.float32(zero_point)
        )
    images = np.random.default_rng(0).uniform(0, 5, (64, 4, 4, 2)).astype(np.float32)
    expected = integer_twin.IntegerTwin(builder.deploy(student)).codes(images)
    found = builder.student_codes(student)(images)
    for name in ("mean_quantize", "difference_quantize"):
        assert np.array_equal(found[name], expected[name])


def test_every_exact_operator_is_tested_here():
    assert student_bounds.EXACT_KINDS - student_bounds.MOVING_KINDS <= set(EXACT)
