"""Damage of single tensors, restated without the library's own switches."""

import math

import numpy as np
import pytest

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.sensitivity import Damage

# The networks here are not trained.
pytestmark = pytest.mark.filterwarnings("ignore:All batch norms have the statistics")


@pytest.fixture(scope="module")
def images():
    return small_student.images(24)


@pytest.fixture(scope="module")
def model():
    return small_student.network()


@pytest.fixture(scope="module")
def found(model, images):
    return tf_fpq.sensitivity(model, images, bits=(8, 2), batch_size=10, verbose=0)


def test_a_worked_number():
    damage = Damage(layer="a", part="weights", bits=4, noise=0.25 / 25, agreement=1.0)
    assert damage.sqnr == pytest.approx(20.0)


def test_every_layer_part_and_width_is_measured_once(found):
    keys = [(damage.layer, damage.part, damage.bits) for damage in found.damages]
    expected = {
        (layer, part, bits)
        for layer in ("stem", "depthwise", "pointwise", "logits")
        for part in ("weights", "activations")
        for bits in (2, 8)
    }
    assert len(keys) == len(set(keys)) and set(keys) == expected
    assert (found.bits, found.images) == ((2, 8), 24)


@pytest.mark.parametrize("layer", ["stem", "pointwise"])
def test_a_kernels_damage_is_that_of_the_float_model_with_rounded_weights(
    found, model, images, layer
):
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(weight_bits=2, activation_bits=2)])
    (weight,) = student.get_layer(layer).quantized_weights()
    step_size, _ = weight.quantizer.grid(weight.variables)
    rounded = (weight.codes() * step_size).numpy()
    changed = keras.models.clone_model(model)
    changed.set_weights(model.get_weights())
    exact = changed.get_layer(layer).get_weights()
    changed.get_layer(layer).set_weights([rounded, *exact[1:]])
    expected, received = (network.predict(images, verbose=0) for network in (model, changed))
    damage = found.damage(layer, "weights", 2)
    assert damage.noise == pytest.approx(
        np.square(received - expected).sum() / np.square(expected).sum(), rel=1e-3
    )
    assert damage.agreement == np.mean(received.argmax(-1) == expected.argmax(-1))
    assert damage.squared_error == pytest.approx(np.square(rounded - exact[0]).sum(), rel=1e-4)


def test_more_bits_do_less_damage(found):
    for layer in found.layers:
        for part in ("weights", "activations"):
            few, many = (found.damage(layer, part, bits) for bits in (2, 8))
            assert many.sqnr > few.sqnr + 10, (layer, part)


def test_layers_that_read_one_tensor_share_its_damage(images):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inputs)
    left = keras.layers.Conv2D(4, 1, name="left")(x)
    right = keras.layers.Conv2D(4, 3, padding="same", name="right")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([left, right]))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    found = tf_fpq.sensitivity(model, images, bits=(2,), verbose=0)
    assert found.layers["left"].reads == found.layers["right"].reads != found.layers["stem"].reads
    left, right = (found.damage(name, "activations", 2) for name in ("left", "right"))
    assert left.noise == right.noise > 0


def test_an_operator_of_float_values_rounds_none_of_them_as_an_integer_kernel(images):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="stem")(inputs)
    leaky = keras.layers.LeakyReLU(0.3, name="leaky")(x)
    head = keras.layers.Conv2D(4, 1, name="head")
    model = keras.Model(inputs, keras.layers.Flatten()(head(leaky)))
    found = tf_fpq.sensitivity(model, images, bits=(2,), verbose=0)
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(weight_bits=2, activation_bits=2)])
    tf_fpq.calibrate(student, images, verbose=0)
    values = keras.Model(inputs, leaky)(images)
    quantize = student.get_layer(found.layers["head"].reads)
    received = head(quantize(values)).numpy().reshape(len(images), -1)
    expected = model(images).numpy()
    noise = np.square(received - expected).sum() / np.square(expected).sum()
    assert found.damage("head", "activations", 2).noise == pytest.approx(noise, rel=1e-5)


def test_the_model_stays_as_it_is(model, images):
    before = [value.copy() for value in model.get_weights()]
    tf_fpq.sensitivity(model, images, bits=(2,), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))


def test_agreement_is_nan_without_classes(images):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="map")(inputs))
    (weights, _) = tf_fpq.sensitivity(model, images, bits=(4,), verbose=0).damages
    assert math.isnan(weights.agreement) and weights.sqnr > 0


def test_the_table_names_layers_and_widths(found):
    header, _, *rows = str(found).splitlines()[1:]
    assert header.split() == ["layer", "kind", "W2", "W8", "A2", "A8"]
    assert [row.split()[0] for row in rows] == ["stem", "depthwise", "pointwise", "logits"]


def test_the_picture_is_drawn(found, tmp_path):
    found.plot(str(tmp_path / "sensitivity.png"))
    assert (tmp_path / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("bits", [(), 4, (4, 9), "48", (1,)])
def test_widths_that_are_none(model, images, bits):
    with pytest.raises(ValueError, match="bits"):
        tf_fpq.sensitivity(model, images, bits=bits, verbose=0)
