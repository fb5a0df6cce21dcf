"""3D layers, written as 2D ones, compute what they computed, and are exported."""

import numpy as np
import pytest

from tests.integration.exactness import assert_twin_is_interpreter
import tf_fpq
from tf_fpq.conversion.canonical import canonical
from tf_fpq.keras_compat import keras

layers = keras.layers
VOLUMES = np.random.default_rng(0).normal(size=(4, 5, 4, 6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "layer",
    [
        layers.GlobalAveragePooling3D(name="layer"),
        layers.GlobalMaxPooling3D(name="layer", keepdims=True),
        layers.Cropping3D(((1, 0), (0, 1), (2, 1)), name="layer"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_values_are_those_of_the_3d_layer_and_of_the_file(layer):
    volume = keras.Input((5, 4, 6, 3), name="volume")
    model = keras.Model(volume, layer(volume))
    found = canonical(model)
    assert not any("3D" in type(layer).__name__ for layer in found.layers)
    np.testing.assert_allclose(found(VOLUMES), model(VOLUMES), rtol=1e-5, atol=1e-6)
    dense = layers.Dense(2, name="dense")(layers.Flatten()(layer(volume)))
    student = tf_fpq.quantize_model(keras.Model(volume, dense), [tf_fpq.QuantRule()])
    tf_fpq.calibrate(student, VOLUMES, verbose=0)
    assert_twin_is_interpreter(student, VOLUMES)


def test_open_sides_are_refused_with_the_layer():
    volume = keras.Input((None, 4, 6, 3))
    model = keras.Model(volume, layers.GlobalMaxPooling3D(name="pool")(volume))
    with pytest.raises(ValueError, match="Layer 'pool' must be channels_last and know its volume"):
        canonical(model)
