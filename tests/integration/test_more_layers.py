"""Layer normalization, grouped convolutions and layers of one's own: twin and interpreter agree on
every code, on XNNPACK and reference."""

import numpy as np
import pytest
import tensorflow as tf

from tests.integration import exactness
import tf_fpq
from tf_fpq import roles
from tf_fpq.conversion import canonical
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.lowering import operators

layers = keras.layers


def exact(model: keras.Model, bits: int = 8):
    model = exactness.randomize(model)
    student = exactness.student_of(model, bits, bits)
    return student, exactness.assert_twin_is_interpreter(student, exactness.images_for(model))


def kinds(deployed) -> list[str]:
    return [operator.kind for operator in deployed.operators]


@pytest.mark.parametrize("shape", [(6,), (3, 6), (4, 4, 6)])
def test_layer_normalization(shape):
    inputs = keras.Input(shape, name="x")
    x = layers.Dense(8, name="dense")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    student, deployed = exact(
        keras.Model(inputs, layers.Dense(3, activation="gelu", name="head")(x))
    )
    assert {"RSQRT", "GELU", "SUB", "MUL"} <= set(kinds(deployed))


def test_layer_normalization_of_8_bits_is_near_the_float_one():
    inputs = keras.Input((4, 4, 16), name="x")
    norm = layers.LayerNormalization(name="norm")(layers.Conv2D(16, 1, name="conv")(inputs))
    model = exactness.randomize(keras.Model(inputs, norm))
    images = exactness.images_for(model, 32)
    student = exactness.student_of(model)
    error = student(images).numpy() - model(images).numpy()
    # Each of seven roundings adds about half a percent of the range.
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.std(model(images).numpy())


@pytest.mark.parametrize(
    ("filters", "groups", "arguments"),
    [
        (24, 4, {}),
        (12, 3, {"strides": 2, "padding": "valid"}),
        (16, 2, {"dilation_rate": 2, "use_bias": False}),
        (36, 12, {"kernel_size": 5}),  # one channel a group: depthwise
    ],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_grouped_convolutions(filters, groups, arguments, bits):
    inputs = keras.Input((9, 9, 12), name="x")
    config = {"kernel_size": 3, "padding": "same", **arguments}
    x = layers.Conv2D(filters, groups=groups, name="conv", **config)(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    student, deployed = exact(
        keras.Model(inputs, layers.GlobalAveragePooling2D(name="mean")(x)), bits
    )
    assert ("DEPTHWISE_CONV_2D" if groups == 12 else "CONV_2D") in kinds(deployed)


@keras.utils.register_keras_serializable("test")
class Gate(layers.Layer):
    """A layer that others compute."""

    def call(self, inputs):
        return inputs * tf.sigmoid(inputs)


@keras.utils.register_keras_serializable("test")
class HardSwish(layers.Layer):
    """An operator that Keras 2 has no layer for."""

    def call(self, inputs):
        return inputs * tf.nn.relu6(inputs + 3.0) / 6.0


@pytest.fixture
def own_layers():
    """The two ways of the documentation of `register_layer`."""

    def gate(rewriter, layer, name, x):
        mask = rewriter.make(layers.Activation, rewriter.name(name, "mask"), activation="sigmoid")(
            x
        )
        return rewriter.make(layers.Multiply, name)([x, mask])

    def hard_swish(builder, layer, name, sources, output):
        return tflite_export.Pending("HARD_SWISH", sources)

    tf_fpq.register_layer(Gate, rewrite=gate)
    tf_fpq.register_layer(HardSwish, role=tf_fpq.Role.FUNCTION)
    tflite_export.register_operator(HardSwish, hard_swish)
    yield
    del canonical.LAYERS[Gate], roles.ROLES[HardSwish], operators.STARTS[HardSwish]


@pytest.mark.parametrize(("own", "kind"), [(Gate, "LOGISTIC"), (HardSwish, "HARD_SWISH")])
def test_layers_of_ones_own(own_layers, own, kind):
    inputs = keras.Input((6, 6, 2), name="x")
    x = own(name="own")(layers.Conv2D(4, 3, name="conv")(inputs))
    student, deployed = exact(keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x)))
    assert kind in kinds(deployed)


@pytest.mark.parametrize("own", [Gate, HardSwish])
def test_without_registration_the_message_says_where_to_look(own):
    inputs = keras.Input((6, 6, 2), name="x")
    model = keras.Model(inputs, layers.Conv2D(2, 1)(own(name="mine")(inputs)))
    with pytest.raises(
        ValueError,
        match="mine: .*tf_fpq.register_layer.*tflite_export.register_operator",
    ):
        tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
