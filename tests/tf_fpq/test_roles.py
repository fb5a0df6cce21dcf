"""The table of layers: roles, kernels, clamps, and why a layer has no integer form."""

import math

import pytest
import tensorflow as tf

from tf_fpq import roles
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import LsqQuantizeConfig
from tf_fpq.roles import Role
from tf_fpq.student_layers.quantized_layers import QuantizedLayer

layers = keras.layers


def test_every_class_has_one_role_and_every_kernel_its_channels():
    assert all(isinstance(found, Role) for found in roles.ROLES.values())
    shapes = {
        layers.Conv2D: (3, 3, 2, 5),
        layers.DepthwiseConv2D: (3, 3, 5, 1),
        layers.Conv2DTranspose: (3, 3, 5, 2),
    }
    for layer_class, shape in shapes.items():
        kernel = roles.KERNELS[layer_class]
        assert math.prod(shape[axis] for axis in kernel.axis) == 5
        assert roles.ROLES[layer_class] is Role.KERNEL


def test_a_subclass_is_not_its_base():
    class Mine(layers.Conv2D):
        pass

    assert roles.role(Mine(1, 1)) is None
    assert "Mine is not supported" in roles.problem(Mine(1, 1))


@pytest.mark.parametrize(
    ("layer", "bounds"),
    [
        (layers.ReLU(), (0.0, math.inf)),
        (layers.ReLU(3.5), (0.0, 3.5)),
        (layers.ReLU(negative_slope=0.1), None),
        (layers.ReLU(threshold=1.0), None),
        (layers.Activation(tf.nn.relu6), (0.0, 6.0)),
        (layers.Conv2D(1, 1), (-math.inf, math.inf)),
        (layers.Conv2D(1, 1, activation="relu"), (0.0, math.inf)),
        (layers.Activation("tanh"), None),
    ],
)
def test_clamps(layer, bounds):
    assert roles.clamp(layer) == bounds


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        (layers.Activation("linear"), Role.CLAMP),
        (layers.Activation("sigmoid"), Role.FIXED_GRID),
        (layers.Activation("elu"), None),
        (layers.UpSampling2D(interpolation="nearest"), Role.SAME_GRID),
        (layers.UpSampling2D(interpolation="bilinear"), Role.AVERAGE),
        (layers.LSTM(1), None),
    ],
)
def test_roles_that_depend_on_arguments(layer, role):
    assert roles.role(layer) is role


def _called(layer, *shape):
    layer(keras.Input(shape))
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(1, 1, data_format="channels_first"), "channels_first"),
        (layers.MaxPooling2D(data_format="channels_first"), "channels_first"),
        (layers.Dense(1, activation="elu"), "activation 'elu'"),
        (layers.Activation("elu"), "activation 'elu'"),
        (layers.Conv2DTranspose(1, 3, dilation_rate=2), "dilation_rate"),
        (layers.ReLU(negative_slope=0.1, max_value=6.0), "negative_slope"),
        (layers.UpSampling2D(interpolation="bicubic"), "bicubic"),
        (layers.Resizing(4, 4, crop_to_aspect_ratio=True), "crop_to_aspect_ratio"),
        (_called(layers.BatchNormalization(axis=1), 4, 4, 4), "axis=[1]"),
        (_called(layers.Softmax(axis=1), 4, 4), "axis=[1]"),
        (
            _called(layers.Normalization(axis=(1, 3), mean=0.0, variance=1.0), 4, 4, 4),
            "axis=[1, 3]",
        ),
        (layers.LSTM(1), "LSTM is not supported"),
    ],
)
def test_problems_are_named(layer, reason):
    assert reason in roles.problem(layer)


@pytest.mark.parametrize(
    "layer",
    [
        _called(layers.BatchNormalization(), 4, 4, 4),
        _called(layers.BatchNormalization(axis=3), 4, 4, 4),
        _called(layers.Normalization(axis=None, mean=0.0, variance=1.0), 4, 4, 4),
        _called(layers.Softmax(axis=2), 4, 4),
        layers.Conv2D(1, 1, activation="relu"),
    ],
)
def test_no_problem(layer):
    assert roles.problem(layer) is None


def test_what_is_a_convolution_wrapped_or_not():
    wrapped = QuantizedLayer(layers.DepthwiseConv2D(3), LsqQuantizeConfig())
    assert roles.is_convolution(wrapped) and roles.is_convolution(layers.Conv1D(1, 1))
    assert not roles.is_convolution(layers.Dense(1))
    assert roles.inner(wrapped).__class__ is layers.DepthwiseConv2D
