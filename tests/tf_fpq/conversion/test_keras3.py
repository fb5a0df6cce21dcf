"""Keras 3 models arrive in tf_keras with the same outputs, or are refused with everything that
stands in the way."""

import os
import pathlib
import subprocess
import sys

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq.conversion import flatten, loading
from tf_fpq.conversion import keras3 as bridge
from tf_fpq.keras_compat import keras

layers3 = keras3.layers


@pytest.fixture(autouse=True)
def _same_weights_every_time():
    keras3.utils.set_random_seed(0)


def _scramble(model):
    """Weights other than kernels away from zero and one, so that a forgotten one shows."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" not in weight.path.split("/")[-1] and weight.dtype == "float32":
            weight.assign(random.uniform(0.5, 1.0, weight.shape))
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return model


def _assert_converted(model, samples=None) -> keras.Model:
    converted = bridge.from_keras3(_scramble(model), samples)
    assert isinstance(converted, keras.Model)
    if samples is None:
        random = np.random.default_rng(1)
        samples = tf.nest.map_structure(
            lambda tensor: random.normal(size=(3, *tensor.shape[1:])).astype("float32"),
            converted.input,
        )
    expected = keras3.tree.flatten(model(samples, training=False))
    found = tf.nest.flatten(converted(samples, training=False))
    for theirs, ours in zip(expected, found, strict=True):
        assert np.std(theirs) > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    return converted


def _sequential(*layers, shape=(8, 8, 4)):
    return keras3.Sequential([keras3.Input(shape), *layers])


LAYERS = {
    "conv": [
        layers3.Conv2D(3, 3, strides=2, padding="same", activation="silu", kernel_regularizer="l2")
    ],
    "grouped": [layers3.Conv2D(4, 3, groups=2, dilation_rate=2, use_bias=False)],
    "depthwise": [layers3.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6")],
    "separable": [layers3.SeparableConv2D(3, 3, activation="hard_silu")],
    "transposed": [layers3.Conv2DTranspose(3, 3, strides=2, activation="leaky_relu")],
    "norms": [
        layers3.BatchNormalization(epsilon=1e-2),
        layers3.LayerNormalization(),
        layers3.GroupNormalization(2),
    ],
    "relu": [
        layers3.ReLU(max_value=0.5, negative_slope=0.2, threshold=0.1),
        layers3.LeakyReLU(0.1),
        layers3.PReLU(),
    ],
    "pooling": [
        layers3.MaxPooling2D(),
        layers3.AveragePooling2D(3, padding="same"),
        layers3.GlobalAveragePooling2D(),
    ],
    "space": [
        layers3.ZeroPadding2D(((0, 1), (2, 1))),
        layers3.Cropping2D(1),
        layers3.UpSampling2D(2),
        layers3.Flatten(),
    ],
    "order": [layers3.Permute((3, 1, 2)), layers3.Reshape((4, 64))],
    "scaling": [
        layers3.Rescaling([0.5, 1.0, 2.0, 3.0], offset=-1.0),
        layers3.Normalization(mean=0.3, variance=2.0),
    ],
    "random": [
        layers3.Dropout(0.5, seed=3),
        layers3.GaussianNoise(0.1),
        layers3.RandomFlip(),
        layers3.RandomContrast(0.1),
    ],
    "dense": [
        layers3.Dense(5, activation=layers3.ReLU(max_value=1.0), kernel_constraint="non_neg"),
        layers3.Softmax(),
    ],
    "einsum": [
        layers3.EinsumDense("bhwc,cd->bhwd", (None, None, 6), bias_axes="d", activation="tanh")
    ],
    "rnn": [
        layers3.Reshape((16, 16)),
        layers3.Bidirectional(layers3.LSTM(3, return_sequences=True)),
        layers3.TimeDistributed(layers3.Dense(4, activation="relu")),
        layers3.RNN([layers3.GRUCell(3), layers3.SimpleRNNCell(2)]),
    ],
    "conv1d": [
        layers3.Reshape((16, 16)),
        layers3.Conv1D(3, 3, padding="causal"),
        layers3.GlobalMaxPooling1D(),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    made = [layer.__class__.from_config(layer.get_config()) for layer in LAYERS[name]]
    converted = _assert_converted(_sequential(*made))
    assert {layer.name for layer in made} <= {layer.name for layer in converted.layers}


ACTIVATIONS = [
    "relu",
    "relu6",
    "sigmoid",
    "tanh",
    "elu",
    "selu",
    "softplus",
    "softsign",
    "exponential",
    "gelu",
    "mish",
]
ACTIVATIONS += [
    "softmax",
    "silu",
    "linear",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
]
ACTIVATIONS += ["log_softmax", "squareplus", "tanh_shrink"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    _assert_converted(
        _sequential(layers3.Dense(5, activation=name), layers3.Activation(name), shape=(4,))
    )


ops = keras3.ops
OPERATIONS = {
    "arithmetic": lambda x, y: (x + y) * x - y / (ops.square(y) + 1.0),
    "scalars": lambda x, y: 1.0 - (2 * x + 0.5) / 3.0,
    "extrema": lambda x, y: ops.clip(ops.maximum(x, y), -0.5, 0.5) + ops.minimum(x, -y),
    "functions": lambda x, y: (
        ops.exp(-ops.abs(x)) + ops.log(ops.sqrt(ops.square(y) + 1.0)) + ops.power(x, 2)
    ),
    "reductions": lambda x, y: (
        ops.mean(x, axis=(1, 2), keepdims=True)
        + ops.max(y, axis=-1, keepdims=True)
        - ops.sum(x, 1)[:, None]
    ),
    "shapes": lambda x, y: (
        ops.transpose(ops.reshape(x, (-1, 8, 32)), (0, 2, 1))
        + ops.squeeze(ops.expand_dims(y[:, 0, 0, :1], 1), -1)[..., None]
    ),
    "joins": lambda x, y: (
        ops.concatenate([x, y], -1)[:, 1:, ::2]
        + ops.pad(x, [[0, 0], [0, 0], [0, 0], [2, 2]])[:, 1:, ::2]
    ),
    "stack": lambda x, y: (
        ops.flip(ops.stack([x, y], axis=1), axis=2) + ops.split(x, 2, axis=-1)[0][:, None, ..., :1]
    ),
    "activations": lambda x, y: (
        ops.hard_silu(x)
        + ops.gelu(y)
        + ops.leaky_relu(x)
        + ops.softmax(y)
        + ops.relu6(x) * ops.silu(y)
    ),
    "keras relu": lambda x, y: (
        keras3.activations.relu(x, max_value=0.7, negative_slope=0.1)
        + keras3.activations.sigmoid(y)
    ),
    "matmul": lambda x, y: (
        ops.matmul(x, ops.transpose(y, (0, 1, 3, 2)))
        + ops.cast(ops.not_equal(x[..., :1], 0.0), "float32")
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_flat_form(name):
    x, y = keras3.Input((8, 8, 4), name="x"), keras3.Input((8, 8, 4), name="y")
    converted = _assert_converted(keras3.Model([x, y], OPERATIONS[name](x, y)))
    random = np.random.default_rng(2)
    samples = [random.normal(size=(2, 8, 8, 4)).astype("float32") for _ in range(2)]
    np.testing.assert_array_equal(flatten.flatten(converted)(samples), converted(samples))


def test_nesting_sharing_and_structures():
    dense = layers3.Dense(4, name="shared")
    tower = keras3.Sequential(
        [keras3.Input((4,)), dense, layers3.BatchNormalization(name="norm")], name="tower"
    )
    a, b = keras3.Input((4,), name="a"), keras3.Input((4,), name="b")
    both = keras3.Model(
        {"a": a, "b": b}, {"sum": layers3.Add()([tower(a), tower(b)]), "own": dense(a)}, name="both"
    )
    c, d = keras3.Input((4,), name="c"), keras3.Input((4,), name="d")
    results = both({"a": d, "b": c})
    model = keras3.Model(
        [c, d], [results["own"], {"end": layers3.Dense(2, name="end")(results["sum"])}]
    )
    converted = _assert_converted(model)
    assert len(converted.weights) == len(model.weights) == 8
    assert {layer.name for layer in converted.layers} == {"c", "d", "both", "end"}
    flat = flatten.flatten(converted)
    assert {"shared", "norm", "end"} <= {layer.name for layer in flat.layers}


def test_masks_and_keyword_tensors():
    tokens = keras3.Input((6,), dtype="int32")
    x = layers3.Embedding(10, 4, mask_zero=True)(tokens)
    x = layers3.MultiHeadAttention(2, 3)(x, value=x, key=x[:, :, :])
    x = layers3.Concatenate()([layers3.LSTM(5)(x), layers3.GlobalAveragePooling1D()(x)])
    samples = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]], "int32")
    _assert_converted(keras3.Model(tokens, x), samples)


def test_states_given_to_a_recurrent_layer():
    x = keras3.Input((6, 4))
    state = layers3.Dense(5)(layers3.GlobalAveragePooling1D()(x))
    _assert_converted(keras3.Model(x, layers3.LSTM(5)(x, initial_state=[state, state])))


def test_open_dimensions_and_frozen_layers():
    model = keras3.Sequential(
        [
            keras3.Input((None, None, 3)),
            layers3.Conv2D(4, 40, name="wide"),
            layers3.GlobalMaxPooling2D(),
        ]
    )
    model.get_layer("wide").trainable = False
    converted = bridge.from_keras3(model)  # 32 pixels are too few; the check finds larger ones.
    assert converted.input_shape == (None, None, None, 3)
    assert not converted.trainable_weights


def test_training_belongs_to_the_outermost_call():
    inner = keras3.Sequential([keras3.Input((4,)), layers3.BatchNormalization(momentum=0.5)])
    x = keras3.Input((4,))
    converted = bridge.from_keras3(keras3.Model(x, layers3.Dense(2)(inner(x, training=False))))
    before = converted.get_weights()
    converted(np.ones((2, 4), "float32"), training=True)
    assert any(
        not np.array_equal(old, new)
        for old, new in zip(before, converted.get_weights(), strict=True)
    )


def test_a_small_application(tmp_path):
    model = keras3.applications.MobileNetV2(
        weights=None, alpha=0.35, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    converted = _assert_converted(model)
    assert [layer.name for layer in converted.layers] == [layer.name for layer in model.layers]
    flat = flatten.flatten(converted)
    flat.save(tmp_path / "flat.keras")
    samples = np.random.default_rng(3).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(
        loading.load_model(tmp_path / "flat.keras")(samples), converted(samples)
    )


class _Own(layers3.Layer):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_everything_in_the_way_is_named_at_once():
    x = keras3.Input((8, 4))
    inner = keras3.Sequential(
        [keras3.Input((8, 4)), layers3.RMSNormalization(name="rms")], name="inner"
    )
    y = layers3.Lambda(lambda t: t * 2.0, name="code")(_Own(name="own")(inner(x)))
    y = layers3.Dense(4, name="glu", activation="glu")(
        layers3.LayerNormalization(name="norm", rms_scaling=True)(y)
    )
    model = keras3.Model(x, ops.cumsum(y, axis=1), name="model")
    with pytest.raises(ValueError) as caught:
        bridge.from_keras3(model)
    message = str(caught.value)
    assert "model/inner/rms (RMSNormalization): tf_keras has no such layer" in message
    assert "model/code (Lambda)" in message
    assert "model/own (_Own): a class of your own, '_Own': write it for tf_keras too" in message
    assert "model/norm (LayerNormalization): tf_keras has no argument 'rms_scaling'" in message
    assert "activation='glu'" in message
    assert "(Cumsum): no counterpart is known" in message


def _in_both_keras(name, error=1.0):
    """`_Own`, as a class of Keras 3, and a class of tf_keras under the same registered name that
    computes `error` times as much."""

    @keras.utils.register_keras_serializable(package="test_keras3", name=name)
    class Own(keras.layers.Layer):
        def __init__(self, factor=2.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

        def call(self, x):
            return x * self.scale * self.factor * error

    source = type(f"{name}3", (_Own,), {})
    return keras3.saving.register_keras_serializable(package="test_keras3", name=name)(source), Own


def test_a_registered_twin_of_a_users_layer():
    source, twin = _in_both_keras("Twin")
    converted = _assert_converted(_sequential(source(factor=3.0, name="twin"), shape=(4,)))
    assert isinstance(converted.get_layer("twin"), twin)


def test_the_layer_that_computes_something_else_is_named():
    source, _ = _in_both_keras("Liar", error=1.001)
    inner = _sequential(
        layers3.Dense(4, name="before"), source(factor=1.0, name="liar"), layers3.ReLU(), shape=(4,)
    )
    x = keras3.Input((4,))
    model = keras3.Model(x, layers3.Dense(3, name="after")(inner(x)), name="model")
    with pytest.raises(
        ValueError,
        match=(
            rf"computes something else.*The first layer that does: model/{inner.name}/liar"
            r" \(Liar3\) "
        ),
    ):
        bridge.from_keras3(model)
    found = {each.where.split("/")[-1].split()[0]: each.ok for each in bridge.measure(model).layers}
    assert found.pop("liar") is False and all(found.values()) and {"before", "after"} <= set(found)


def test_a_network_that_amplifies_rounding_is_right_if_every_layer_is(monkeypatch):
    warned = []
    monkeypatch.setattr(
        bridge.logging, "warning", lambda text, *arguments: warned.append(text % arguments)
    )
    x = keras3.Input((64,))
    y = ops.sigmoid(layers3.LayerNormalization()(x))
    for _ in range(60):
        y = 4.0 * y * (1.0 - y)  # doubles every difference
    bridge.from_keras3(keras3.Model(x, y, name="chaos"))
    assert len(warned) == 1 and "'chaos': output 0 of shape (2, 64) differs by" in warned[0]
    assert "each of its" in warned[0].lower()


class _Subclassed(keras3.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers3.Dense(3)

    def call(self, inputs):
        return ops.relu(self.dense(inputs))


def test_subclassed_models_are_refused_with_the_ways_out():
    x = keras3.Input((4,))
    model = keras3.Model(x, [_Subclassed(name="one")(x), _Subclassed(name="two")(x)], name="model")
    with pytest.raises(
        TypeError, match=r"'model/one' \(_Subclassed\), 'model/two' \(_Subclassed\).*Two ways out"
    ):
        bridge.from_keras3(model)
    _assert_converted(keras3.Model(x, model.get_layer("one").call(x)))  # The first of them.


def test_other_refusals():
    with pytest.raises(TypeError, match="Keras 3 model"):
        bridge.from_keras3(keras.Sequential())
    with pytest.raises(ValueError, match=r"without an input shape.*build"):
        bridge.from_keras3(keras3.Sequential([layers3.Dense(3)]))


def test_weights_that_are_no_numbers_are_named():
    model = _sequential(layers3.Dense(2, name="dense"), shape=(4,))
    model.get_layer("dense").bias.assign([np.nan, 0.0])
    with pytest.raises(
        ValueError, match="model must have finite weights.*NaN or infinity in dense/bias:0"
    ):
        bridge.from_keras3(model)


def test_is_keras3_model(monkeypatch):
    assert bridge.is_keras3_model(_sequential(layers3.Dense(2)))
    assert not bridge.is_keras3_model(keras.Sequential())
    assert not bridge.is_keras3_model(layers3.Dense(2))
    monkeypatch.delitem(sys.modules, "keras")
    assert not bridge.is_keras3_model(keras.Sequential())
    assert "keras" not in sys.modules


_ON_JAX = """
import numpy as np
import keras as keras3
assert keras3.backend.backend() == "jax"
model = keras3.Sequential([
    keras3.Input((8, 8, 3)),
    keras3.layers.Conv2D(4, 3, activation="relu6"),
    keras3.layers.BatchNormalization(),
    keras3.layers.GlobalAveragePooling2D(),
    keras3.layers.Dense(5),
])
model.save("jax.keras")
import tf_fpq
from tf_fpq.conversion import loading
images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
tf_fpq.calibrate(student, images, verbose=0)
expected = np.asarray(model(images))
np.testing.assert_allclose(loading.load_model("jax.keras")(images), expected, atol=1e-5)
np.testing.assert_allclose(student(images), expected, atol=0.05)
"""


@pytest.mark.slow
def test_models_of_another_backend_than_tensorflow(tmp_path):
    root = pathlib.Path(tf_fpq.__file__).parents[1]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", _ON_JAX]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
