import sys

import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
import tflite_export
from tflite_export import interpreter, micro, writer

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
    body = small_network.deployed_lib.DeployedModel(network.tensors, network.operators[:cut], network.inputs, head)
    contents = writer.to_bytes(body)
    images = np.random.default_rng(0).uniform(0, 1, (50, 8, 8, 3)).astype(np.float32)
    expected = interpreter.Interpreter(contents, "reference").run(images)
    np.testing.assert_array_equal(micro.MicroInterpreter(contents).run(images)[head[0]], expected[head[0]])


@needs_tflm
def test_tflm_refuses_damaged_files_and_small_arenas():
    with pytest.raises(ValueError, match="not a TFLite file"):
        micro.MicroInterpreter(b"no model at all")
    # TFLM's answer to an arena that is too small is a segmentation fault.
    runtime = micro.MicroInterpreter(writer.to_bytes(small_network.residual_network()), arena_bytes=1000)
    with pytest.raises(interpreter.InterpreterError, match="TFLM"):
        runtime.run(np.zeros((1, 8, 8, 3), np.float32))


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    assert not micro.is_installed()
    with pytest.raises(interpreter.InterpreterError, match="pip install --pre tflite-micro"):
        micro.MicroInterpreter(writer.to_bytes(small_network.residual_network()))
