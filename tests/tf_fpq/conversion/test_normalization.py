"""Layer normalization in canonical layers."""

import numpy as np
import pytest

import tf_fpq
from tf_fpq import roles
from tf_fpq.conversion import canonical, normalization
from tf_fpq.keras_compat import keras

layers = keras.layers


def randomized(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0.5, 0.5, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 4, 5)])
@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.5}])
def test_the_rewrite_computes_the_same(shape, arguments):
    model = randomized(
        keras.Sequential([keras.Input(shape), layers.LayerNormalization(name="norm", **arguments)])
    )
    result = canonical.canonical(model)
    x = np.random.default_rng(1).normal(2.0, 3.0, (7, *shape)).astype(np.float32)
    np.testing.assert_allclose(result(x), model(x), atol=2e-5)
    assert isinstance(result.get_layer("norm"), normalization.ChannelAffine)
    assert all(roles.problem(layer) is None for layer in result.layers[1:])


@pytest.mark.parametrize("axis", [1, (1, 2)])
def test_other_axes_are_refused_with_the_layers_name(axis):
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.LayerNormalization(axis=axis, name="norm"), layers.Dense(2)]
    )
    assert canonical.canonical(model) is model
    with pytest.raises(ValueError, match="norm: .*LayerNormalization"):
        tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])


def test_a_shared_normalization_shares_gamma_and_beta():
    image = keras.Input((4, 4, 3))
    norm, conv = layers.LayerNormalization(name="norm"), layers.Conv2D(3, 1, name="conv")
    result = canonical.canonical(randomized(keras.Model(image, norm(conv(norm(image))))))
    assert sum(isinstance(layer, normalization.ChannelAffine) for layer in result.layers) == 1
    assert len(result.get_layer("norm")._inbound_nodes) == 2


def test_the_layers_are_saved(tmp_path):
    image = keras.Input((4, 4, 3))
    norm = layers.LayerNormalization(epsilon=0.1, gamma_regularizer="l2", name="norm")
    student = tf_fpq.quantize_model(
        keras.Model(image, layers.Conv2D(2, 1)(norm(image))), [tf_fpq.QuantRule()]
    )
    x = np.random.default_rng(1).normal(0.0, 1.0, (4, 4, 4, 3)).astype(np.float32)
    tf_fpq.calibrate(student, x, verbose=0)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(x), student(x))
    assert len(student.losses) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2},
        {"dilation_rate": 2},
        {"filters": 12, "activation": "relu"},
        {"use_bias": False},
    ],
)
def test_a_convolution_with_a_group_per_channel_is_depthwise(arguments):
    conv = layers.Conv2D(
        **{
            "filters": 4,
            "kernel_size": 3,
            "groups": 4,
            "padding": "same",
            "name": "conv",
            **arguments,
        }
    )
    model = randomized(keras.Sequential([keras.Input((6, 6, 4)), conv]))
    result = canonical.canonical(model)
    assert type(result.get_layer("conv")) is layers.DepthwiseConv2D
    x = np.random.default_rng(1).normal(0.0, 1.0, (3, 6, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(result(x), model(x), atol=1e-5)


@pytest.mark.parametrize("arguments", [{"groups": 2}, {"groups": 4, "strides": (1, 2)}])
def test_other_grouped_convolutions_stay(arguments):
    conv = layers.Conv2D(4, 3, name="conv", **arguments)
    model = keras.Sequential([keras.Input((6, 6, 4)), conv])
    assert canonical.canonical(model) is model
