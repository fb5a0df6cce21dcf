"""Which tensors get a grid, which share one, and at what width."""

import numpy as np
import pytest

from tests.integration.exactness import images_for, randomize
import tf_fpq
from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.placement import grids
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer, observing

layers = keras.layers
RULES = [tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)]


def _model(make, *shape):
    image = keras.Input(shape, name="image")
    return randomize(keras.Model(image, make(image)))


def _grids(make, *shape, rules=RULES):
    """Width by name of each quantizer, in order; a `*` for every further tensor on its grid."""
    model = _model(make, *shape)
    student = tf_fpq.quantize_model(model, rules)
    x = images_for(model)
    with observing(student):
        np.testing.assert_allclose(student(x), model(x), atol=1e-5)
    found = {}
    for call in graph.calls(student):
        if isinstance(call.layer, QuantizeActivation):
            name = call.layer.name.removesuffix("_quantize")
            found[name] = (
                (found[name] + "*") if name in found else str(call.layer.quantizer.spec.num_bits)
            )
    return found


def test_convolution_batch_norm_and_relu_are_one_operator():
    def make(x):
        x = layers.ReLU(name="relu")(layers.BatchNormalization()(layers.Conv2D(2, 3)(x)))
        return layers.Conv2D(2, 1, name="last")(layers.BatchNormalization(name="late")(x))

    assert _grids(make, 8, 8, 3) == {"image": "4", "relu": "8", "late": "4", "last": "8"}


def test_a_tensor_with_two_readers_or_that_is_an_output_exists():
    def two(x):
        y = layers.Conv2D(2, 1, name="conv")(x)
        return layers.Add(name="add")(
            [layers.BatchNormalization(name="bn")(y), layers.ReLU(name="relu")(y)]
        )

    assert _grids(two, 4, 4, 2) == {"image": "4", "conv": "8", "bn": "8", "relu": "8", "add": "8"}


def test_an_output_is_quantized_where_it_is():
    image = keras.Input((4, 4, 2), name="image")
    conv = layers.Conv2D(2, 1, name="conv")(image)
    model = keras.Model(
        image, {"conv": conv, "relu": layers.ReLU(name="relu")(conv), "image": image}
    )
    student = tf_fpq.quantize_model(model, RULES)
    outputs = {key: tensor.node.layer.name for key, tensor in student.output.items()}
    assert outputs == {"conv": "conv_quantize", "relu": "relu_quantize", "image": "image_quantize"}


def test_the_widest_reader_decides():
    def make(x):
        x = layers.ReLU(name="shared")(layers.Conv2D(2, 1, name="stem")(x))
        return layers.Add(name="add")(
            [layers.Conv2D(2, 1, name="wide")(x), layers.Conv2D(2, 1, name="narrow")(x)]
        )

    rules = [
        tf_fpq.QuantRule("stem", activation_bits=8),
        tf_fpq.QuantRule("wide", activation_bits=6),
        tf_fpq.QuantRule(".*", activation_bits=3),
    ]
    assert _grids(make, 4, 4, 2, rules=rules) == {
        "image": "8",
        "shared": "6",
        "wide": "8",
        "narrow": "8",
        "add": "8",
    }


def test_moving_and_averaging_keep_the_grid_and_the_width_of_their_readers():
    def make(x):
        x = layers.ReLU(name="relu")(layers.Conv2D(2, 1)(x))
        x = layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(x))
        return layers.Conv2D(2, 1, name="last")(layers.AveragePooling2D(2, 1)(x))

    assert _grids(make, 6, 6, 2) == {"image": "4", "relu": "4*", "last": "8"}


def test_concatenated_tensors_share_a_grid_but_a_prescribed_one_stays():
    def make(x):
        a = layers.Conv2D(2, 1, name="a")(x)
        b = layers.ReLU(name="b")(layers.Conv2D(2, 1)(x))
        s = layers.Activation("sigmoid", name="s")(x)
        first = layers.Concatenate()([a, b, s])
        second = layers.Concatenate()([s, layers.Activation("tanh", name="t")(x)])
        return layers.Add(name="add")(
            [layers.Conv2D(2, 1, name="c")(first), layers.Conv2D(2, 1, name="d")(second)]
        )

    grids = _grids(make, 4, 4, 2)
    # One grid for a, b and s (again); one for s and t (both again) in the second, where nothing
    # else brings a grid.
    shared = {"a": "4**", "s_again": "4*"}
    assert grids == {"image": "4", "s": "8", "t": "8", "c": "8", "d": "8", "add": "8", **shared}


def test_a_sigmoid_in_two_concatenations():
    def make(x):
        s = layers.Activation("sigmoid", name="s")(x)
        a, b = layers.Conv2D(2, 1, name="a")(x), layers.Conv2D(2, 1, name="b")(x)
        first, second = layers.Concatenate()([a, s]), layers.Concatenate()([b, s])
        return layers.Conv2D(2, 1, name="last")(layers.Add(name="add")([first, second]))

    assert _grids(make, 4, 4, 2) == {
        "image": "4",
        "s": "8",
        "a": "8*",
        "b": "8*",
        "add": "4",
        "last": "8",
    }


