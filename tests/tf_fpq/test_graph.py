"""Reading and replaying functional models."""

import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_fpq
from tf_fpq import graph
from tf_fpq.keras_compat import keras

layers = keras.layers


def _identity(model):
    inputs = graph.new_inputs(model)
    return keras.Model(
        inputs,
        graph.replay(
            model, tf.nest.flatten(inputs), lambda call, args, kwargs: call.layer(*args, **kwargs)
        ),
    )


def _siamese():
    """A shared convolution: its first call is the deeper one, and the graph orders by depth."""
    a, b = keras.Input((4, 4, 2), name="a"), keras.Input((4, 4, 2), name="b")
    shared = layers.Conv2D(2, 1, name="conv")
    early = shared(a)
    late = layers.ReLU(name="relu_2")(layers.ReLU(name="relu_1")(shared(b)))
    return keras.Model([a, b], layers.Add(name="add")([early, late]))


def test_replay_is_the_identity_with_lists_dicts_and_repeated_arguments():
    a, b = keras.Input((4,), name="z"), keras.Input((4,), name="a")
    hidden = layers.Dense(4)(a)
    doubled = layers.Add()([hidden, hidden])
    model = keras.Model(
        {"z": a, "a": b}, {"sum": layers.Concatenate()([doubled, b]), "all": [hidden, b]}
    )
    copy = _identity(model)
    data = {"z": np.ones((2, 4), np.float32), "a": np.full((2, 4), 3, np.float32)}
    expected, found = model(data), copy(data)
    assert set(found) == {"sum", "all"} and len(found["all"]) == 2
    for left, right in zip([expected["sum"], *expected["all"]], [found["sum"], *found["all"]]):
        np.testing.assert_array_equal(left, right)


def test_only_the_models_own_calls_are_seen():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(2, 3, name="conv"), layers.ReLU(name="relu")]
    )
    other = keras.Model(model.input, layers.Softmax(name="other")(model.get_layer("conv").output))
    model(keras.Input((4, 4, 1)))
    model.get_layer("conv")(keras.Input((4, 4, 1)))
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 4, 4, 1)), np.zeros((2, 2, 2, 2)), verbose=0)
    assert [call.name for call in graph.calls(model)] == ["conv", "relu"]
    assert [call.name for call in graph.calls(other)] == ["conv", "other"]
    assert [len(found) for found in graph.readers(model).values()] == [1, 1]


def test_calls_of_a_shared_layer_have_names_that_no_layer_has():
    image = keras.Input((4, 4, 2))
    shared = layers.Conv2D(2, 1, name="conv")
    x = shared(layers.Conv2D(2, 1, name="conv_1")(shared(image)))
    assert [call.name for call in graph.calls(keras.Model(image, x))] == [
        "conv",
        "conv_1",
        "conv_2",
    ]


def test_calls_keep_their_numbers_when_layers_come_in_between():
    model = _siamese()
    first = [call.inputs[0].name for call in graph.calls(model) if call.name == "conv"]
    assert first == ["a"]

    def with_more_layers(call, args, kwargs):
        value = call.layer(*args, **kwargs)
        return layers.ReLU()(layers.ReLU()(layers.ReLU()(value))) if call.name == "conv" else value

    inputs = graph.new_inputs(model)
    changed = keras.Model(inputs, graph.replay(model, inputs, with_more_layers))
    names = {
        call.name: call.inputs[0].name for call in graph.calls(changed) if call.layer.name == "conv"
    }
    assert names == {"conv": "a", "conv_1": "b"}
    order = [call.name for call in graph.calls(changed)]
    assert order.index("conv") < order.index("conv_1") < order.index("relu_1") < order.index("add")


def test_unique_names():
    taken = {"a", "a_1"}
    assert [graph.unique_name(name, taken) for name in ("b", "a", "a", "b")] == [
        "b",
        "a_2",
        "a_3",
        "b_1",
    ]


def test_new_inputs_keep_names_and_structure_and_are_float():
    a, b = keras.Input((2,), dtype="uint8", name="z"), keras.Input((3,), name="a")
    model = keras.Model({"z": a, "a": b}, [layers.Rescaling(2.0)(a), b])
    inputs = graph.new_inputs(model)
    assert {name: (tuple(t.shape), t.dtype.name, t.name) for name, t in inputs.items()} == {
        "z": ((None, 2), "float32", "z"),
        "a": ((None, 3), "float32", "a"),
    }


def test_copy_layer_computes_in_float32_and_needs_no_foreign_initializer():
    class Local(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None, **kwargs):
            return np.ones(shape, "float32")

    layer = layers.Dense(
        3, kernel_initializer=Local(), bias_initializer="ones", dtype="mixed_bfloat16", name="d"
    )
    copy = graph.copy_layer(layer, activation="relu")
    assert (copy.name, copy.compute_dtype, copy.activation.__name__) == ("d", "float32", "relu")
    assert (
        type(copy.kernel_initializer).__name__ == "Zeros"
        and type(copy.bias_initializer).__name__ == "Ones"
    )


def test_copy_weights_of_an_adapted_normalization():
    source, target = layers.Normalization(), layers.Normalization()
    data = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    source.adapt(data)
    target.build((None, 4))
    graph.copy_weights(source, target)
    np.testing.assert_array_equal(source(data), target(data))


@pytest.mark.parametrize("thing", [None, layers.Dense(1), keras.Sequential([layers.Dense(1)])])
def test_what_has_no_graph(thing):
    assert not graph.is_functional(thing)


@pytest.mark.slow
def test_a_model_deeper_than_pythons_usual_stack_is_quantized_saved_and_loaded(tmp_path):
    x = inputs = keras.Input((2,))
    for _ in range(1100):
        x = keras.layers.ActivityRegularization()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    tf_fpq.quantize_model(model, [tf_fpq.QuantRule()]).save(tmp_path / "deep.keras")
    assert len(keras.models.load_model(tmp_path / "deep.keras").layers) > 1100


def test_importing_leaves_pythons_recursion_limit_alone():
    limit = sys.getrecursionlimit()
    with graph.deep_recursion():
        assert sys.getrecursionlimit() >= graph.RECURSION_LIMIT
    assert sys.getrecursionlimit() == limit < graph.RECURSION_LIMIT


@pytest.mark.slow
def test_a_graph_deeper_than_the_recursion_limit_is_made_and_walked():
    x = inputs = keras.Input((2,))
    for index in range(sys.getrecursionlimit() + 50):
        x = layers.Activation("relu", name=f"relu_{index}")(x)
    with pytest.raises(RecursionError):
        keras.Model(inputs, x)
    model = graph.functional(inputs, x)
    assert sum(1 for _ in graph.calls(model)) == sys.getrecursionlimit() + 50
