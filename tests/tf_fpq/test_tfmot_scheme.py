"""By hand with tfmot: annotate, apply, with tfmot's own scheme and with ours."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tests.integration.exactness import assert_twin_is_interpreter
import tf_fpq
from tf_fpq.keras_compat import deserialize, keras, serialize
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer
import tflite_export

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


class Foreign(quantization.QuantizeConfig):
    """A config of a user, written against tfmot's interface."""

    def __init__(self, weights, output=None, attribute="kernel"):
        self.weights, self.output, self.attribute = weights, output, attribute

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, self.attribute), self.weights)]

    def get_activations_and_quantizers(self, layer):
        return [] if self.output is None else [(layer.activation, self.output)]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return None

    def get_config(self):
        parts = {"weights": self.weights, "output": self.output}
        listed = {name: part and serialize(part) for name, part in parts.items()}
        return {**listed, "attribute": self.attribute}

    @classmethod
    def from_config(cls, config):
        output = config["output"] and deserialize(config["output"])
        return cls(deserialize(config["weights"]), output, config["attribute"])


class Clip(quantization.quantizers.Quantizer):
    """The quantizer of tfmot's guide, which rounds nothing."""

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return keras.backend.clip(inputs, -0.25, 0.25)

    def get_config(self):
        return {}


@keras.utils.register_keras_serializable(package="test_tfmot_scheme")
class Halve(layers.Layer):
    """A layer that nobody knows."""

    def call(self, x):
        return x / 2.0


SCOPE = {"Foreign": Foreign, "Clip": Clip}


def _last_value(**arguments):
    arguments = {"per_axis": False, "symmetric": True, "narrow_range": True, **arguments}
    return quantization.quantizers.LastValueQuantizer(num_bits=8, **arguments)


def _applied(config):
    with quantization.quantize_scope(SCOPE):
        return quantization.quantize_apply(
            _annotated(lambda *bits: config), scheme=tf_fpq.FpqQuantizeScheme()
        )


def test_foreign_quantizers_on_a_grid_train_save_and_are_exported(tmp_path):
    fixed = quantization.quantizers.FixedQuantizer(8, 0.0, 2.55, narrow_range=False)
    student = _applied(Foreign(_last_value(per_axis=True), fixed))
    tf_fpq.calibrate(student, IMAGES, verbose=0)
    relu = student.get_layer("relu_quantize")
    step, zero = relu.quantizer.grid(relu.variables_of_quantizer)
    assert (float(step), float(zero)) == (pytest.approx(0.01), 0), "the range is the user's"
    before = student.get_layer("conv").layer.kernel.numpy()
    student.compile(keras.optimizers.SGD(0.1), "mse")
    student.fit(IMAGES, np.ones((8, 3)), verbose=0)
    assert (student.get_layer("conv").layer.kernel.numpy() != before).any()
    assert_twin_is_interpreter(student, IMAGES)
    student.save(tmp_path / "s.keras")
    with quantization.quantize_scope(SCOPE):
        loaded = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(loaded(IMAGES), student(IMAGES))


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (Clip(), "Clip quantizes kernel of layer 'conv' on no grid that is known"),
        (_last_value(symmetric=False), "Layer 'conv' .* on a grid that int8 weights do not have"),
        (_last_value(narrow_range=False), "Layer 'conv' .*narrow_range=True"),
    ],
)
def test_foreign_quantizers_without_such_a_grid_train_and_are_refused_at_export(
    quantizer, message, tmp_path
):
    student = _applied(Foreign(quantizer))
    tf_fpq.calibrate(student, IMAGES, verbose=0)
    student.compile("sgd", "mse")
    losses = student.fit(IMAGES, np.ones((8, 3)), epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]
    with pytest.raises(ValueError, match=message):
        tflite_export.export(student, tmp_path / "no.tflite")


def test_a_config_that_does_not_fit_its_layer_is_named():
    with pytest.raises(ValueError, match="conv: Foreign does not fit it: 'Conv2D' object has no"):
        _applied(Foreign(_last_value(), attribute="depthwise_kernel"))


def test_annotated_layers_without_an_integer_form_are_refused():
    with pytest.raises(ValueError, match="dense: activation 'elu' has no integer form"):
        quantization.quantize_apply(_annotated(activation="elu"), scheme=tf_fpq.FpqQuantizeScheme())


def test_a_layer_that_was_not_annotated_and_has_no_class_known_here_stays(tmp_path):
    annotated = _annotated()
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), *annotated.layers[:3], Halve(name="halve"), *annotated.layers[3:]]
    )
    student = quantization.quantize_apply(model, scheme=tf_fpq.FpqQuantizeScheme())
    tf_fpq.calibrate(student, IMAGES, verbose=0)
    np.testing.assert_allclose(student(IMAGES), model(IMAGES), atol=0.3)
    with pytest.raises(ValueError, match="'halve'"):
        tflite_export.export(student, tmp_path / "no.tflite")


def test_a_nested_model_is_dissolved():
    annotated = _annotated()
    inner = keras.Sequential([keras.Input((4, 4, 4)), layers.Conv2D(4, 1, name="inner")])
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), *annotated.layers[:3], inner, *annotated.layers[3:]]
    )
    student = quantization.quantize_apply(model, scheme=tf_fpq.FpqQuantizeScheme())
    assert type(student.get_layer("inner")) is layers.Conv2D, "not annotated: float"
    assert isinstance(student.get_layer("dense"), QuantizedLayer)


@pytest.mark.parametrize(
    "config", [tf_fpq.LsqQuantizeConfig, tf_fpq.LsqPlusQuantizeConfig, tf_fpq.MinMaxQuantizeConfig]
)
def test_in_a_graph_of_tensorflow_1_too(config):
    """There `numpy()` does not exist, and `assign` is an operator for later."""
    steps = []
    for graph in (tf.Graph().as_default(), contextlib.nullcontext()):
        with graph:
            student = quantization.quantize_apply(
                _annotated(config), scheme=tf_fpq.FpqQuantizeScheme()
            )
            (_, _, quantizer, variables) = student.get_layer("conv").quantized_weights()[0]
            steps.append(keras.backend.get_value(quantizer.grid(variables)[0]))
    np.testing.assert_allclose(*steps, rtol=1e-6)
    assert steps[0].std() > 0, "from the weights, not the range it was made with"
