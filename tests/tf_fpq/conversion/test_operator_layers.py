"""Operators become the layers that compute the same bits; what has no exact counterpart stays an
operator."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.conversion.flat_models import (
    assert_flat_and_equal,
    class_names,
    layer_names,
    samples_of,
)
from tf_fpq.conversion import flatten, operator_layers
from tf_fpq.keras_compat import keras

layers = keras.layers


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.backend.reset_uids()


OPERATORS = {
    "add": (lambda x, y: x + y, ["Add"]),
    "same": (lambda x, y: x + x, ["Add"]),
    "subtract": (lambda x, y: tf.subtract(x, y), ["Subtract"]),
    "multiply": (lambda x, y: x * y, ["Multiply"]),
    "add_n": (lambda x, y: tf.add_n([x, y]), ["Add"]),
    "square": (lambda x, y: tf.square(x), ["Multiply"]),
    "maximum": (lambda x, y: tf.maximum(x, y), ["Maximum"]),
    "minimum": (lambda x, y: tf.minimum(x, y), ["Minimum"]),
    "x + c": (lambda x, y: x + 1.3, ["Rescaling"]),
    "c - x": (lambda x, y: 1.3 - x, ["Rescaling"]),
    "x - vector": (lambda x, y: x - tf.constant([0.1, 0.2, 0.3]), ["Rescaling"]),
    "array * x": (
        lambda x, y: tf.multiply(np.float32([0.1, 0.2, 0.3]), x),
        ["Rescaling"],
    ),
    "x * c": (lambda x, y: x * 0.7, ["Rescaling"]),
    "x / c": (lambda x, y: x / 255.0, ["Division"]),
    "x / vector": (lambda x, y: tf.math.divide(x, [0.1, 0.2, 0.3]), ["Division"]),
    "-x": (lambda x, y: -x, ["Rescaling"]),
    "normalize": (lambda x, y: (x - 127.5) / 127.5, ["Rescaling", "Division"]),
    "relu": (lambda x, y: tf.nn.relu(x), ["ReLU"]),
    "relu6": (lambda x, y: tf.nn.relu6(x), ["ReLU"]),
    "keras relu": (lambda x, y: keras.activations.relu(x, max_value=6.0), ["ReLU"]),
    "max(x, 0)": (lambda x, y: tf.maximum(x, 0.0), ["ReLU"]),
    "clip": (lambda x, y: tf.clip_by_value(x, 0.0, 1.5), ["ReLU"]),
    "leaky": (lambda x, y: tf.nn.leaky_relu(x, 0.1), ["LeakyReLU"]),
    "sigmoid": (lambda x, y: tf.sigmoid(x), ["Activation"]),
    "tanh": (lambda x, y: tf.tanh(x), ["Activation"]),
    "swish": (lambda x, y: keras.activations.swish(x), ["Activation"]),
    "gelu": (lambda x, y: tf.nn.gelu(x), ["Activation"]),
    "elu": (lambda x, y: tf.nn.elu(x), ["Activation"]),
    "softmax": (lambda x, y: tf.nn.softmax(x), ["Softmax"]),
    "softmax 1": (lambda x, y: tf.nn.softmax(x, axis=1), ["Softmax"]),
    "hard sigmoid": (
        lambda x, y: keras.activations.hard_sigmoid(x),
        ["Rescaling", "Rescaling", "ReLU"],
    ),
    "hard swish": (
        lambda x, y: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
        ["Rescaling", "ReLU", "Multiply", "Rescaling"],
    ),
    "concat": (lambda x, y: tf.concat([x, y], axis=-1), ["Concatenate"]),
    "reshape": (lambda x, y: tf.reshape(x, [-1, 48]), ["Reshape"]),
    "reshape by shape": (
        lambda x, y: tf.reshape(x, [tf.shape(x)[0], 4, 12]),
        ["Reshape"],
    ),
    "expand": (lambda x, y: tf.expand_dims(x, 1), ["Reshape"]),
    "squeeze": (
        lambda x, y: tf.squeeze(tf.expand_dims(x, 1), [1]),
        ["Reshape", "Reshape"],
    ),
    "transpose": (lambda x, y: tf.transpose(x, [0, 3, 1, 2]), ["Permute"]),
    "mean": (lambda x, y: tf.reduce_mean(x, [1, 2]), ["GlobalAveragePooling2D"]),
    "mean keepdims": (
        lambda x, y: tf.reduce_mean(x, axis=(1, 2), keepdims=True),
        ["GlobalAveragePooling2D"],
    ),
    "max": (lambda x, y: tf.reduce_max(x, [1, 2]), ["GlobalMaxPooling2D"]),
    "pad": (
        lambda x, y: tf.pad(x, [[0, 0], [0, 1], [2, 1], [0, 0]]),
        ["ZeroPadding2D"],
    ),
    # What has no exact counterpart stays an operator.
    "divide": (lambda x, y: x / y, ["TFOpLambda"]),
    "c / x": (lambda x, y: 1.0 / x, ["TFOpLambda"]),
    "broadcast": (lambda x, y: x + tf.ones([3, 4, 4, 3]), ["TFOpLambda"]),
    "ranks": (lambda x, y: x + tf.reduce_mean(y, [0, 1]), ["TFOpLambda", "TFOpLambda"]),
    "beta": (lambda x, y: tf.nn.silu(x, beta=2.0), ["TFOpLambda"]),
    "approximate": (lambda x, y: tf.nn.gelu(x, approximate=True), ["TFOpLambda"]),
    "batch softmax": (lambda x, y: tf.nn.softmax(x, axis=0), ["TFOpLambda"]),
    "batch concat": (lambda x, y: tf.concat([x, y], axis=0), ["TFOpLambda"]),
    "batch reshape": (lambda x, y: tf.reshape(x, [-1, 3]), ["TFOpLambda"]),
    "batch transpose": (lambda x, y: tf.transpose(x, [1, 0, 2, 3]), ["TFOpLambda"]),
    "all": (lambda x, y: tf.reduce_mean(x), ["TFOpLambda"]),
    "channels": (lambda x, y: tf.reduce_mean(x, -1), ["TFOpLambda"]),
    "fill": (
        lambda x, y: tf.pad(x, [[0, 0], [0, 1], [2, 1], [0, 0]], constant_values=1.0),
        ["TFOpLambda"],
    ),
    "slice": (lambda x, y: x[:, 1:, ::2], ["SlicingOpLambda"]),
    "integers": (lambda x, y: tf.cast(x, "int32") + 1, ["TFOpLambda", "TFOpLambda"]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_become_layers(name, tmp_path):
    function, expected = OPERATORS[name]
    x, y = keras.Input((4, 4, 3), name="x"), keras.Input((4, 4, 3), name="y")
    flat = assert_flat_and_equal(
        keras.Model([x, y], [function(x, y), layers.Activation("linear", name="end")(y)])
    )
    found = sorted(name for name in class_names(flat) if name != "InputLayer")
    assert found == sorted([*expected, "Activation"])
    flat.save(tmp_path / "flat.keras")
    samples = samples_of(flat)
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    tf.nest.map_structure(np.testing.assert_array_equal, loaded(samples), flat(samples))


def test_an_operator_on_a_masked_tensor_stays():
    x = keras.Input((6, 4))
    model = keras.Model(x, layers.LSTM(3)(tf.nn.relu(layers.Masking()(x))))
    assert "TFOpLambda" in class_names(
        assert_flat_and_equal(model)
    )  # ReLU would pass the mask on, the operator drops it.


def test_operators_of_a_shared_nested_model():
    x = keras.Input((4,))
    inner = keras.Model(x, tf.nn.relu(x + 1.0) * 2.0, name="inner")
    a, b = keras.Input((4,)), keras.Input((4,))
    flat = assert_flat_and_equal(keras.Model([a, b], inner(a) * inner(b)))
    assert layer_names(flat)[2:] == [
        "inner_rescaling",
        "inner_re_lu",
        "inner_rescaling_1",
        "multiply",
    ]


def test_operators_of_a_model_with_open_dimensions():
    x = keras.Input((None, None, 3))
    inner = keras.Model(x, (x - [0.1, 0.2, 0.3]) / 2.0)
    y = keras.Input((4, 4, 3))
    flat = assert_flat_and_equal(keras.Model(y, inner(y)))
    assert class_names(flat) == ["InputLayer", "Rescaling", "Division"]
    wide = keras.Model(x, x + tf.ones([1, 5, 1, 3]))  # Repeats an input of height 1.
    assert "TFOpLambda" in class_names(flatten.flatten(wide))


def test_division_is_a_rescaling():
    layer = operator_layers.Division(4.0)
    assert (layer.scale, layer.offset) == (0.25, 0.0)
    assert operator_layers.Division.from_config(layer.get_config()).divisor == 4.0
