"""`quantize_model`: rules, quantizers and what it refuses."""

import functools

import numpy as np
import pytest

from tests.tf_fpq import small_student
from tests.tf_fpq.placement.test_quantize_configs import HalvingQuantizer
import tf_fpq
from tf_fpq import quantizers
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer
from tflite_export.lowering.builder import deploy

Rule = tf_fpq.QuantRule


def _bits(student):
    """Widths of kernels and of activations, by layer name."""
    weights = {
        layer.name: layer.quantized_weights()[0][2].spec.num_bits
        for layer in student.layers
        if isinstance(layer, QuantizedLayer)
    }
    activations = {
        layer.name.removesuffix("_quantize"): layer.quantizer.spec.num_bits
        for layer in student.layers
        if isinstance(layer, QuantizeActivation)
    }
    return weights, activations


def test_mixed_precision_by_name_and_type():
    rules = [
        Rule("stem|logits"),
        Rule(layer_type=keras.layers.DepthwiseConv2D, weight_bits=6, activation_bits=5),
        Rule(".*", weight_bits=2, activation_bits=4),
    ]
    weights, activations = _bits(tf_fpq.quantize_model(small_student.network(), rules))
    assert weights == {"stem": 8, "depthwise": 6, "pointwise": 2, "logits": 8}
    # A tensor has the width that its reader asks for; sums and logits have 8 bits.
    assert activations == {
        "image": 8,
        "stem_relu": 5,
        "depthwise_relu": 4,
        "pointwise_bn": 8,
        "add_relu": 8,
        "pool": 8,
        "logits": 8,
    }


def test_no_rule_is_the_float_model_bit_for_bit():
    model = small_student.network()
    copy = tf_fpq.quantize_model(model, [])
    np.testing.assert_array_equal(copy(small_student.images()), model(small_student.images()))
    assert not set(map(id, copy.variables)) & set(map(id, model.variables))


def test_none_leaves_weights_or_activations_float():
    model, x = small_student.network(), small_student.images()
    both = tf_fpq.quantize_model(model, [Rule(weight_bits=None, activation_bits=None)])
    assert _bits(both) == ({}, {})
    np.testing.assert_allclose(both(x), model(x), rtol=1e-5, atol=1e-6)

    weights, activations = _bits(
        tf_fpq.quantize_model(model, [Rule(weight_bits=4, activation_bits=None)])
    )
    assert set(weights) == {"stem", "depthwise", "pointwise", "logits"} and activations == {}

    weights, activations = _bits(
        tf_fpq.quantize_model(model, [Rule(weight_bits=None, activation_bits=4)])
    )
    assert weights == {} and len(activations) == 7

    rules = [Rule("pointwise", weight_bits=None, activation_bits=None), Rule(".*")]
    student = tf_fpq.quantize_model(model, rules)
    weights, activations = _bits(student)
    assert (
        "pointwise" not in weights
        and "depthwise_relu" not in activations
        and "stem_relu" in activations
    )
    with pytest.raises(ValueError, match="depthwise|pointwise"):
        deploy(student)


def test_a_tensor_with_two_readers_has_the_wider_width():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(2, 3, name="a")(image)
    outputs = [keras.layers.Conv2D(2, 1, name=name)(x) for name in ("narrow", "wide", "float")]
    model = keras.Model(image, outputs)
    rules = [
        Rule("narrow", activation_bits=3),
        Rule("wide", activation_bits=6),
        Rule("float", activation_bits=None),
        Rule("a"),
    ]
    assert _bits(tf_fpq.quantize_model(model, rules))[1]["a"] == 6


def test_granularity_by_rule():
    rules = [Rule("stem", per_channel=False), Rule("depthwise", per_channel=True), Rule(".*")]
    for name, others in (("lsq", (3,)), ("pact", None)):
        student = tf_fpq.quantize_model(small_student.network(), rules, name)
        axes = {
            n: student.get_layer(n).quantized_weights()[0][2].spec.axis
            for n in ("stem", "depthwise", "pointwise")
        }
        assert axes == {"stem": None, "depthwise": (2, 3), "pointwise": others}


@pytest.mark.parametrize(
    "quantizer",
    [
        "ewgs",
        quantizers.EwgsQuantizer,
        functools.partial(quantizers.EwgsQuantizer, delta=0.25),
        functools.partial(HalvingQuantizer, halves=3),
    ],
    ids=["name", "class", "partial", "own"],
)
def test_a_quantizer_by_name_class_or_partial_survives_saving(quantizer, tmp_path):
    student = tf_fpq.quantize_model(
        small_student.network(), [Rule(weight_bits=4, activation_bits=4)], quantizer
    )
    tf_fpq.calibrate(student, small_student.images(), verbose=0)
    student.save(tmp_path / "s.keras")
    restored = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(restored(small_student.images()), student(small_student.images()))
    for ours, theirs in zip(student.layers, restored.layers, strict=True):
        if isinstance(ours, QuantizeActivation):
            assert ours.quantizer == theirs.quantizer
            if isinstance(quantizer, functools.partial):
                assert quantizer.keywords.items() <= theirs.quantizer.get_config().items()
        if isinstance(ours, QuantizedLayer):
            assert ours.quantize_config == theirs.quantize_config


def test_what_rules_matched_is_reported(capsys):
    rules = [Rule("stem|logits"), Rule(layer_type="DepthwiseConv2D", weight_bits=4)]
    tf_fpq.quantize_model(small_student.network(), rules, verbose=1)
    assert capsys.readouterr().out.splitlines() == [
        "'stem|logits' -> W8A8: stem, logits",
        "'.*', layer_type=DepthwiseConv2D -> W4A8: depthwise",
        "no rule, float kernel: pointwise",
    ]
    tf_fpq.quantize_model(small_student.network(), rules)
    assert capsys.readouterr().out == ""


def test_errors_say_the_way_out():
    model = small_student.network()
    with pytest.raises(ValueError, match="quantizer must be one of lsq"):
        tf_fpq.quantize_model(model, [Rule()], "lsqq")
    with pytest.raises(ValueError, match=r"'convolution' -> W8A8.*stem \(Conv2D\)"):
        tf_fpq.quantize_model(model, [Rule("convolution")])
    with pytest.raises(TypeError, match="model must be a .*Received: model='resnet'"):
        tf_fpq.quantize_model("resnet", [Rule()])


def test_weights_that_are_no_numbers_are_named():
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 3, name="conv"), keras.layers.Flatten()]
    )
    images = np.random.default_rng(0).normal(0, 1, (8, 4, 4, 2)).astype(np.float32)
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    tf_fpq.calibrate(student, images, verbose=0)
    for network in (model, student):
        bias = next(weight for weight in network.weights if weight.name == "conv/bias:0")
        bias.assign([0.0, np.nan, 0.0])
    message = "must have finite weights. Received: {} .*NaN or infinity in conv/bias:0.*diverged"
    with pytest.raises(ValueError, match=message.format("model")):
        tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    with pytest.raises(ValueError, match=message.format("student")):
        tf_fpq.calibrate(student, images, verbose=0)
    with pytest.raises(ValueError, match=message.format("student")):
        deploy(student)


@pytest.mark.parametrize("rules", [tf_fpq.QuantRule(), {"stem": 8}, "stem=W8A8", [8], 8])
def test_rules_that_are_no_list_of_rules_are_named(rules):
    with pytest.raises(TypeError, match="rules must be a list of QuantRule.*Received: rules="):
        tf_fpq.quantize_model(small_student.network(), rules)
    with pytest.raises(TypeError, match="rules must be a list of QuantRule"):
        tf_fpq.check(small_student.network(), rules)
