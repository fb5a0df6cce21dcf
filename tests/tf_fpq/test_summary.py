"""The summary's numbers, counted by hand."""

import pytest
import tensorflow_model_optimization as tfmot

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement import quantize_configs
from tf_fpq.summary import summary

RULES = [
    tf_fpq.QuantRule("stem|logits"),
    tf_fpq.QuantRule("pointwise", weight_bits=4, activation_bits=4),
    tf_fpq.QuantRule("depthwise", weight_bits=2, activation_bits=3, per_channel=False),
]


def _summary(quantizer="lsq"):
    return summary(tf_fpq.quantize_model(small_student.network(), RULES, quantizer))


def test_kernels():
    rows = {row.layer: row for row in _summary().rows if row.weights}
    # 8x8 images: stem 3x3x1x8, depthwise 3x3x8, pointwise 8x8, logits 8x4 with a bias.
    expected = {
        "stem": ("Conv2D", 8, 8, "channel", 72, 288, 72 + 32, 72 + 32, 64 * 72),
        "depthwise": ("DepthwiseConv2D", 2, 3, "tensor", 72, 288, 18 + 32, 72 + 32, 64 * 72),
        "pointwise": ("Conv2D", 4, 4, "channel", 64, 256, 32 + 32, 64 + 32, 64 * 64),
        "logits": ("Dense", 8, 8, "channel", 32, 144, 32 + 16, 32 + 16, 32),
    }
    got = {
        name: (
            row.kind,
            row.weight_bits,
            row.activation_bits,
            row.granularity,
            row.weights,
            row.float_bytes,
            row.bytes,
            row.container_bytes,
            row.macs,
        )
        for name, row in rows.items()
    }
    assert got == expected
    assert all(row.step_size > 0 for row in rows.values())


def test_totals():
    result = _summary()
    # Three batch norms of 4 x 8 numbers exist in the float model only.
    assert result.float_bytes == 288 + 288 + 256 + 144 + 3 * 128
    assert result.bytes == 104 + 50 + 64 + 48
    assert result.container_bytes == 104 + 104 + 96 + 48
    assert result.macs == {"W8A8": 64 * 72 + 32, "W2A3": 64 * 72, "W4A4": 64 * 64}


def test_activations():
    rows = {row.layer: row for row in _summary().rows if row.kind == "activation"}
    assert {name.removesuffix("_quantize"): row.activation_bits for name, row in rows.items()} == {
        "image": 8,
        "stem_relu": 3,
        "depthwise_relu": 4,
        "pointwise_bn": 8,
        "add_relu": 8,
        "pool": 8,
        "logits": 8,
    }
    assert (
        rows["image_quantize"].step_size == pytest.approx(12 / 255)
        and rows["image_quantize"].granularity == "tensor"
    )


def test_printed_table():
    lines = str(_summary()).splitlines()
    assert lines[1].split() == [
        "layer",
        "kind",
        "W",
        "A",
        "granularity",
        "step",
        "size",
        "weights",
        "bytes",
        "MACs",
    ]
    stem = next(line for line in lines if line.startswith("stem "))
    assert stem.split()[:5] == ["stem", "Conv2D", "8", "8", "channel"] and stem.split()[-3:] == [
        "72",
        "104",
        "4,608",
    ]
    assert (
        "1,360 bytes float, 266 quantized (5.1 times smaller), 352 in int8 containers" in lines[-2]
    )
    assert lines[-1] == "MACs per image: 4,640 W8A8, 4,608 W2A3, 4,096 W4A4"
    assert len({len(line) for line in lines[1:-2]}) == 1


def test_float_model_and_every_quantizer():
    result = summary(small_student.network())
    assert result.bytes == result.container_bytes == result.float_bytes - 3 * 128
    assert list(result.macs) == ["W32A32"] and all(row.step_size is None for row in result.rows)
    for quantizer in ("lsq_plus", "pact", "dorefa", "ewgs", "min_max"):
        assert _summary(quantizer).macs == _summary().macs


def test_shared_layers_count_every_call():
    image = keras.Input((4, 4, 2))
    conv = keras.layers.Conv2D(2, 1, use_bias=False, name="shared")
    result = summary(keras.Model(image, conv(conv(image))))
    assert result.rows[0].macs == 2 * 16 * 4 and result.float_bytes == 16


def test_plain_tfmot_models():
    config = quantize_configs.LsqQuantizeConfig(weight_bits=4, activation_bits=3)
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    image = keras.Input((8, 8, 1))
    x = annotate(keras.layers.Conv2D(2, 3, use_bias=False), config)(image)
    outputs = annotate(keras.layers.Conv2D(2, 1, use_bias=False), config)(x)
    with tfmot.quantization.keras.quantize_scope(
        {"LsqQuantizeConfig": quantize_configs.LsqQuantizeConfig}
    ):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(image, outputs))
    rows = [row for row in summary(model).rows if row.weights]
    # tfmot quantizes outputs; what the first layer reads is tfmot's own 8-bit input, which has no
    # grid of ours.
    assert [(row.weight_bits, row.activation_bits, row.granularity) for row in rows] == [
        (4, 32, "channel"),
        (4, 3, "channel"),
    ]


def test_bad_model():
    with pytest.raises(ValueError, match="Received: model='resnet'"):
        summary("resnet")
