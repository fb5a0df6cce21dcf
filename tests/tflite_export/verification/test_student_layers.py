import dataclasses

import numpy as np
import pytest

from tests.integration import exactness, random_networks
from tests.tflite_export import small_student
from tests.tflite_export.verification import test_several_inputs as several
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.lowering import builder
from tflite_export.runtimes import litert
from tflite_export.verification import student_layers

IMAGES = small_student.images(16)
# Convolutions, pooling, a gate, a resized branch, concatenation, sums; outputs of two kinds.
BLOCKS = [(0, 2), (1, 1), (5, 1), (8, 0), (10, 5), (3, 2), (10, 0), (9, 1), (4, 0), (7, 0)]


def codes_of(student, images):
    return {
        name: codes.numpy().astype(np.int8)
        for name, codes in builder.student_codes(student)(images).items()
    }


def given(student, codes, images):
    """What each layer makes of `codes`."""
    arrays = tuple(images) if isinstance(images, list) else (images,)
    tensors = builder.deploy(student).tensors
    values = {
        name: litert.dequantize(value, float(tensors[name].scale), tensors[name].zero_point)
        for name, value in codes.items()
    }
    layers = student_layers.student_layers(student)
    return {layer.name: layer.codes(layer.unrounded(values, arrays)) for layer in layers}


def test_a_layer_goes_from_grid_to_grid():
    layers = {layer.name: layer for layer in student_layers.student_layers(small_student.student())}
    assert {name: layer.sources for name, layer in layers.items()} == {
        "image_quantize": (),
        "stem_relu_quantize": ("image_quantize",),
        "depthwise_relu_quantize": ("stem_relu_quantize",),
        "project_bn_quantize": ("depthwise_relu_quantize",),
        "add_quantize": ("stem_relu_quantize", "project_bn_quantize"),
        "pool_quantize": ("add_quantize",),
        "logits_quantize": ("pool_quantize",),
    }
    assert [layer.inputs for layer in layers.values()] == [(0,)] + 6 * [()]


@pytest.mark.parametrize("bits", [(8, 8), (2, 3)])
def test_on_its_own_codes_every_layer_is_the_student(bits):
    network = random_networks.build(BLOCKS, 2)
    student = exactness.student_of(network, *bits)
    images = exactness.images_for(student, 4)
    codes = codes_of(student, images)
    found = given(student, codes, images)
    assert found.keys() == codes.keys() and len(found) > 12
    for name, value in found.items():
        np.testing.assert_array_equal(value, codes[name], name)


def test_each_of_several_inputs_goes_to_its_layer():
    student, images = several.student(8), [several.STATE, several.IMAGE]
    codes = codes_of(student, images)
    for name, value in given(student, codes, images).items():
        np.testing.assert_array_equal(value, codes[name], name)


def test_a_fault_stays_in_its_layer():
    student = small_student.make_student(8, 8)
    codes = codes_of(student, IMAGES)
    bias = student.get_layer("depthwise").layer.bias
    bias.assign(bias + 0.5)
    found = given(student, codes, IMAGES)
    wrong = [name for name, value in found.items() if np.any(value != codes[name])]
    assert wrong == ["depthwise_relu_quantize"]
    assert any(np.any(value != codes[name]) for name, value in codes_of(student, IMAGES).items()
               if name == "logits_quantize")  # fmt: skip


def test_a_moved_student_is_the_student_but_for_ties():
    assert student_layers.ONE_ULP == np.nextafter(np.float32(1), np.float32(2))
    x = np.float32([1.0, 1.9999999, -3.0])
    np.testing.assert_array_max_ulp(x * student_layers.ONE_ULP, x, 2)
    assert np.all(np.abs(x * student_layers.ONE_ULP) > np.abs(x))
    student = several.student(8)
    moved = student_layers.Moved(student)((several.STATE, several.IMAGE))
    plain = student.predict([several.STATE, several.IMAGE], verbose=0)
    for name, left, right in zip(student.output_names, plain, moved, strict=True):
        layer = student.get_layer(name)
        step_size = layer.quantizer.grid(layer.variables_of_quantizer)[0].numpy()
        assert np.abs(left - right).max() <= 2.01 * step_size


def test_half_a_step_and_a_ulp_is_a_step():
    image = keras.Input((1,), name="image")
    layer = QuantizeActivation(tf_fpq.quantizers.LsqQuantizer(8))
    student = keras.Model(image, layer(image))
    layer.quantizer.set_grid(layer.variables_of_quantizer, np.float32(2**-6), np.float32(0))
    at_tie = np.float32([[2**-7]])
    assert student(at_tie).numpy().tolist() == [[0.0]]
    assert student_layers.Moved(student)((at_tie,))[0].tolist() == [[2**-6]]


def test_codes_come_as_near_as_the_slack_of_their_channel_lets_them():
    image = keras.Input((2,), name="image")
    layer = QuantizeActivation(tf_fpq.quantizers.LsqQuantizer(8))
    student = keras.Model(image, layer(image))
    layer.quantizer.set_grid(layer.variables_of_quantizer, np.float32(0.5), np.float32(3))
    (only,) = student_layers.student_layers(student)
    steps = np.float32([[2.49, 2.49], [2.45, -7.0], [-1.495, 300.0]])
    unrounded = only.unrounded({}, (steps * np.float32(0.5),))
    codes = only.codes(unrounded)
    assert codes.tolist() == [[2 - 125, 2 - 125], [2 - 125, -128], [-1 - 125, 127]]
    slack = np.float32([0.02, 0.005])
    up, down = (only.codes_towards(codes + move, unrounded, slack) for move in np.int8([1, -1]))
    assert (up - codes).tolist()[:2] == [[1, 0], [0, 0]] and up[2, 0] == codes[2, 0]
    assert (codes - down).tolist() == [[0, 0], [0, 0], [1, 0]]


def test_layers_are_themselves_and_cannot_be_changed():
    """Each walk makes layers of its own: they are no values to compare."""
    student = small_student.student()
    layers, others = student_layers.student_layers(student), student_layers.student_layers(student)
    assert len({*layers, *others}) == 2 * len(layers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers[0].name = "other"


def test_a_layer_runs_at_inference_and_leaves_ranges_alone():
    """Neither dropout nor a batch's own statistics, and no moving average of what is seen."""
    image = keras.Input((4,), name="image")
    x = QuantizeActivation(tf_fpq.quantizers.MinMaxQuantizer(8), name="first")(image)
    x = keras.layers.Dropout(0.9)(keras.layers.BatchNormalization()(x))
    x = QuantizeActivation(tf_fpq.quantizers.MinMaxQuantizer(8), name="second")(x)
    student = keras.Model(image, x)
    images = np.float32([[1.0, 2.0, -3.0, 0.5], [0.25, -1.0, 3.0, 1.5]])
    expected = student(images, training=False).numpy()
    before = [weight.numpy() for weight in student.weights]
    first, second = student_layers.student_layers(student)
    assert (first.sources, second.sources, first.inputs) == ((), ("first",), (0,))
    given = first.rounded(first.unrounded({}, (images,)))
    values = second.values({"first": given}, ())
    np.testing.assert_array_equal(values, expected)
    moved = student_layers.Moved(student)((images,))
    assert np.abs(moved[0] - expected).max() < 0.1 and len(moved) == 1
    for weight, value in zip(student.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
