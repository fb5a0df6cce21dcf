"""Folding is exact: codes keep, scales absorb the factor, biases the offset."""

import numpy as np
import pytest

from tests.integration.exactness import randomize, student_of
from tf_fpq.keras_compat import keras
from tflite_export.lowering import folding

layers = keras.layers


def _kernel(codes, scale, bias):
    codes = np.array(codes, np.int8).reshape(len(scale), 1, 1, -1)
    return folding.Kernel("k", codes, 0, np.array(scale), np.array(bias))


def test_a_factor_scales_flips_or_silences_a_channel():
    kernel = _kernel([[1, -7], [2, 3], [4, 5]], [0.5, 0.25, 0.125], [1.0, 2.0, 3.0])
    folded = kernel.fold(np.array([2.0, -1.0, 0.0]), np.array([0.5, 0.0, 7.0]))
    assert folded.codes.reshape(3, 2).tolist() == [[1, -7], [-2, -3], [0, 0]]
    assert folded.codes.dtype == np.int8
    assert folded.scale.tolist() == [
        1.0,
        0.25,
        0.125,
    ]  # a silent channel keeps a scale that is no zero
    assert folded.bias.tolist() == [2.5, -2.0, 7.0]


def test_one_factor_for_all_channels():
    folded = _kernel([[1, 2], [3, 4]], [0.5, 0.25], [1.0, 2.0]).fold(np.array(-2.0), np.array(1.0))
    assert folded.codes.ravel().tolist() == [-1, -2, -3, -4]
    assert folded.scale.tolist() == [1.0, 0.5] and folded.bias.tolist() == [-1.0, -3.0]


def test_folding_twice_is_folding_the_product():
    rng = np.random.default_rng(0)
    kernel = _kernel(rng.integers(-7, 8, (4, 3)), rng.random(4), rng.normal(size=4))
    (f, a), (g, b) = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    twice, once = kernel.fold(f, a).fold(g, b), kernel.fold(f * g, a * g + b)
    np.testing.assert_array_equal(twice.codes, once.codes)
    np.testing.assert_allclose(twice.scale, once.scale)
    np.testing.assert_allclose(twice.bias, once.bias)


@pytest.mark.parametrize(
    ("codes", "limit", "power"),
    [
        ([[1, -1], [0, 1]], 127, 64),
        ([[1, -1], [0, 1]], 7, 4),
        ([[7, 0], [3, -2]], 127, 16),
        ([[7, 0], [3, -2]], 7, 1),
        ([[127, 1], [0, 0]], 127, 1),
        ([[-128, 1], [0, 0]], 127, 1),
        ([[0, 0], [0, 0]], 127, 64),
    ],
)
def test_wider_codes_are_the_same_weights(codes, limit, power):
    kernel = _kernel(codes, [0.5, 0.25], [1.0, -2.0])
    wide = kernel.widened(limit, 0.1)
    assert (
        wide.codes.dtype == np.int8
        and wide.codes.reshape(2, 2).tolist() == (power * np.array(codes)).tolist()
    )
    assert (wide.scale * power).tolist() == [0.5, 0.25] and wide.bias.tolist() == [1.0, -2.0]


def test_codes_are_as_wide_as_the_bias_allows():
    # 1e7 steps of 0.1 * 0.5: times 64 still below 2^30, 4e7 steps are not, and 2e9 steps stay for
    # the exporter to refuse.
    powers = [
        _kernel([[1]], [0.5], [steps * 0.05]).widened(127, 0.1).codes.item()
        for steps in (1e7, 4e7, 2e9)
    ]
    assert powers == [64, 16, 1]


@pytest.mark.parametrize(
    ("bias", "output_scale", "dead"),
    [(1.0, 0.01, True), (4e-6, 1e-8, False), (1e-8, 1e-3, False)],
    ids=["products below a step", "products show", "fits int32"],
)
def test_a_channel_whose_bias_has_no_room_is_constant_where_its_products_do_not_show(
    bias, output_scale, dead
):
    kernel = _kernel(
        [[127, -3], [100, 127]], [0.01, 1e-14], [0.5, bias]
    )  # reaches 255 * 227 * 0.1 * 1e-14 = 5.8e-11
    found = kernel.within(0.1, output_scale)
    assert found.codes.dtype == np.int8
    np.testing.assert_array_equal(found.codes[0], kernel.codes[0])
    assert (found.scale[0], found.bias[1]) == (0.01, bias)
    if dead:
        assert not found.codes[1].any()
        assert np.rint(bias / (0.1 * found.scale[1])) == 2**23
    else:
        np.testing.assert_array_equal(found.codes, kernel.codes)
        assert found.scale[1] == 1e-14


def test_a_bias_ends_where_every_sum_saturates():
    kernel = _kernel([[2, -3], [2, -3]], [0.01, 0.01], [1e9, -1.0])
    found = kernel.within(0.1, 0.5)
    np.testing.assert_allclose(found.bias, [255 * 5 * 0.001 + 512 * 0.5, -1.0])
    np.testing.assert_array_equal(found.codes, kernel.codes)


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


def test_the_unit_kernel_does_nothing():
    kernel = folding.unit_kernel("unit", 3)
    np.testing.assert_array_equal(kernel.codes.reshape(3) * kernel.scale, np.ones(3))
    assert not kernel.bias.any()
