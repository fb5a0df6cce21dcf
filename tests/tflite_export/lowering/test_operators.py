"""Which TFLite operator a layer becomes, with which options and constants."""

import numpy as np
import pytest

from tests.integration.exactness import (
    assert_twin_is_interpreter,
    images_for,
    randomize,
    student_of,
)
from tf_fpq.keras_compat import keras
from tflite_export.lowering import builder, operators
from tflite_export.lowering.operators import UNBOUNDED, Codes, Pending
from tflite_export.twin import integer_twin

layers = keras.layers
INF = float("inf")


def _student(make, *shape, bits=8):
    """A student whose first output is `make`'s; a convolution beside it gives the rules something
    to match."""
    image = keras.Input(shape, name="image")
    outputs = [make(image), layers.Conv2D(1, 1, name="beside")(image)]
    return student_of(randomize(keras.Model(image, outputs)), bits, bits)


def _deployed(make, *shape, bits=8):
    return builder.deploy(_student(make, *shape, bits=bits))


def _operators(deployed):
    return [operator for operator in deployed.operators if operator.outputs != ("beside_quantize",)]


def _constants(deployed, operator):
    tensors = [deployed.tensors[name] for name in operator.inputs]
    return [
        tensor.data.tolist()
        for tensor in tensors
        if tensor.data is not None and tensor.dtype == "int32"
    ]


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "options", "constants"),
    [
        (
            layers.MaxPooling2D(3, 2, padding="same"),
            (6, 6, 2),
            "MAX_POOL_2D",
            {"filter": (3, 3), "strides": (2, 2), "padding": "SAME"},
            [],
        ),
        (
            layers.AveragePooling2D((2, 3)),
            (6, 6, 2),
            "AVERAGE_POOL_2D",
            {"filter": (2, 3), "strides": (2, 3), "padding": "VALID"},
            [],
        ),
        (
            layers.GlobalAveragePooling2D(keepdims=True),
            (6, 6, 2),
            "MEAN",
            {"keep_dims": True},
            [[1, 2]],
        ),
        (layers.GlobalMaxPooling2D(), (6, 6, 2), "REDUCE_MAX", {"keep_dims": False}, [[1, 2]]),
        (layers.Flatten(), (6, 6, 2), "RESHAPE", {}, [[-1, 72]]),
        (layers.Reshape((3, -1)), (6, 6, 2), "RESHAPE", {}, [[-1, 3, 24]]),
        (layers.Permute((3, 1, 2)), (6, 5, 2), "TRANSPOSE", {}, [[0, 3, 1, 2]]),
        (
            layers.ZeroPadding2D(((1, 2), (3, 4))),
            (6, 6, 2),
            "PAD",
            {},
            [[[0, 0], [1, 2], [3, 4], [0, 0]]],
        ),
        (
            layers.Cropping2D(((1, 2), (0, 3))),
            (6, 6, 2),
            "SLICE",
            {},
            [[0, 1, 0, 0], [-1, 3, 3, 2]],
        ),
        (
            layers.UpSampling2D((2, 3)),
            (6, 6, 2),
            "RESIZE_NEAREST_NEIGHBOR",
            {"half_pixel_centers": True},
            [[12, 18]],
        ),
        (
            layers.Resizing(4, 5),
            (6, 6, 2),
            "RESIZE_BILINEAR",
            {"half_pixel_centers": True},
            [[4, 5]],
        ),
        (layers.LeakyReLU(0.25), (6, 6, 2), "LEAKY_RELU", {"alpha": 0.25}, []),
        (layers.Activation("sigmoid"), (6, 6, 2), "LOGISTIC", {}, []),
        (layers.Activation("tanh"), (6, 6, 2), "TANH", {}, []),
        (layers.Softmax(), (6, 6, 2), "SOFTMAX", {"beta": 1.0}, []),
        (layers.ReLU(), (6, 6, 2), "RELU", {}, []),
        (layers.ReLU(6.0), (6, 6, 2), "RELU6", {}, []),
        (
            layers.BatchNormalization(),
            (6, 6, 2),
            "DEPTHWISE_CONV_2D",
            {"padding": "VALID", "depth_multiplier": 1, "activation": "NONE"},
            None,
        ),
    ],
)
def test_one_layer_is_one_operator(layer, shape, kind, options, constants):
    deployed = _deployed(layer, *shape)
    (operator,) = _operators(deployed)
    assert (operator.kind, dict(operator.options)) == (kind, options)
    assert "image_quantize" in operator.inputs
    if constants is not None:
        assert _constants(deployed, operator) == constants


@pytest.mark.parametrize(
    ("layer", "kind", "options"),
    [
        (
            layers.Conv2D(3, 3, dilation_rate=2),
            "CONV_2D",
            {"dilations": (2, 2), "strides": (1, 1), "padding": "VALID"},
        ),
        (
            layers.DepthwiseConv2D(3, 2, "same", 2),
            "DEPTHWISE_CONV_2D",
            {"depth_multiplier": 2, "strides": (2, 2)},
        ),
        (
            layers.Conv2DTranspose(3, 3, 2, "same", output_padding=1),
            "TRANSPOSE_CONV",
            {"strides": (2, 2)},
        ),
        (layers.Dense(3), "FULLY_CONNECTED", {"keep_num_dims": True}),
    ],
)
def test_kernels(layer, kind, options):
    (operator,) = _operators(_deployed(layer, 9, 9, 2))
    assert operator.kind == kind
    assert {key: operator.options[key] for key in options} == options
    assert operator.options["activation"] == "NONE"


