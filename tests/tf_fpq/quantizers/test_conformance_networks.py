"""Every quantizer trains, is saved and exported in a network, and works in tfmot's own code."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.calibration import grids_from_images
from tf_fpq.keras_compat import keras
from tf_fpq.placement import quantize_configs
from tf_fpq.student_layers.quantized_layers import (
    QuantizeActivation,
    QuantizedLayer,
    quantizer_variables,
)
from tflite_export.lowering.builder import deploy


def _network():
    """A convolution with batch norm and ReLU, and a Dense layer."""
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv")(image)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(image, keras.layers.Dense(4, name="logits")(x))


def _student(row, bits=4, calibrated=True, network=_network):
    keras.utils.set_random_seed(0)
    student = tf_fpq.quantize_model(
        network(), [tf_fpq.QuantRule(weight_bits=bits, activation_bits=bits)], row.name
    )
    if calibrated:
        tf_fpq.calibrate(student, small_student.images(), verbose=0)
    return student


def _activations(student):
    return [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]


def test_one_training_step_moves_every_variable(row):
    student = _student(row)
    for layer in _activations(student):  # tighter, so that every range clips
        s, z = (np.asarray(part) for part in layer.quantizer.grid(layer.variables_of_quantizer))
        layer.quantizer.set_grid(layer.variables_of_quantizer, s * 0.1, z)
    # A second step on other weights, as a range that was measured on the same ones stays.
    before = {id(v): v.numpy() for v in student.weights}
    small_student.fit(student, epochs=1, learning_rate=0.02)
    still = [v.name for v in student.weights if np.array_equal(v, before[id(v)])]
    frozen = ("zero_point", "delta")
    if row.name in ("dorefa", "pact"):
        frozen = (*frozen, "step_size")
    assert [name for name in still if not any(part in name for part in frozen)] in (
        [],
        _never_negative(row, still),
    )
    assert {v.name for v in quantizer_variables(student)} == {
        v.name
        for v in student.trainable_variables
        if any(f"_{n}:" in v.name for n in row.learns[0] | row.learns[1])
    }


def _never_negative(row, still):
    """Ranges of tensors that have no negative value, whose lower end stays 0."""
    return [name for name in still if "range_min" in name] if row.name == "min_max" else []


@pytest.mark.parametrize(
    "file_format",
    ["keras", "h5_weights", pytest.param("saved_model", marks=pytest.mark.slow), "checkpoint"],
)
def test_serialization(row, file_format, tmp_path):
    student = _student(row)
    for index, variable in enumerate(
        student.weights
    ):  # nothing has the value that it would start with
        variable.assign(variable * (1 + 0.01 * (index % 7)))
    x = small_student.images()
    expected = student(x).numpy()
    if file_format == "keras":
        student.save(tmp_path / "s.keras")
        restored = keras.models.load_model(tmp_path / "s.keras")
    elif file_format == "saved_model":
        student.save(tmp_path / "s", save_format="tf")
        restored = keras.models.load_model(tmp_path / "s")
    else:
        restored = _student(row, calibrated=False)
        assert not np.array_equal(restored(x), expected)
        if file_format == "h5_weights":
            student.save_weights(tmp_path / "w.h5")
            restored.load_weights(tmp_path / "w.h5")
        else:
            path = tf.train.Checkpoint(student).write(str(tmp_path / "c"))
            tf.train.Checkpoint(restored).read(path).assert_consumed()
    np.testing.assert_array_equal(restored(x), expected)
    assert [v.shape for v in restored.weights] == [v.shape for v in student.weights]
    for ours, theirs in zip(_activations(student), _activations(restored), strict=True):
        assert ours.quantizer == theirs.quantizer


def test_export_keeps_the_codes(row):
    student = _student(row, 4, network=small_student.network)
    for seed, variable in enumerate(
        student.trainable_variables
    ):  # as if trained: on no grid, gammas of both signs
        variable.assign(variable + np.random.default_rng(seed).normal(0.0, 0.1, variable.shape))
    gamma = student.get_layer("stem_bn").gamma
    gamma.assign(gamma * np.tile([1.0, -1.0], 4))
    tensors = deploy(student).tensors
    kernels = [layer for layer in student.layers if isinstance(layer, QuantizedLayer)]
    assert [layer.name for layer in kernels] == ["stem", "depthwise", "pointwise", "logits"]
    for layer in kernels:
        ((_, weight, quantizer, variables),) = layer.quantized_weights()
        codes = quantizer.codes(weight, variables).numpy()
        exported = tensors[f"{layer.name}_kernel"].data
        back = {"depthwise": (1, 2, 3, 0), "logits": (1, 0)}.get(layer.name, (1, 2, 3, 0))
        signs = np.tile([1, -1], 4) if layer.name == "stem" else 1
        # 4-bit codes fill an int8 container times 16; a channel whose code no input can change is a
        # constant, and has no weights.
        written = np.moveaxis(exported.transpose(back), 2 if layer.name == "depthwise" else -1, 0)
        trained = np.moveaxis(codes * signs * 16, 2 if layer.name == "depthwise" else -1, 0)
        alive = np.array([channel.any() for channel in written])
        np.testing.assert_array_equal(written[alive], trained[alive])
        assert alive.mean() > 0.5
        assert 0 < np.abs(codes).max() <= 7
    for layer in _activations(student):
        s, z = layer.quantizer.grid(layer.variables_of_quantizer)
        tensor = next(t for name, t in tensors.items() if name.startswith(layer.name))
        assert tensor.scale == np.float32(s)
        assert tensor.zero_point == 127 - layer.quantizer.spec.qmax + int(z)


def test_quantize_config_in_plain_tfmot_code(row, tmp_path):
    config_class = quantize_configs.QUANTIZE_CONFIGS[row.name]
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = annotate(
        keras.layers.Conv2D(4, 3, activation="relu"), config_class(weight_bits=4, activation_bits=4)
    )(inputs)
    x = keras.layers.Flatten()(x)
    outputs = annotate(keras.layers.Dense(4), config_class(weight_bits=8, activation_bits=8))(x)
    with tfmot.quantization.keras.quantize_scope({config_class.__name__: config_class}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(inputs, outputs))
    grids_from_images.start_weights(model)
    learned = [
        v
        for v in model.trainable_variables
        if "step_size" in v.name or "alpha" in v.name or "offset" in v.name
    ]
    assert bool(learned) == bool(row.learns[0] | row.learns[1])
    before = [v.numpy() for v in model.trainable_variables]
    small_student.fit(model, epochs=1)
    assert any(
        not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True)
    )
    weight, quantizer, variables = next(
        layer for layer in model.layers if "conv" in layer.name
    )._weight_vars[0]
    codes = quantizer.codes(weight, variables).numpy()
    assert np.abs(codes).max() <= 7 and len(np.unique(codes)) > 6
    model.save_weights(tmp_path / "w.h5")


def test_quantize_config_with_the_fpq_scheme(row):
    config_class = quantize_configs.QUANTIZE_CONFIGS[row.name]
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = annotate(
        keras.layers.Conv2D(4, 3, name="conv"), config_class(weight_bits=4, activation_bits=4)
    )(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = annotate(
        keras.layers.Dense(4, name="dense"), config_class(weight_bits=8, activation_bits=8)
    )(x)
    with tfmot.quantization.keras.quantize_scope({config_class.__name__: config_class}):
        model = tfmot.quantization.keras.quantize_apply(
            keras.Model(inputs, outputs), scheme=tf_fpq.FpqQuantizeScheme()
        )
    tf_fpq.calibrate(model, small_student.images(), weight_estimator="mse", verbose=0)
    assert {type(layer.quantizer) for layer in _activations(model)} == {row.quantizer}
    assert deploy(model).operators


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_a_layer_of_half_precision_reads_its_grids_in_float32(row, kind):
    """Other variables a layer reads in its own precision: a step size of 8 bits is none."""

    class Reading(keras.layers.Layer):
        def build(self, shape):
            self.other = self.add_weight(name="other", shape=())
            quantizer = row.weight(4, None) if kind == "weight" else row.activation(4, None)
            self.of_quantizer = quantizer.build(shape, "x", self)

        def call(self, x):
            read = {"other": self.other, **self.of_quantizer}
            return {name: tf.convert_to_tensor(variable) for name, variable in read.items()}

    found = Reading(dtype="mixed_bfloat16")(tf.zeros([5, 4]))
    types = {name: value.dtype for name, value in found.items()}
    assert types.pop("other") == tf.bfloat16
    assert set(types.values()) <= {tf.float32}
