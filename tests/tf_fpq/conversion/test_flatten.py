"""Flattening keeps every bit, dissolves every nesting, and refuses what it cannot read."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.conversion.flat_models import (
    assert_flat_and_equal,
    layer_names,
    samples_of,
    scramble,
)
from tf_fpq.conversion import flatten
from tf_fpq.keras_compat import keras

layers = keras.layers


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.backend.reset_uids()


def test_sequential_around_a_model():
    base = keras.Sequential(
        [layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization()], name="base"
    )
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            base,
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="logits"),
        ]
    )
    flat = assert_flat_and_equal(scramble(model))
    assert layer_names(flat)[1:] == [
        "stem",
        "base_batch_normalization",
        "global_average_pooling2d",
        "logits",
    ]


def test_three_levels_and_back_to_file(tmp_path):
    inner = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(3)], name="inner")
    x = keras.Input((5,))
    middle = keras.Model(
        x, layers.Add()([inner(x), layers.Dense(3, name="skip")(x)]), name="middle"
    )
    y = keras.Input((5,), name="features")
    flat = assert_flat_and_equal(
        scramble(keras.Model(y, layers.Dense(2, name="logits")(middle(y)), name="outer"))
    )
    assert flat.name == "outer"
    assert layer_names(flat) == [
        "features",
        "inner_dense",
        "inner_dense_1",
        "skip",
        "add",
        "logits",
    ] or "middle_add" in layer_names(flat)
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    samples = samples_of(flat)
    np.testing.assert_array_equal(loaded(samples), flat(samples))


def test_shared_model_and_shared_layer_stay_shared():
    dense = layers.Dense(4, name="shared")
    tower = keras.Sequential([dense, layers.ReLU()], name="tower")
    a, b = keras.Input((4,)), keras.Input((4,))
    model = scramble(keras.Model([a, b], layers.Concatenate()([tower(a), tower(b), dense(a)])))
    flat = assert_flat_and_equal(model)
    assert len(flat.weights) == 2
    assert len(flat.get_layer("shared")._inbound_nodes) == 3


def test_a_repeated_tensor_and_an_unused_call_elsewhere():
    x = keras.Input((4,))
    dense = layers.Dense(4)
    dense(keras.Input((4,)))  # A node that is not of this model.
    y = dense(x)
    assert_flat_and_equal(scramble(keras.Model(x, layers.Add()([y, y, dense(y)]))))


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
    model = scramble(keras.Model(outer, [results["sum"], {"deep": layers.Dense(3)(results["b"])}]))
    flat = assert_flat_and_equal(model)
    assert flat.input_names == model.input_names
    assert_flat_and_equal(scramble(keras.Model(list(outer.values()), inner(list(outer.values())))))


@pytest.mark.parametrize("given", [True, False])
def test_training_given_to_a_nested_model_holds_inside(given):
    base = keras.Sequential([keras.Sequential([layers.BatchNormalization()])], name="base")
    x = keras.Input((4,))
    model = scramble(keras.Model(x, base(x, training=given)))
    flat = flatten.flatten(model)
    samples = samples_of(model)
    frozen, trained = flat(samples, training=False), flat(samples, training=True)
    np.testing.assert_array_equal(frozen, model(samples, training=False))
    np.testing.assert_array_equal(trained, model(samples, training=True))
    np.testing.assert_array_equal(np.array_equal(frozen, trained), True)


def test_an_inner_training_argument_wins():
    x = keras.Input((4,))
    inner = keras.Model(x, layers.BatchNormalization()(x, training=False))
    y = keras.Input((4,))
    assert_flat_and_equal(scramble(keras.Model(y, inner(y, training=True))))


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
    sequence, *states = layers.LSTM(5, return_sequences=True, return_state=True)(
        attended, initial_state=[state, state]
    )
    inner = keras.Model(x, [sequence, states])
    y = keras.Input((6, 4))
    assert_flat_and_equal(scramble(keras.Model(y, inner(y))))


def test_masks_pass_through_nested_models():
    tokens = keras.Input((6,), dtype="int32")
    embed = keras.Sequential([layers.Embedding(10, 4, mask_zero=True)], name="embed")
    reader = keras.Sequential([layers.Dense(4, activation="relu"), layers.LSTM(3)], name="reader")
    model = scramble(keras.Model(tokens, reader(embed(tokens))))
    assert_flat_and_equal(model, np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]], "int32"))


def test_nested_inputs_are_cast_and_reshaped_as_keras_does():
    x = keras.Input((4, 1))
    inner = keras.Model(x, layers.Conv1D(2, 2)(x))
    y = keras.Input((4,), dtype="float64")
    assert_flat_and_equal(scramble(keras.Model(y, inner(y))))


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
    assert_flat_and_equal(model)


def test_generic_names_get_their_models_names_and_stay_unique():
    def make(name):
        return keras.Sequential(
            [layers.Dense(4, name="dense"), layers.Dense(4, name="proj")], name=name
        )

    x = keras.Input((4,), name="x")
    model = keras.Model(
        x,
        layers.Dense(2, name="left_dense")(
            layers.Add(name="sum")([make("left")(x), make("right")(x)])
        ),
    )
    names = layer_names(flatten.flatten(model))
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
    flat = assert_flat_and_equal(model)
    assert layer_names(flat) == layer_names(model)
    assert layer_names(flatten.flatten(flat)) == layer_names(model)


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
    assert_flat_and_equal(scramble(keras.Model(inputs, model.call(inputs))))


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
