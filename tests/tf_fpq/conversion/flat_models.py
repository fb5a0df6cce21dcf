"""What the tests of flattening share: weights that show a forgotten copy, samples, and the
comparison bit for bit."""

import numpy as np
import tensorflow as tf

from tf_fpq.conversion import flatten
from tf_fpq.keras_compat import keras


def samples_of(model: keras.Model, seed: int = 0):
    random = np.random.default_rng(seed)

    def draw(tensor):
        return random.normal(size=(3, *tensor.shape[1:])).astype(tensor.dtype.as_numpy_dtype)

    return tf.nest.map_structure(draw, model.input)


def scramble(model: keras.Model) -> keras.Model:
    """Weights that no initializer makes: a copy that forgets one of them (moving statistics!)
    shows."""
    random = np.random.default_rng(1)
    model.set_weights(
        [
            random.uniform(0.2, 1.0, weight.shape).astype(weight.dtype)
            for weight in model.get_weights()
        ]
    )
    return model


def assert_flat_and_equal(model: keras.Model, samples=None) -> keras.Model:
    flat = flatten.flatten(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert len({layer.name for layer in flat.layers}) == len(flat.layers)
    assert not {id(variable) for variable in flat.variables} & {
        id(variable) for variable in model.variables
    }
    samples = samples_of(model) if samples is None else samples
    for training in (False, True):
        tf.nest.map_structure(
            np.testing.assert_array_equal,
            model(samples, training=training),
            flat(samples, training=training),
        )
    return flat


def class_names(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def layer_names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]
