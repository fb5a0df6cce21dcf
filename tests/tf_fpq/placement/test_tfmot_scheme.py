"""By hand with tfmot: annotate, apply, with tfmot's own scheme and with ours."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot

from tests.integration.exactness import assert_twin_is_interpreter
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantized_layers import QuantizeActivation, QuantizedLayer

layers = keras.layers
quantization = tfmot.quantization.keras
IMAGES = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)


def _annotated(config=tf_fpq.LsqQuantizeConfig, **dense):
    keras.utils.set_random_seed(0)
    annotate = quantization.quantize_annotate_layer
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            annotate(layers.Conv2D(4, 3, name="conv"), config(4, 4)),
            layers.BatchNormalization(),
            layers.ReLU(name="relu"),
            layers.Flatten(),
            annotate(layers.Dense(3, name="dense", **dense), config(8, 6)),
        ]
    )


def test_tfmots_own_scheme_trains_the_steps():
    with quantization.quantize_scope():
        student = quantization.quantize_apply(
            _annotated(lambda *bits: tf_fpq.LsqQuantizeConfig(8, 8))
        )
    conv = student.get_layer("quant_conv")
    steps = [w for w in conv.trainable_weights if "step_size" in w.name]
    assert sorted(tuple(w.shape) for w in steps) == [(), (1, 1, 1, 4)]
    before = [np.array(w) for w in steps]  # `numpy()` may be a view
    student.compile("sgd", "mse")
    student.fit(IMAGES, np.ones((8, 3)), verbose=0)
    assert all(np.any(old != new.numpy()) for old, new in zip(before, steps))


def test_our_scheme_is_what_quantize_model_makes():
    annotated = _annotated(activation="softmax")
    student = quantization.quantize_apply(annotated, scheme=tf_fpq.FpqQuantizeScheme())
    model = keras.models.clone_model(
        annotated, clone_function=lambda layer: getattr(layer, "layer", layer)
    )
    rules = [
        tf_fpq.QuantRule("conv", weight_bits=4, activation_bits=4),
        tf_fpq.QuantRule("dense", weight_bits=8, activation_bits=6),
    ]
    other = tf_fpq.quantize_model(model, rules)
    for found in (student, other):
        tf_fpq.calibrate(found, IMAGES, verbose=0)
    np.testing.assert_array_equal(student(IMAGES), other(IMAGES))
    widths = {
        x.name: x.quantizer.spec.num_bits
        for x in student.layers
        if isinstance(x, QuantizeActivation)
    }
    assert list(widths.values()) == [4, 6, 8, 8]
    assert_twin_is_interpreter(student, IMAGES)


def test_our_scheme_saves_and_loads_within_quantize_scope(tmp_path):
    student = quantization.quantize_apply(_annotated(), scheme=tf_fpq.FpqQuantizeScheme())
    tf_fpq.calibrate(student, IMAGES, verbose=0)
    student.save(tmp_path / "s.keras")
    with quantization.quantize_scope():
        loaded = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(loaded(IMAGES), student(IMAGES))


def test_a_whole_annotated_model_has_eight_bits():
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(4, 3, name="conv"), layers.ReLU()]
    )
    student = quantization.quantize_apply(
        quantization.quantize_annotate_model(model), scheme=tf_fpq.FpqQuantizeScheme()
    )
    conv = student.get_layer("conv")
    assert isinstance(conv, QuantizedLayer)
    assert conv.quantize_config == tf_fpq.LsqQuantizeConfig(8, 8)
    ((_, weight, quantizer, variables),) = conv.quantized_weights()
    np.testing.assert_allclose(
        quantizer(weight, False, variables), weight, atol=float(abs(weight.numpy()).max() / 100)
    )


def test_layers_without_annotation_keep_their_kernel():
    model = _annotated()
    plain = keras.Sequential(
        [keras.Input((6, 6, 2)), *model.layers[:-1], layers.Dense(3, name="dense")]
    )
    student = quantization.quantize_apply(plain, scheme=tf_fpq.FpqQuantizeScheme())
    assert isinstance(student.get_layer("conv"), QuantizedLayer)
    assert type(student.get_layer("dense")) is layers.Dense


def test_foreign_configs_and_unsupported_layers_are_refused():
    class Foreign(quantization.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return []

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            pass

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            return []

        def get_config(self):
            return {}

    with (
        keras.utils.custom_object_scope({"Foreign": Foreign}),
        pytest.raises(ValueError, match="Received: Foreign"),
    ):
        quantization.quantize_apply(
            _annotated(lambda *bits: Foreign()), scheme=tf_fpq.FpqQuantizeScheme()
        )
    with pytest.raises(ValueError, match="dense: activation 'elu' has no integer form"):
        quantization.quantize_apply(_annotated(activation="elu"), scheme=tf_fpq.FpqQuantizeScheme())