@pytest.mark.parametrize(("clamp", "fused"), [(None, "RELU"), (6.0, "RELU6"), (2.0, "RELU")])
def test_a_clamp_is_fused_and_another_bound_is_a_minimum_at_its_code(clamp, fused):
    student = _student(
        lambda x: layers.ReLU(clamp, name="r")(layers.BatchNormalization()(layers.Conv2D(2, 1)(x))),
        6,
        6,
        2,
    )
    layer = student.get_layer("r_quantize")
    layer.quantizer.set_grid(
        layer.variables_of_quantizer, 0.05, 0.0
    )  # up to 12.75: the container clips nothing
    deployed = builder.deploy(student)
    convolution, *rest = _operators(deployed)
    assert convolution.options["activation"] == fused
    assert [operator.kind for operator in rest] == (["MINIMUM"] if clamp == 2.0 else [])
    if rest:
        assert deployed.tensors[rest[0].inputs[1]].data.tolist() == [-128 + 40]  # 2 / 0.05


def test_a_bound_at_the_end_of_the_grid_needs_no_minimum():
    deployed = _deployed(lambda x: layers.ReLU(0.5)(layers.Conv2D(2, 1)(x)), 6, 6, 2)
    assert [operator.kind for operator in _operators(deployed)] == ["CONV_2D"]


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("bound", [0.5, 1.0, 4.0])
def test_clamps_at_every_width(bits, bound):
    def make(x):
        return layers.Conv2D(2, 1)(layers.ReLU(bound)(layers.Conv2D(3, 1)(x)))

    image = keras.Input((4, 4, 2))
    model = randomize(keras.Model(image, make(image)))
    assert_twin_is_interpreter(student_of(model, bits, bits), images_for(model))


@pytest.mark.parametrize("kind", [layers.Maximum, layers.Minimum, layers.Concatenate])
def test_joint_grids_have_one_scale(kind):
    def make(x):
        return kind()(
            [layers.Conv2D(2, 1)(x), layers.ReLU()(layers.Conv2D(2, 3, padding="same")(x))]
        )

    deployed = _deployed(make, 6, 6, 2, bits=4)
    joint = next(
        operator for operator in deployed.operators if operator.outputs == deployed.outputs[:1]
    )
    grids = {
        (float(deployed.tensors[n].scale), deployed.tensors[n].zero_point)
        for n in (*joint.inputs, *joint.outputs)
    }
    assert len(grids) == 1


def test_prescribed_grids():
    for function, grid in {
        "sigmoid": (1 / 256, -128),
        "softmax": (1 / 256, -128),
        "tanh": (1 / 128, 0),
    }.items():
        deployed = _deployed(layers.Activation(function), 6, 6, 2)
        tensor = deployed.tensors[deployed.outputs[0]]
        assert (float(tensor.scale), tensor.zero_point) == grid


def test_pending_operators():
    conv = Pending("CONV_2D", (Codes("x"),), clamp=UNBOUNDED)
    assert operators.join(layers.ReLU(6.0), conv).fused == "RELU6"
    assert (
        operators.join(layers.ReLU(3.0), conv).fused == "RELU"
        and operators.join(layers.ReLU(3.0), conv).nonnegative
    )
    assert operators.join(layers.Activation("linear"), conv) == conv
    assert Pending("MEAN", (Codes("x", True),), monotone=True).nonnegative
    assert not Pending("MEAN", (Codes("x", True), Codes("y")), monotone=True).nonnegative
    assert Pending("RELU6", (Codes("x"),), clamp=(0.0, 6.0)).fused == "NONE"
    with pytest.raises(ValueError, match="reads a float tensor"):
        operators.join(layers.MaxPooling2D(name="pool"), conv)


def test_a_layer_without_an_operator():
    with pytest.raises(ValueError, match=r"'rnn' \(LSTM\) has no TFLite operator"):
        operators.start(None, layers.LSTM(1), "rnn", (), None)


@pytest.mark.parametrize(
    ("ratio", "zero_points"),
    [(255.0, (128, 128)), (256.0, (100, 0)), (300.0, (7, 126)), (1e4, (0, 3)), (1e17, (200, 255))],
)
def test_a_product_with_steps_beyond_the_outputs_grid_saturates(ratio, zero_points):
    student = _student(
        lambda x: layers.Multiply(name="y")([x, layers.MaxPooling2D(2, 1, "same")(x)]), 4, 4, 2
    )
    for name, step, zero_point in (
        ("image", 0.25, zero_points[0]),
        ("y", 0.0625 / ratio, zero_points[1]),
    ):
        quantize = student.get_layer(f"{name}_quantize")
        quantize.quantizer.set_grid(
            quantize.variables_of_quantizer, np.float32(step), np.float32(zero_point)
        )
    images = np.random.default_rng(0).integers(-3, 4, (8, 4, 4, 2)).astype(np.float32) / 4
    deployed = assert_twin_is_interpreter(student, images)
    kinds = [operator.kind for operator in _operators(deployed)]
    assert ("QUANTIZE" in kinds) == (ratio >= 256)
    expected = builder.student_codes(student)(images)["y_quantize"]
    found = integer_twin.IntegerTwin(deployed).codes(images)["y_quantize"]
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 1