def test_a_quantizers_name_is_free():
    def make(x):
        return layers.Conv2D(2, 1, name="c_quantize")(layers.Conv2D(2, 1, name="c")(x))

    names = [layer.name for layer in tf_fpq.quantize_model(_model(make, 4, 4, 2), RULES).layers]
    assert names == [
        "image",
        "image_quantize",
        "c",
        "c_quantize_1",
        "c_quantize",
        "c_quantize_quantize",
    ]


def test_rules_without_activations_leave_them_float():
    rules = [tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=None)]
    assert _grids(lambda x: layers.Conv2D(2, 3)(x), 8, 8, 3, rules=rules) == {}


def test_a_layer_without_a_rule_keeps_its_kernel():
    def make(x):
        return layers.Conv2D(2, 1, name="b")(layers.Conv2D(2, 1, name="a")(x))

    student = tf_fpq.quantize_model(_model(make, 4, 4, 2), [tf_fpq.QuantRule("a")])
    assert isinstance(student.get_layer("a"), QuantizedLayer)
    assert type(student.get_layer("b")) is layers.Conv2D


def test_shared_layers_are_quantized_once():
    conv = layers.Conv2D(2, 1, name="conv")

    def make(x):
        return conv(layers.ReLU(name="relu")(conv(x)))

    model = _model(make, 4, 4, 2)
    student = tf_fpq.quantize_model(model, RULES)
    assert len([layer for layer in student.layers if isinstance(layer, QuantizedLayer)]) == 1
    assert _grids(make, 4, 4, 2) == {"image": "4", "relu": "4", "conv_1": "8"}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda x: layers.LSTM(3, name="rnn")(layers.Reshape((16, 2))(x)), "rnn: layer class LSTM"),
        (
            lambda x: layers.Dropout(0.5, name="drop")(layers.ReLU()(x), training=True),
            "drop: it is called with training=True",
        ),
        (
            lambda x: layers.BatchNormalization(name="bn")(x, training=True),
            "bn: it is called with training=True",
        ),
    ],
)
def test_problems(make, named):
    with pytest.raises(ValueError, match=named):
        tf_fpq.quantize_model(_model(lambda x: make(layers.Conv2D(2, 1)(x)), 4, 4, 2), RULES)


def test_an_input_that_nothing_reads():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    with pytest.raises(ValueError, match="b: no layer reads this input"):
        tf_fpq.quantize_model(keras.Model([a, b], layers.Dense(2)(a)), RULES)


def test_all_problems_at_once():
    def make(x):
        return layers.Dense(1, activation="elu", name="one")(
            layers.Activation("selu", name="two")(layers.Conv2D(2, 1)(x))
        )

    problems = grids.plan(_model(make, 4, 4, 2)).problems
    assert list(problems) == ["two", "one"]


def test_the_model_is_untouched_and_shares_nothing():
    model = _model(lambda x: layers.Conv2D(2, 3)(x), 8, 8, 3)
    before = [weight.tobytes() for weight in model.get_weights()]
    student = tf_fpq.quantize_model(model, RULES)
    student.compile("sgd", "mse")
    student.fit(images_for(model), np.ones((8, 6, 6, 2)), verbose=0)
    assert [weight.tobytes() for weight in model.get_weights()] == before
    assert not {id(v) for v in student.variables} & {id(v) for v in model.variables}


def test_integer_inputs_become_float():
    image = keras.Input((4, 4, 2), dtype="uint8")
    model = keras.Model(image, layers.Conv2D(2, 1)(layers.Rescaling(1 / 255)(image)))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    pixels = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 2)).astype(np.uint8)
    tf_fpq.calibrate(student, pixels, verbose=0)
    np.testing.assert_allclose(student.predict(pixels, verbose=0), model(pixels), atol=0.03)
    assert np.ptp(model(pixels)) > 0.3


@pytest.mark.parametrize(("bits", "trains"), [(8, False), (4, True)])
def test_an_8_bit_grid_of_an_input_keeps_its_step(bits, trains):
    image = keras.Input((4, 4, 2), name="image")
    outputs = keras.layers.Conv2D(2, 1, name="c")(image)
    student = tf_fpq.quantize_model(
        keras.Model(image, outputs), [tf_fpq.QuantRule(".*", weight_bits=8, activation_bits=bits)]
    )
    assert student.get_layer("image_quantize").trainable == trains
    assert student.get_layer("c_quantize").trainable


def test_a_grid_that_an_input_shares_with_others_trains():
    image = keras.Input((4, 4, 2), name="image")
    joined = keras.layers.Concatenate(name="join")(
        [image, keras.layers.Conv2D(2, 1, name="c")(image)]
    )
    student = tf_fpq.quantize_model(
        keras.Model(image, joined), [tf_fpq.QuantRule(".*", weight_bits=8, activation_bits=8)]
    )
    assert student.get_layer("image_quantize").trainable
