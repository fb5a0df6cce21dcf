"""Where kernels come from, and the factors and offsets of affine layers."""

import numpy as np
import pytest

from tests.integration.exactness import randomize, student_of
from tf_fpq import quantizers
from tf_fpq.keras_compat import keras
from tflite_export.lowering import folding

layers = keras.layers


@pytest.mark.parametrize(
    "layer",
    [
        layers.BatchNormalization(),
        layers.BatchNormalization(scale=False),
        layers.BatchNormalization(center=False, epsilon=0.1),
        layers.BatchNormalization(scale=False, center=False),
        layers.Rescaling(2.0, -1.0),
        layers.Rescaling([1.0, 2.0, -3.0], [0.0, 1.0, 2.0]),
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 4.0, 0.0]),
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 4.0, 0.5], invert=True),
        layers.Normalization(axis=None, mean=0.5, variance=2.0),
    ],
)
def test_affine_layers_are_their_factor_and_offset(layer):
    image = keras.Input((2, 2, 3))
    model = randomize(keras.Model(image, layer(image)))
    factor, offset = folding.affine(layer)
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(x * factor + offset, model(x), rtol=1e-5, atol=1e-5)


def test_the_offset_variable_is_what_shifts_the_output():
    image = keras.Input((2, 2, 3))
    plain, bare = layers.BatchNormalization(), layers.BatchNormalization(center=False)
    plain(image), bare(image)
    assert folding.offset_variable(plain) is plain.beta
    assert (
        folding.offset_variable(bare) is None
        and folding.offset_variable(layers.Rescaling(1.0)) is None
    )


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (layers.Conv2D(5, 3, name="k"), (5, 3, 3, 4), 0),
        (layers.Conv2D(6, 3, groups=2, use_bias=False, name="k"), (6, 3, 3, 2), 0),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, name="k"), (1, 3, 3, 8), 3),
        (layers.Conv2DTranspose(5, 3, name="k"), (5, 3, 3, 4), 0),
        (layers.Dense(5, name="k"), (5, 4), 0),
    ],
)
def test_codes_times_scale_is_the_students_weight(layer, shape, axis):
    image = keras.Input((6, 6, 4))
    student = student_of(randomize(keras.Model(image, layer(image))), 3, 8)
    wrapper = student.get_layer("k")
    to_tflite = {
        layers.DepthwiseConv2D: lambda w: w.reshape(1, 3, 3, 8),
        layers.Conv2DTranspose: lambda w: w.transpose(2, 0, 1, 3),
        layers.Dense: np.transpose,
    }.get(type(layer), lambda w: w.transpose(3, 0, 1, 2))
    kernel = folding.quantized_kernel(wrapper, "call", to_tflite, axis)
    ((_, weight, quantizer, variables),) = wrapper.quantized_weights()
    assert (kernel.name, kernel.codes.shape, kernel.axis) == ("call_kernel", shape, axis)
    assert np.abs(kernel.codes).max() == 3
    scale = kernel.scale.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    np.testing.assert_allclose(
        kernel.codes * scale, to_tflite(quantizer(weight, False, variables).numpy()), rtol=1e-6
    )
    expected = wrapper.layer.bias.numpy() if wrapper.layer.use_bias else np.zeros(shape[axis])
    np.testing.assert_array_equal(kernel.bias, expected)


def test_a_float_kernel_is_refused():
    with pytest.raises(ValueError, match="'plain' has a float kernel"):
        folding.quantized_kernel(layers.Dense(2, name="plain"), "plain", np.transpose, 0)


@pytest.mark.parametrize("other", ["symmetric", "narrow_range"])
def test_weights_on_a_grid_of_another_kind_are_refused(other):
    kind = {"symmetric": True, "narrow_range": True, other: False}
    with pytest.raises(ValueError, match="'k' has weights on a grid that int8 weights do not"):
        folding._check_grid(layers.Dense(2, name="k"), quantizers.LsqQuantizer(4, **kind))


def test_the_unit_kernel_does_nothing():
    kernel = folding.unit_kernel("unit", 3)
    np.testing.assert_array_equal(kernel.codes.reshape(3) * kernel.scale, np.ones(3))
    assert not kernel.bias.any()
