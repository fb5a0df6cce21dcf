"""Where kernels come from, and the factors and offsets of affine layers."""

import re
import types

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


@pytest.mark.parametrize(
    ("kind", "values", "factor", "offset"),
    [
        ("LayerScale", {"gamma": [2.0, -0.5]}, [2.0, -0.5], 0.0),
        ("ChannelAffine", {"gamma": [2.0, -0.5], "beta": [1.0, 3.0]}, [2.0, -0.5], [1.0, 3.0]),
        ("Rescaling", {"scale": 0.25, "offset": -1.0}, 0.25, -1.0),
        ("Division", {"scale": 0.25, "offset": -1.0}, 0.25, -1.0),
        (
            "Normalization",
            {"mean": [[1.0, 2.0]], "variance": [[4.0, 0.0]], "invert": False},
            [0.5, 1e7],
            [-0.5, -2e7],
        ),
        (
            "Normalization",
            {"mean": [[1.0, 2.0]], "variance": [[4.0, 0.0]], "invert": True},
            [2.0, 1e-7],
            [1.0, 2.0],
        ),
        (
            "BatchNormalization",
            {
                **{"gamma": 0.5, "beta": 1.0, "moving_mean": 3.0, "moving_variance": 3.75},
                **{"epsilon": 0.25, "scale": True, "center": True},
            },
            0.25,
            0.25,
        ),
        (
            "BatchNormalization",
            {
                **{"gamma": None, "beta": None, "moving_mean": 3.0, "moving_variance": 3.75},
                **{"epsilon": 0.25, "scale": False, "center": False},
            },
            0.5,
            -1.5,
        ),
    ],
)
def test_factor_and_offset_of_each_kind_in_float64(kind, values, factor, offset):
    layer = type(kind, (types.SimpleNamespace,), {})(**values)
    found = folding.affine(layer)
    for part, expected in zip(found, (factor, offset), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-12)
        assert part.dtype == np.float64 and np.shape(part) == np.shape(expected)


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
    assert (kernel.codes.dtype, kernel.bias.dtype, kernel.scale.dtype) == (np.int8, float, float)
    assert kernel.offset is (wrapper.layer.bias if wrapper.layer.use_bias else None)


def test_a_float_kernel_is_refused():
    message = (
        "Layer 'plain' has a float kernel: no rule matched it. Add a rule for it and quantize"
        " again."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folding.quantized_kernel(layers.Dense(2, name="plain"), "call", np.transpose, 0)


@pytest.mark.parametrize("other", ["symmetric", "narrow_range"])
def test_weights_on_a_grid_of_another_kind_are_refused(other):
    kind = {"symmetric": True, "narrow_range": True}
    layer, quantizer = layers.Dense(2, name="k"), quantizers.LsqQuantizer(4, **kind)
    folding._check_grid(layer, quantizer)
    wrong = quantizer.replace(**{other: False})
    message = (
        "Layer 'k' has weights on a grid that int8 weights do not have: set symmetric=True,"
        f" narrow_range=True. Received: {wrong.spec}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folding._check_grid(layer, wrong)
    wrong.has_grid = False
    folding._check_grid(layer, wrong)  # refused where its codes are asked for


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((1, 1), (2, 2), (2, 2)),
        ((1, 3), (2, 2), (2, 3)),
        ((3, 1), (2, 3), (3, 3)),
        ((2, 2), (2, 2), (2, 2)),
        ((3, 2), (1, 1), (3, 2)),
    ],
)
def test_zeros_behind_a_kernel_bring_it_up_to_its_strides(shape, strides, expected):
    kernel = np.arange(1, 1 + np.prod(shape) * 6).reshape(*shape, 2, 3)
    padded = folding.at_least_strides(kernel, strides)
    assert padded.shape == (*expected, 2, 3)
    np.testing.assert_array_equal(padded[: shape[0], : shape[1]], kernel)
    assert np.count_nonzero(padded) == kernel.size


def test_the_unit_kernel_does_nothing():
    kernel = folding.unit_kernel("unit", 3)
    assert (kernel.name, kernel.axis, kernel.offset) == ("unit_kernel", 3, None)
    assert kernel.codes.dtype == np.int8 and kernel.codes.tolist() == [[[[127] * 3]]]
    assert kernel.scale.tolist() == [1 / 127] * 3 and kernel.bias.tolist() == [0.0] * 3
