"""Rules with a config: user layers of any class are quantized, trained and saved, and exported once
they have an operator."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement import rule_configs
from tf_fpq.quantizers import LsqQuantizer
from tf_fpq.student_layers.quantized_layers import QuantizedLayer
import tflite_export
from tflite_export.lowering import folding, operators

layers = keras.layers
register = keras.utils.register_keras_serializable(package="test_rule_configs")


@register
class Project(layers.Layer):
    """`x @ w + b`: a class that nobody knows."""

    use_bias = True  # the exporter's `quantized_kernel` asks

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight("w", (shape[-1], self.units))
        self.bias = self.add_weight("bias", (self.units,), initializer="zeros")

    def call(self, x):
        return x @ self.w + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class ProjectConfig(tf_fpq.LsqQuantizeConfig):
    """The way of this library."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.w, self.weight_quantizer(axis=(1,)))]


@register
class ForeignConfig(tfmot.quantization.keras.QuantizeConfig):
    """The way of tfmot, which knows no widths."""

    def __init__(self, quantizer=None, activations=(), weight="w"):
        self.quantizer = quantizer or LsqQuantizer(3, symmetric=True, narrow_range=True, axis=(1,))
        self.activations, self.weight = activations, weight

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, self.weight), self.quantizer)]

    def get_activations_and_quantizers(self, layer):
        return [(layer.call, quantizer) for quantizer in self.activations]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.w = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(image)
    x = Project(6, name="project")(layers.Flatten(name="flat")(x))
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def rules(config) -> list[tf_fpq.QuantRule]:
    return [
        tf_fpq.QuantRule(layer_type=Project, config=config),
        tf_fpq.QuantRule(weight_bits=4, activation_bits=4),
    ]


