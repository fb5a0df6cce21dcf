"""What every model goes through first: Keras 2, flat, canonical; the same names every time."""

import numpy as np
import pytest

from tests.integration.exactness import images_for, randomize
from tf_fpq.conversion import prepare
from tf_fpq.keras_compat import keras

layers = keras.layers


def _encoder():
    return keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(4, 3, activation="swish", name="conv")],
        name="encoder",
    )


def test_nested_operators_and_joint_layers_become_one_flat_canonical_model():
    image = keras.Input((6, 6, 2), name="image")
    x = _encoder()(image)
    x = layers.SeparableConv2D(3, 3, name="separable")(x * 2.0 + 1.0)
    model = keras.Model(
        image, layers.Dense(2, activation="softmax", name="dense")(layers.Flatten()(x))
    )
    result = prepare.prepare(model)
    x = images_for(model)
    np.testing.assert_allclose(result(x), model(x), atol=1e-6)
    assert {"conv", "separable", "dense", "dense_softmax", "separable_depthwise"} <= {
        layer.name for layer in result.layers
    }
    assert not [layer for layer in result.layers if isinstance(layer, keras.Model)]
    again = prepare.prepare(model)
    assert [layer.name for layer in again.layers] == [layer.name for layer in result.layers]
    assert prepare.prepare(result) is result


def test_a_sequential_model_that_was_built_later():
    model = keras.Sequential([layers.Conv2D(2, 3), layers.BatchNormalization(), layers.ReLU()])
    model.build((None, 6, 6, 2))
    assert prepare.prepare(randomize(model)) is model


@pytest.mark.parametrize("model", [None, "model.keras", layers.Dense(1)])
def test_no_model(model):
    with pytest.raises(TypeError, match="must be a Keras model"):
        prepare.prepare(model)


def test_subclassed_and_unbuilt_models():
    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="subclassed"):
        prepare.prepare(Mine())
    with pytest.raises(ValueError, match="without an input shape"):
        prepare.prepare(keras.Sequential([layers.Dense(1)]))
