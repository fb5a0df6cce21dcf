"""Canonical layers compute what the model computes, under names that no other layer has, with the
same regularization."""

import numpy as np
import pytest

from tests.integration.exactness import images_for, randomize
from tf_fpq import graph
from tf_fpq.conversion.canonical import canonical
from tf_fpq.keras_compat import keras
from tf_fpq.placement import grids

layers = keras.layers
UNIFORM = keras.initializers.RandomUniform(-0.3, 0.3, seed=1)


def _model(make, *shape):
    image = keras.Input(shape)
    return randomize(keras.Model(image, make(image)))


def _assert_same(model, expected_layers=None):
    """Canonical, supported, equal, with variables of its own."""
    result = canonical(model)
    x = images_for(model)
    np.testing.assert_allclose(result(x), model(x), atol=2e-6)
    assert canonical(result) is result
    assert not grids.plan(result).problems
    assert not {id(v) for v in result.variables} & {id(v) for v in model.variables}
    kinds = [type(call.layer).__name__ for call in graph.calls(result)]
    if expected_layers is not None:
        assert kinds == expected_layers.split()
    return result


def test_a_canonical_model_is_returned_as_it_is():
    model = _model(
        lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(2, 3)(x))), 8, 8, 3
    )
    assert canonical(model) is model


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (layers.Conv2D(2, 3, activation="softmax"), (6, 6, 3), "Conv2D Activation"),
        (layers.Conv2D(2, 3, activation="swish"), (6, 6, 3), "Conv2D Activation Multiply"),
        (layers.Dense(2, activation="hard_sigmoid"), (6,), "Dense Rescaling ReLU"),
        (layers.ReLU(negative_slope=0.2), (6, 6, 3), "LeakyReLU"),
        (
            layers.SeparableConv2D(4, 3, depth_multiplier=2, strides=2),
            (8, 8, 3),
            "DepthwiseConv2D Conv2D",
        ),
        (
            layers.SeparableConv2D(4, 3, dilation_rate=2, activation="relu", use_bias=False),
            (8, 8, 3),
            None,
        ),
        (layers.Conv1D(4, 3, strides=2, padding="same"), (9, 3), "Reshape Conv2D Reshape"),
        (layers.Conv1D(4, 3, dilation_rate=2, padding="causal", activation="relu"), (9, 3), None),
        (layers.Conv1D(4, 3, groups=2, use_bias=False), (9, 4), "Reshape Conv2D Reshape"),
        (layers.MaxPooling1D(2, padding="same"), (9, 3), "Reshape MaxPooling2D Reshape"),
        (layers.AveragePooling1D(3, 2), (9, 3), "Reshape AveragePooling2D Reshape"),
        (layers.GlobalMaxPooling1D(), (9, 3), "Reshape GlobalMaxPooling2D"),
        (
            layers.GlobalAveragePooling1D(keepdims=True),
            (9, 3),
            "Reshape GlobalAveragePooling2D Reshape",
        ),
        (layers.ZeroPadding1D((1, 2)), (9, 3), "Reshape ZeroPadding2D Reshape"),
        (layers.Cropping1D((1, 2)), (9, 3), "Reshape Cropping2D Reshape"),
        (layers.UpSampling1D(3), (9, 3), "Reshape UpSampling2D Reshape"),
        (layers.BatchNormalization(), (9,), "Reshape BatchNormalization Reshape"),
        (layers.BatchNormalization(axis=2), (4, 3), "Reshape BatchNormalization Reshape"),
        (layers.Rescaling(2.0, 1.0), (4, 3), "Reshape Rescaling Reshape"),
        (layers.Normalization(axis=None, mean=0.3, variance=2.0), (4, 3), None),
    ],
)
def test_one_layer(make, shape, expected):
    _assert_same(_model(make, *shape), expected)


@pytest.mark.parametrize(
    "kind", [layers.Add, layers.Multiply, layers.Maximum, layers.Minimum, layers.Average]
)
def test_many_operands(kind):
    def make(x):
        return kind(name="joined")([x, layers.ReLU()(x), layers.Conv2D(3, 1)(x), x])

    assert _assert_same(_model(make, 4, 4, 3)).get_layer("joined")


def test_linear_activations_vanish():
    def make(x):
        return layers.Activation("linear")(layers.Dense(2)(layers.Activation("linear")(x)))

    _assert_same(_model(make, 5), "Dense")


def test_a_batch_norm_in_two_dimensions_follows_its_convolution():
    def make(x):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(4, 3)(x)))
        return layers.Conv1D(2, 3)(x)

    kinds = "Reshape Conv2D Reshape BatchNormalization Reshape ReLU Reshape Conv2D Reshape"
    result = canonical(_model(make, 9, 3))
    # The reshapes between are read by nothing.
    assert [type(call.layer).__name__ for call in graph.calls(result)] == [
        kind
        for kind in kinds.replace(
            "Reshape BatchNormalization Reshape ReLU Reshape", "BatchNormalization ReLU"
        ).split()
    ]


