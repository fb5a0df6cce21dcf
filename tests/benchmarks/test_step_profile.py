"""The profile's arithmetic, and that a trace has the operations of a step."""

import pytest
import tensorflow as tf

from benchmarks import step_profile, step_time


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("_MklNativeConv2D", "convolution, forward"),
        ("_MklNativeConv2DBackpropInput", "convolution, by input"),
        ("_MklNativeConv2DBackpropFilter", "convolution, by kernel"),
        ("_MklNativeFusedBatchNormGradV3", "batch norm"),
        ("Mul", "multiply, divide"),
        ("QuantizeAndDequantizeV4Grad", "quantize"),
        ("XlaLaunch", "quantize"),
        ("MatMul", "reduce"),
        ("ReadVariableOp", "other"),
    ],
)
def test_kinds(operation, kind):
    assert step_profile.kind_of(operation) == kind


def test_shortest_duration_times_how_often_it_ran():
    events = [("a:Mul", 3.0), ("a:Mul", 2.0), ("b:Mul", 1.0), ("noise:RandomUniform", 8.0)]
    result = step_profile.by_kind(events, steps=2)
    # a ran in both steps: 2; b in one of two: 1 / 2; the noise in one of two: 8 / 2.
    assert (result["multiply, divide"], result["random numbers"], result["other"]) == (
        2.5,
        4.0,
        0.0,
    )


def test_a_trace_has_convolutions():
    small = step_time.Settings(batch_size=4, image_size=8)
    found = step_profile.profile("resnet8", ["float"], small, rounds=2)["float"]
    assert found["convolution, forward"] > 0 and found["convolution, by kernel"] > 0
    assert "| convolution, forward |" in step_profile.table({"float": found})


def test_a_trace_has_what_xla_compiled():
    compiled = tf.function(lambda x: x * 2.0 + 1.0, jit_compile=True)
    both = tf.function(lambda x: compiled(compiled(x)))
    both(tf.ones([8]))
    names = [name for name, _ in step_profile._trace(lambda: float(both(tf.ones([8]))[0]))]
    assert [name for name in names if name.endswith(":XlaLaunch")] == [
        "compiled_0:XlaLaunch",
        "compiled_1:XlaLaunch",
    ]
