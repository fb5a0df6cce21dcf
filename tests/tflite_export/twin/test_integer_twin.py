"""The integer twin as a Keras model."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export import small_network
from tests.tflite_export.kernels import kernel_cases as cases
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers import numerics
from tflite_export.lowering import io_types
from tflite_export.runtimes import litert
from tflite_export.twin import integer_twin as twin_lib

MODEL = small_network.residual_network()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((64, 8, 8, 3), np.float32)


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_every_tensor_equals_the_interpreter(images, rounding):
    twin = twin_lib.IntegerTwin(MODEL, rounding)
    codes = {name: tensor.numpy() for name, tensor in twin.codes(images).items()}
    expected = cases.interpret(
        MODEL, {"image": codes["image"].astype(np.int8)}, cases.KERNEL_SET[rounding]
    )
    assert set(codes) == set(expected)
    assert all(value.dtype == np.int32 for value in codes.values())
    differing = {name: int(np.sum(codes[name] != expected[name])) for name in codes}
    assert differing == dict.fromkeys(codes, 0)
    assert all(np.unique(codes[name]).size > 20 for name in ("project", "add", "mean", "logits")), (
        "nothing to compare"
    )


def test_roundings_differ(images):
    """Or the parameter would be dead."""
    single, double = (twin_lib.IntegerTwin(MODEL, r).codes(images) for r in ("single", "double"))
    assert np.any(single["stem"].numpy() != double["stem"].numpy())


def test_output_is_the_dequantized_codes(images):
    twin = twin_lib.IntegerTwin(MODEL)
    expected = (twin.codes(images)["probabilities"].numpy() + 128) / np.float32(256)
    np.testing.assert_array_equal(twin(images).numpy(), expected)


def test_input_rounds_half_to_even_and_clips():
    x = cases.activation("x", (1, 6), 0.5, 3)
    model = cases.one_operator("RELU", [x], cases.activation("y", (1, 6), 0.5, 3))
    twin = twin_lib.IntegerTwin(model)
    # x / s = 0.5, 1.5, -0.5, -2.5 round to 0, 2, 0, -2; then + 3; the ends clip.
    values = np.array([[0.25, 0.75, -0.25, -1.25, 1e6, -1e6]], np.float32)
    assert twin.quantize(values)["x"].numpy().tolist() == [[3, 5, 3, 1, 127, -128]]


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_graphs_quantize_as_eager_code_does(rounding):
    """Both multiply by the reciprocal, as the student does; a quotient would be another code at
    some ties."""
    x, y = (cases.activation(name, (1, 64), 0.0123, -7) for name in "xy")
    model = cases.one_operator("RELU", [x], y)
    halves = np.random.default_rng(2).integers(-120, 120, (500, 64)) + 0.5
    values = halves.astype(np.float32) * x.scale
    expected = np.clip(np.rint(values * (np.float32(1) / x.scale)) - 7, -128, 127)
    assert np.any(expected != np.clip(np.rint(values / x.scale) - 7, -128, 127))
    twin = twin_lib.IntegerTwin(model, rounding)
    np.testing.assert_array_equal(tf.function(twin.quantize)(values)["x"].numpy(), expected)
    np.testing.assert_array_equal(twin.quantize(values)["x"].numpy(), expected)
    student = numerics.quantize(values, x.scale, tf.constant(-7.0), -128, 127)
    np.testing.assert_array_equal(student, expected)
    np.testing.assert_array_equal(litert.quantize(values, x.scale, -7), expected)
    border = twin_lib.IntegerTwin(io_types.with_io(model, "float32"), rounding)
    traced = tf.function(lambda floats: border.codes(floats)["x"])
    np.testing.assert_array_equal(traced(values).numpy(), border.codes(values)["x"].numpy())


def test_evaluate_and_predict(images):
    twin = twin_lib.IntegerTwin(MODEL)
    direct = twin(images).numpy()
    np.testing.assert_array_equal(twin.predict(images, batch_size=24, verbose=0), direct)
    labels = np.argmax(direct, -1)
    labels[:16] = (labels[:16] + 1) % 10
    twin.compile(loss=keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    assert twin.evaluate(images, labels, batch_size=24, verbose=0)[1] == pytest.approx(0.75)


def test_works_in_a_function_without_copying_the_weights(images):
    twin = twin_lib.IntegerTwin(MODEL)
    traced = tf.function(twin.codes, input_signature=[tf.TensorSpec((None, 8, 8, 3))])
    for name, codes in traced(images).items():
        np.testing.assert_array_equal(codes.numpy(), twin.codes(images)[name].numpy())
    sizes = [
        int(
            np.prod(
                node.attr["value"].tensor.tensor_shape.dim[0].size
                if node.attr["value"].tensor.tensor_shape.dim
                else 1
            )
        )
        for node in traced.get_concrete_function().graph.as_graph_def().node
        if node.op == "Const"
    ]
    assert max(sizes) < 64, "weights must be captured, not embedded in the graph"


def test_memory_does_not_grow_with_the_number_of_images(images):
    twin = twin_lib.IntegerTwin(MODEL)
    twin.compile(loss="sparse_categorical_crossentropy")

    def peak(count: int) -> int:
        data = tf.data.Dataset.from_tensors((images, np.zeros(64, np.int32))).repeat(count)
        tracemalloc.start()
        twin.evaluate(data, verbose=0)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    assert peak(40) < 2 * peak(4) + 2**20


def test_several_inputs_and_outputs():
    a, b, y = (cases.activation(n, (1, 4), 0.1, z) for n, z in (("a", 1), ("b", -2), ("y", 3)))
    model = cases.one_operator("ADD", [a, b], y)
    model = dataclasses.replace(model, outputs=("y", "a"))
    twin = twin_lib.IntegerTwin(model)
    left, right = np.full((2, 4), 1.0, np.float32), np.full((2, 4), 2.0, np.float32)
    for inputs in ([left, right], {"b": right, "a": left}):
        total, same = twin(inputs)
        np.testing.assert_allclose(total.numpy(), 3.0, rtol=1e-6)
        np.testing.assert_allclose(same.numpy(), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match=r"inputs \('a', 'b'\).*1 tensors"):
        twin(left)
    with pytest.raises(ValueError, match=r"Received: \['a', 'c'\]"):
        twin({"a": left, "c": right})


def test_refuses_unknown_rounding_and_operators():
    with pytest.raises(ValueError, match="rounding='triple'"):
        twin_lib.IntegerTwin(MODEL, "triple")
    strange = dataclasses.replace(
        MODEL, operators=(dataclasses.replace(MODEL.operators[0], kind="LSTM"),)
    )
    with pytest.raises(ValueError, match=r"No integer kernel for \['LSTM'\]"):
        twin_lib.IntegerTwin(strange)
