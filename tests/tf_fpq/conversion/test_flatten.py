"""Flattening keeps every bit, dissolves every nesting, and turns operators into layers."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tf_fpq.conversion import flatten, operator_layers
from tf_fpq.keras_compat import keras

layers = keras.layers


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.backend.reset_uids()


def _samples(model: keras.Model, seed: int = 0):
    random = np.random.default_rng(seed)

    def draw(tensor):
        return random.normal(size=(3, *tensor.shape[1:])).astype(tensor.dtype.as_numpy_dtype)

    return tf.nest.map_structure(draw, model.input)


def _scramble(model: keras.Model) -> keras.Model:
    """Weights that no initializer makes: a copy that forgets one of them (moving statistics!) shows."""
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.2, 1.0, weight.shape).astype(weight.dtype) for weight in model.get_weights()])
    return model


def _assert_flat_and_equal(model: keras.Model, samples=None) -> keras.Model:
    flat = flatten.flatten(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert len({layer.name for layer in flat.layers}) == len(flat.layers)
    assert not {id(variable) for variable in flat.variables} & {id(variable) for variable in model.variables}
    samples = _samples(model) if samples is None else samples
    for training in (False, True):
        tf.nest.map_structure(
            np.testing.assert_array_equal,
            model(samples, training=training),
            flat(samples, training=training),
        )
    return flat


def _classes(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def _names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def test_sequential_around_a_model():
    base = keras.Sequential([layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization()], name="base")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            base,
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="logits"),
        ]
    )
    flat = _assert_flat_and_equal(_scramble(model))
    assert _names(flat)[1:] == [
        "stem",
        "base_batch_normalization",
        "global_average_pooling2d",
        "logits",
    ]


def test_three_levels_and_back_to_file(tmp_path):
    inner = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(3)], name="inner")
    x = keras.Input((5,))
    middle = keras.Model(x, layers.Add()([inner(x), layers.Dense(3, name="skip")(x)]), name="middle")
    y = keras.Input((5,), name="features")
    flat = _assert_flat_and_equal(_scramble(keras.Model(y, layers.Dense(2, name="logits")(middle(y)), name="outer")))
    assert flat.name == "outer"
    assert _names(flat) == [
        "features",
        "inner_dense",
        "inner_dense_1",
        "skip",
        "add",
        "logits",
    ] or "middle_add" in _names(flat)
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    samples = _samples(flat)
    np.testing.assert_array_equal(loaded(samples), flat(samples))


def test_shared_model_and_shared_layer_stay_shared():
    dense = layers.Dense(4, name="shared")
    tower = keras.Sequential([dense, layers.ReLU()], name="tower")
    a, b = keras.Input((4,)), keras.Input((4,))
    model = _scramble(keras.Model([a, b], layers.Concatenate()([tower(a), tower(b), dense(a)])))
    flat = _assert_flat_and_equal(model)
    assert len(flat.weights) == 2
    assert len(flat.get_layer("shared")._inbound_nodes) == 3


def test_a_repeated_tensor_and_an_unused_call_elsewhere():
    x = keras.Input((4,))
    dense = layers.Dense(4)
    dense(keras.Input((4,)))  # A node that is not of this model.
    y = dense(x)
    _assert_flat_and_equal(_scramble(keras.Model(x, layers.Add()([y, y, dense(y)]))))


def test_dictionaries_and_lists_in_and_out():
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((4,), name="a")}
    inner = keras.Model(
        inputs,
        {
            "sum": layers.Add()([inputs["a"], inputs["b"]]),
            "b": layers.Dense(2)(inputs["b"]),
        },
    )
    outer = {
        "a": keras.Input((4,), name="first"),
        "b": keras.Input((4,), name="second"),
    }
    results = inner({"a": outer["b"], "b": outer["a"]})
    model = _scramble(keras.Model(outer, [results["sum"], {"deep": layers.Dense(3)(results["b"])}]))
    flat = _assert_flat_and_equal(model)
    assert flat.input_names == model.input_names
    _assert_flat_and_equal(_scramble(keras.Model(list(outer.values()), inner(list(outer.values())))))


@pytest.mark.parametrize("given", [True, False])
def test_training_given_to_a_nested_model_holds_inside(given):
    base = keras.Sequential([keras.Sequential([layers.BatchNormalization()])], name="base")
    x = keras.Input((4,))
    model = _scramble(keras.Model(x, base(x, training=given)))
    flat = flatten.flatten(model)
    samples = _samples(model)
    frozen, trained = flat(samples, training=False), flat(samples, training=True)
    np.testing.assert_array_equal(frozen, model(samples, training=False))
    np.testing.assert_array_equal(trained, model(samples, training=True))
    np.testing.assert_array_equal(np.array_equal(frozen, trained), True)


def test_an_inner_training_argument_wins():
    x = keras.Input((4,))
    inner = keras.Model(x, layers.BatchNormalization()(x, training=False))
    y = keras.Input((4,))
    _assert_flat_and_equal(_scramble(keras.Model(y, inner(y, training=True))))


def test_frozen_layers_stay_frozen():
    base = keras.Sequential([layers.Dense(4, name="a"), layers.Dense(4, name="b")], name="base")
    model = keras.Sequential([keras.Input((4,)), base, layers.Dense(2, name="head")])
    base.trainable = False
    base.layers[1].trainable = True  # Without effect, as `base` is frozen.
    flat = flatten.flatten(model)
    assert [weight.name for weight in flat.trainable_weights] == [
        "head/kernel:0",
        "head/bias:0",
    ]


def test_keyword_tensors_constants_and_states():
    x = keras.Input((6, 4))
    attended = layers.MultiHeadAttention(2, 3)(query=x, value=x[:, :3], key=x[:, 3:])
    state = layers.Dense(5)(layers.GlobalAveragePooling1D()(x))
    sequence, *states = layers.LSTM(5, return_sequences=True, return_state=True)(attended, initial_state=[state, state])
    inner = keras.Model(x, [sequence, states])
    y = keras.Input((6, 4))
    _assert_flat_and_equal(_scramble(keras.Model(y, inner(y))))


def test_masks_pass_through_nested_models():
    tokens = keras.Input((6,), dtype="int32")
    embed = keras.Sequential([layers.Embedding(10, 4, mask_zero=True)], name="embed")
    reader = keras.Sequential([layers.Dense(4, activation="relu"), layers.LSTM(3)], name="reader")
    model = _scramble(keras.Model(tokens, reader(embed(tokens))))
    _assert_flat_and_equal(model, np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]], "int32"))


def test_nested_inputs_are_cast_and_reshaped_as_keras_does():
    x = keras.Input((4, 1))
    inner = keras.Model(x, layers.Conv1D(2, 2)(x))
    y = keras.Input((4,), dtype="float64")
    _assert_flat_and_equal(_scramble(keras.Model(y, inner(y))))


def test_adapted_normalization_and_wrapped_layers():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 5, 4)))
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            keras.Sequential([normalization]),
            layers.TimeDistributed(layers.Dense(3)),
        ]
        + [layers.Bidirectional(layers.GRU(2))]
    )
    _assert_flat_and_equal(model)


def test_generic_names_get_their_models_names_and_stay_unique():
    def make(name):
        return keras.Sequential([layers.Dense(4, name="dense"), layers.Dense(4, name="proj")], name=name)

    x = keras.Input((4,), name="x")
    model = keras.Model(
        x,
        layers.Dense(2, name="left_dense")(layers.Add(name="sum")([make("left")(x), make("right")(x)])),
    )
    names = _names(flatten.flatten(model))
    assert sorted(names) == sorted(
        [
            "x",
            "left_dense_1",
            "left_proj",
            "right_dense",
            "right_proj",
            "sum",
            "left_dense",
        ]
    ), "the outer layer keeps its name"


def test_a_flat_model_keeps_all_names():
    x = keras.Input((8, 8, 3), name="image")
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Conv2D(3, 3)(x))))
    flat = _assert_flat_and_equal(model)
    assert _names(flat) == _names(model)
    assert _names(flatten.flatten(flat)) == _names(model)


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
    flat = _assert_flat_and_equal(keras.Model([x, y], [function(x, y), layers.Activation("linear", name="end")(y)]))
    found = sorted(name for name in _classes(flat) if name != "InputLayer")
    assert found == sorted([*expected, "Activation"])
    flat.save(tmp_path / "flat.keras")
    samples = _samples(flat)
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    tf.nest.map_structure(np.testing.assert_array_equal, loaded(samples), flat(samples))


def test_an_operator_on_a_masked_tensor_stays():
    x = keras.Input((6, 4))
    model = keras.Model(x, layers.LSTM(3)(tf.nn.relu(layers.Masking()(x))))
    assert "TFOpLambda" in _classes(
        _assert_flat_and_equal(model)
    )  # ReLU would pass the mask on, the operator drops it.


def test_operators_of_a_shared_nested_model():
    x = keras.Input((4,))
    inner = keras.Model(x, tf.nn.relu(x + 1.0) * 2.0, name="inner")
    a, b = keras.Input((4,)), keras.Input((4,))
    flat = _assert_flat_and_equal(keras.Model([a, b], inner(a) * inner(b)))
    assert _names(flat)[2:] == [
        "inner_rescaling",
        "inner_re_lu",
        "inner_rescaling_1",
        "multiply",
    ]


def test_operators_of_a_model_with_open_dimensions():
    x = keras.Input((None, None, 3))
    inner = keras.Model(x, (x - [0.1, 0.2, 0.3]) / 2.0)
    y = keras.Input((4, 4, 3))
    flat = _assert_flat_and_equal(keras.Model(y, inner(y)))
    assert _classes(flat) == ["InputLayer", "Rescaling", "Division"]
    wide = keras.Model(x, x + tf.ones([1, 5, 1, 3]))  # Repeats an input of height 1.
    assert "TFOpLambda" in _classes(flatten.flatten(wide))


def test_division_is_a_rescaling():
    layer = operator_layers.Division(4.0)
    assert (layer.scale, layer.offset) == (0.25, 0.0)
    assert operator_layers.Division.from_config(layer.get_config()).divisor == 4.0


class _Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return tf.nn.relu(self.dense(inputs))


def test_subclassed_models_are_all_named_with_the_ways_out():
    x = keras.Input((4,))
    model = keras.Model(
        x,
        [
            _Subclassed(name="one")(x),
            keras.Sequential([_Subclassed(name="two")], name="box")(x),
        ],
    )
    with pytest.raises(
        TypeError,
        match=r"'model/one' \(_Subclassed\), 'model/box/two' \(_Subclassed\).*Two ways out",
    ):
        flatten.flatten(model)


def test_the_first_way_out_works():
    model = _Subclassed()
    inputs = keras.Input((4,))
    _assert_flat_and_equal(_scramble(keras.Model(inputs, model.call(inputs))))


def test_other_refusals():
    with pytest.raises(TypeError, match="tf_keras"):
        flatten.flatten("model")
    with pytest.raises(ValueError, match=r"without an input shape.*build"):
        flatten.flatten(keras.Sequential([layers.Dense(3)]))
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(3)(x))
    model.add_loss(tf.reduce_sum(model.output))
    with pytest.raises(ValueError, match="add_loss"):
        flatten.flatten(model)


def test_a_layer_without_a_config_is_named():
    class Bare(layers.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size = size

    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"layer 'bare' of class Bare.*get_config"):
        flatten.flatten(keras.Model(x, Bare(object(), name="bare")(x)))


@st.composite
def _models(draw, depth: int = 3) -> keras.Model:
    """A functional or Sequential model on 4 features, with branches, sharing, operators and nested models."""
    if draw(st.booleans()):
        kinds = draw(
            st.lists(
                st.sampled_from(["dense", "norm", "relu", "model"]),
                min_size=1,
                max_size=3,
            )
        )
        return keras.Sequential([keras.Input((4,)), *[draw(_blocks(kind, depth)) for kind in kinds]])
    tensors, used = [keras.Input((4,))], []
    for kind in draw(
        st.lists(
            st.sampled_from(["dense", "norm", "model", "again", "pair", "scalar", "act"]),
            min_size=1,
            max_size=5,
        )
    ):
        x, y = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        if kind == "pair":
            operator = draw(
                st.sampled_from(
                    [
                        lambda a, b: a + b,
                        lambda a, b: a - b,
                        lambda a, b: a * b,
                        tf.maximum,
                    ]
                )
            )
            tensors.append(operator(x, y))
        elif kind == "scalar":
            constant = draw(st.floats(0.125, 3.0, width=32))
            operator = draw(
                st.sampled_from(
                    [
                        lambda a, c: a + c,
                        lambda a, c: c - a,
                        lambda a, c: a * c,
                        lambda a, c: a / c,
                    ]
                )
            )
            tensors.append(operator(x, constant))
        elif kind == "act":
            tensors.append(draw(st.sampled_from([tf.nn.relu, tf.nn.relu6, tf.sigmoid, tf.abs]))(x))
        else:
            block = draw(st.sampled_from(used)) if kind == "again" and used else draw(_blocks(kind, depth))
            used.append(block)
            tensors.append(block(x))
    return keras.Model(tensors[0], tensors[-1])


@st.composite
def _blocks(draw, kind: str, depth: int) -> keras.layers.Layer:
    name = draw(st.sampled_from(["body", "head", "tail"]))
    if kind == "model" and depth > 0:
        return draw(_models(depth=depth - 1))
    if kind == "norm":
        return layers.BatchNormalization()
    return layers.ReLU() if kind == "relu" else layers.Dense(4, name=f"{name}_{keras.backend.get_uid(name)}")


@hypothesis.given(_models())
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_random_nested_models(tmp_path_factory, model):
    _check_random(tmp_path_factory, model)


@pytest.mark.slow
@hypothesis.given(_models())
@hypothesis.settings(max_examples=200, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_two_hundred_random_nested_models(tmp_path_factory, model):
    _check_random(tmp_path_factory, model)


def _check_random(tmp_path_factory, model: keras.Model) -> None:
    flat = _assert_flat_and_equal(_scramble(model))
    path = tmp_path_factory.mktemp("flat") / "flat.keras"
    flat.save(path)
    samples = _samples(flat)
    np.testing.assert_array_equal(keras.models.load_model(path)(samples), flat(samples))