def test_what_is_not_elementwise_stays_in_one_dimension():
    def make(x):
        x = layers.PReLU(alpha_initializer=UNIFORM)(layers.Conv1D(4, 3)(x))
        x = layers.PReLU(shared_axes=[1], alpha_initializer=UNIFORM)(layers.Conv1D(4, 3)(x))
        return layers.Softmax(axis=2)(layers.Conv1D(4, 1)(x))

    _assert_same(_model(make, 9, 3))


def test_dense_and_batch_norm_stay_together_only_where_they_can():
    def folded(x):
        return layers.BatchNormalization()(layers.Dense(3)(x))

    assert canonical(model := _model(folded, 5)) is model
    dense = layers.Dense(3)

    def read_twice(x):
        return layers.Add()([layers.BatchNormalization()(dense(x)), dense(x)])

    assert canonical(model := _model(read_twice, 5)) is model  # two calls, each read once
    hidden = layers.Dense(3)

    def also_an_output(x):
        y = hidden(x)
        return [y, layers.BatchNormalization()(y)]

    image = keras.Input((5,))
    model = randomize(keras.Model(image, also_an_output(image)))
    kinds = [type(call.layer).__name__ for call in graph.calls(canonical(model))]
    assert kinds == ["Dense", "Reshape", "BatchNormalization", "Reshape"]


def test_readers_in_other_models_do_not_count():
    image = keras.Input((5,))
    hidden = layers.Dense(3)(image)
    model = keras.Model(image, layers.BatchNormalization()(hidden))
    keras.Model(image, layers.ReLU()(hidden))
    assert canonical(model) is model


def test_a_batch_norm_along_another_axis_is_left_for_the_error():
    model = _model(layers.BatchNormalization(axis=1), 4, 4)
    assert "axis=[1]" in next(iter(grids.plan(canonical(model)).problems.values()))


def test_new_names_avoid_old_ones():
    def make(x):
        a = layers.Conv2D(3, 1, name="avg_sum")(x)
        b = layers.Conv2D(3, 1, name="block/conv")(x)
        mean = layers.Average(name="avg")([a, b, x])
        total = layers.Add(name="avg_sum_0")([mean, a])
        return layers.ReLU(name="act_sigmoid")(layers.Activation("swish", name="act")(total))

    result = _assert_same(_model(make, 4, 4, 3))
    assert type(result.get_layer("avg_sum")) is layers.Conv2D
    assert type(result.get_layer("act_sigmoid")) is layers.ReLU


def test_shared_layers_stay_shared():
    separable = layers.SeparableConv2D(3, 3, padding="same", activation="swish", name="shared")

    def make(x):
        return separable(layers.ReLU()(separable(x)))

    result = _assert_same(_model(make, 6, 6, 3))
    assert len(result.trainable_weights) == 3
    assert sum(call.layer.name == "shared" for call in graph.calls(result)) == 2


def test_training_arguments_survive():
    l2 = keras.regularizers.L2(0.1)
    kinds = dict.fromkeys(
        ("depthwise_regularizer", "pointwise_regularizer", "bias_regularizer"), l2
    )
    limits = dict.fromkeys(
        ("depthwise_constraint", "pointwise_constraint"), keras.constraints.MaxNorm(1.5)
    )

    def make(x):
        x = layers.SeparableConv2D(
            4, 3, **kinds, **limits, bias_constraint="non_neg", trainable=False
        )(x)
        x = layers.Conv1D(3, 3, kernel_regularizer=l2, bias_constraint="non_neg")(
            layers.Reshape((36, 4))(x)
        )
        return layers.Conv1D(2, 3, trainable=False)(x)

    model = _model(make, 8, 8, 3)
    result = canonical(model)
    np.testing.assert_allclose(sum(result.losses), sum(model.losses), rtol=1e-6)
    assert len(result.losses) == 4
    assert [w.shape for w in result.trainable_weights] == [(1, 3, 4, 3), (3,)]
    constraints = [
        variable.constraint for variable in result.variables if variable.constraint is not None
    ]
    assert len(constraints) == 4


def test_a_conv1d_with_a_kernel_constraint_is_refused():
    model = _model(layers.Conv1D(3, 3, kernel_constraint="max_norm", name="c"), 9, 3)
    with pytest.raises(ValueError, match="'c' has a kernel_constraint"):
        canonical(model)


def test_structure_and_input_names():
    a, b = keras.Input((4, 4, 2), name="z"), keras.Input((4, 4, 2), name="y")
    outputs = {"one": layers.Activation("swish")(a), "two": layers.Average()([a, b])}
    model = keras.Model({"z": a, "y": b}, outputs)
    result = canonical(model)
    data = {"z": np.ones((1, 4, 4, 2), np.float32), "y": np.zeros((1, 4, 4, 2), np.float32)}
    for key, value in model(data).items():
        np.testing.assert_allclose(result(data)[key], value, atol=1e-6)
    assert result.input_names == model.input_names