CONFIGS = {"ours": ProjectConfig(weight_bits=3, activation_bits=5), "tfmot's": ForeignConfig()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_of_unknown_class_is_quantized_trained_and_saved(name, tmp_path):
    student = tf_fpq.quantize_model(network(), rules(CONFIGS[name]))
    layer = student.get_layer("project")
    assert isinstance(layer, QuantizedLayer)
    ((attribute, _, quantizer, _),) = layer.quantized_weights()
    assert (attribute, quantizer.spec.num_bits, quantizer.spec.axis) == ("w", 3, (1,))
    reads = student.get_layer("stem_quantize").quantizer.spec.num_bits
    assert reads == (5 if name == "ours" else 8)  # tfmot's says nothing, so the rule's 8 stand
    assert student.get_layer("project_quantize").quantizer.spec.num_bits == 4  # logits reads it
    tf_fpq.calibrate(student, small_student.images(), verbose=0)
    before = layer.layer.w.numpy()
    small_student.fit(student, epochs=1)
    assert not np.array_equal(before, layer.layer.w)
    codes = quantizer.codes(layer.layer.w, layer.quantized_weights()[0][3]).numpy()
    assert np.abs(codes).max() <= 3 and len(np.unique(codes)) > 4
    student.save(tmp_path / "s.keras")
    restored = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(restored(small_student.images()), student(small_student.images()))


def test_check_says_what_export_needs_and_export_refuses_until_it_has_it(tmp_path, monkeypatch):
    chosen = rules(CONFIGS["ours"])
    report = tf_fpq.check(network(), chosen)
    (row,) = (row for row in report.rows if row.layer == "project")
    assert (row.status, row.weight_bits, row.activation_bits, row.has_operator) == (
        "quantized",
        3,
        5,
        False,
    )
    assert "tflite_export.register_operator" in row.reason
    assert report.ok and not report.exportable
    student = tf_fpq.quantize_model(network(), chosen)
    tf_fpq.calibrate(student, small_student.images(), verbose=0)
    with pytest.raises(ValueError, match="'project'.*no TFLite operator"):
        tflite_export.export(student, tmp_path / "no.tflite")
    assert not list(tmp_path.iterdir())

    def operator(builder, layer, name, sources, output):
        kernel = folding.quantized_kernel(layer, name, np.transpose, 0)
        return operators.Pending(
            "FULLY_CONNECTED", sources, {"keep_num_dims": False}, kernel=kernel
        )

    monkeypatch.setattr(operators, "STARTS", dict(operators.STARTS))
    tflite_export.register_operator(Project, operator)
    exported = tflite_export.export(student, tmp_path / "yes.tflite")
    tflite_export.verify(
        student, exported, small_student.images(), min_top1_agreement=0.0, verbose=0
    )


def test_without_a_config_the_layer_is_refused_and_both_ways_are_named():
    with pytest.raises(
        ValueError,
        match=r"project: layer class Project is not supported.*register_layer.*config=",
    ):
        tf_fpq.quantize_model(network(), [tf_fpq.QuantRule()])


def test_a_config_for_a_known_layer():
    own = tf_fpq.PactQuantizeConfig(weight_bits=2, activation_bits=3)
    chosen = [tf_fpq.QuantRule("stem", config=own), *rules(CONFIGS["ours"])]
    student = tf_fpq.quantize_model(network(), chosen)
    ((_, _, quantizer, _),) = student.get_layer("stem").quantized_weights()
    assert type(quantizer) is own.quantizer and quantizer.spec.num_bits == 2
    assert student.get_layer("image_quantize").quantizer.spec.num_bits == 3
    assert tf_fpq.check(network(), chosen).rows[1].weight_bits == 2


def test_the_summary_counts_its_weights():
    rows = {
        row.layer: row
        for row in tf_fpq.summary(tf_fpq.quantize_model(network(), rules(CONFIGS["ours"]))).rows
    }
    row = rows["project"]  # 3x3x4 values in, 6 out, a bias
    assert (row.kind, row.weight_bits, row.activation_bits, row.granularity) == (
        "Project",
        3,
        5,
        "channel",
    )
    assert (row.weights, row.float_bytes, row.bytes, row.container_bytes) == (
        216,
        888,
        81 + 24,
        216 + 24,
    )


def test_a_layer_without_weights():
    @register
    class Shift(layers.Layer):
        def call(self, x):
            return x + 1.0

    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2, name="dense")(Shift(name="shift")(x)))
    chosen = [
        tf_fpq.QuantRule(layer_type="Shift", config=tf_fpq.LsqQuantizeConfig(None, 6)),
        tf_fpq.QuantRule(),
    ]
    student = tf_fpq.quantize_model(model, chosen)
    assert type(student.get_layer("shift")).__name__ == "Shift"
    assert student.get_layer("x_quantize").quantizer.spec.num_bits == 6
    assert student.get_layer("shift_quantize").quantizer.spec.num_bits == 8


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            ForeignConfig(weight="kernel"),
            "ForeignConfig of its rule does not fit it: 'Project' object has no attribute",
        ),
        (ForeignConfig(weight="units"), "lists 6, which is no weight"),
        (ForeignConfig(LsqQuantizer(4)), "set symmetric=True, narrow_range=True"),
        (ForeignConfig(activations=[LsqQuantizer(4)]), "quantizes an activation inside the layer"),
        (
            ForeignConfig(
                tfmot.quantization.keras.quantizers.LastValueQuantizer(
                    num_bits=8, per_axis=False, symmetric=True, narrow_range=True
                )
            ),
            "by a LastValueQuantizer; use one of",
        ),
    ],
)
def test_configs_that_do_not_fit_are_problems_of_the_layer(config, reason):
    with pytest.raises(ValueError, match=reason):
        tf_fpq.quantize_model(network(), rules(config))
    (row,) = tf_fpq.check(network(), rules(config)).of("not supported")
    assert row.layer == "project"


def test_a_layer_of_two_outputs():
    x = keras.Input((6, 4))
    outputs = layers.LSTM(2, return_state=True, name="lstm")(x)
    model = keras.Model(x, layers.Dense(2)(outputs[0]))
    config = tf_fpq.LsqQuantizeConfig()
    with pytest.raises(ValueError, match="lstm: it has 3 outputs"):
        tf_fpq.quantize_model(model, [tf_fpq.QuantRule("lstm", config=config), tf_fpq.QuantRule()])


def test_configs_come_back_from_their_config():
    config = rule_configs.RuleConfig(ForeignConfig(), 3, 8)
    again = rule_configs.RuleConfig.from_config(config.get_config())
    assert (type(again.config), again.weight_bits, again.activation_bits) == (ForeignConfig, 3, 8)
