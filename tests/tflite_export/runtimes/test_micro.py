import sys

import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
from tests.tflite_export.kernels import kernel_cases
import tflite_export
from tflite_export import deployed
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import writer
from tflite_export.kernels import rounding
from tflite_export.runtimes import litert, micro

needs_tflm = pytest.mark.skipif(not micro.is_installed(), reason="needs the package tflite-micro")


@needs_tflm
def test_tflm_computes_the_reference_kernels_codes(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    runtime = micro.MicroInterpreter(exported.path)
    report = tflite_export.verify(
        small_student.student(),
        exported,
        small_student.images(64),
        kernels=("reference",),
        runtimes=[runtime],
        min_top1_agreement=0.9,
        verbose=0,
    )
    found = report.output("reference", "tflm")
    assert found.codes == 64 * 5
    # The last layer is fully connected: another rounding of the same sum.
    assert found.max_lsb <= 1


@needs_tflm
def test_tflm_agrees_code_for_code_without_a_fully_connected_layer():
    network = small_network.residual_network()
    kinds = [operator.kind for operator in network.operators]
    cut = kinds.index("FULLY_CONNECTED")
    head = network.operators[cut - 1].outputs
    body = small_network.deployed_lib.DeployedModel(
        network.tensors, network.operators[:cut], network.inputs, head
    )
    contents = writer.to_bytes(body)
    images = np.random.default_rng(0).uniform(0, 1, (50, 8, 8, 3)).astype(np.float32)
    expected = litert.Interpreter(contents, "reference").run(images)
    np.testing.assert_array_equal(
        micro.MicroInterpreter(contents).run(images)[head[0]], expected[head[0]]
    )


@needs_tflm
@pytest.mark.parametrize("per_channel", [True, False])
def test_tflm_rounds_a_fully_connected_layer_twice(per_channel):
    """All of the difference to LiteRT's reference kernel, which multiplies in float64 and rounds
    once."""
    rng = np.random.default_rng(0)
    weights, bias = (
        rng.integers(-127, 128, (64, 32)).astype(np.int8),
        rng.integers(-6000, 6000, 64).astype(np.int32),
    )
    scale = np.float32(0.02) * 2 ** rng.uniform(-3, 3, 64 if per_channel else ()).astype(np.float32)
    axis = 0 if per_channel else None
    x, y = (
        kernel_cases.activation("x", (1, 32), 0.0173, 3),
        kernel_cases.activation("y", (1, 64), 0.731, -4),
    )
    constants = (
        kernel_cases.constant("weights", weights, scale, axis=axis),
        kernel_cases.constant("bias", bias, x.scale * scale, axis=axis),
    )
    operator = deployed.Operator("FULLY_CONNECTED", ("x", "weights", "bias"), ("y",))
    tensors = {tensor.name: tensor for tensor in (x, *constants, y)}
    contents = writer.to_bytes(deployed.DeployedModel(tensors, (operator,), ("x",), ("y",)))
    codes = rng.integers(-128, 128, (1000, 32)).astype(np.int8)

    sums = (codes.astype(np.int64) - x.zero_point) @ weights.T.astype(np.int64) + bias
    real = np.broadcast_to(np.float64(x.scale) * np.float64(scale) / np.float64(y.scale), 64)
    multiplier, shift = rounding.quantize_multiplier(real)
    assert (shift <= 0).all()
    high = sums * multiplier + 2**30 >> 31
    half = np.where(shift < 0, 2.0 ** (-shift - 1), 0)
    twice = np.sign(high) * np.floor((np.abs(high) + half) / 2.0**-shift) + y.zero_point
    found = micro.MicroInterpreter(contents).run(codes)["y"]
    np.testing.assert_array_equal(found, np.clip(twice, -128, 127))

    once = np.sign(sums) * np.floor(np.abs(sums * real) + 0.5) + y.zero_point
    reference = litert.Interpreter(contents, "reference").run(codes)["y"]
    np.testing.assert_array_equal(reference, np.clip(once, -128, 127))
    assert np.any(found != reference)


@needs_tflm
def test_tflm_refuses_damaged_files_and_small_arenas():
    with pytest.raises(ValueError, match="not a TFLite file"):
        micro.MicroInterpreter(b"no model at all")
    # TFLM's answer to an arena that is too small is a segmentation fault.
    runtime = micro.MicroInterpreter(
        writer.to_bytes(small_network.residual_network()), arena_bytes=1000
    )
    with pytest.raises(InterpreterError, match="TFLM"):
        runtime.run(np.zeros((1, 8, 8, 3), np.float32))


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    assert not micro.is_installed()
    with pytest.raises(InterpreterError, match="pip install --pre tflite-micro"):
        micro.MicroInterpreter(writer.to_bytes(small_network.residual_network()))
