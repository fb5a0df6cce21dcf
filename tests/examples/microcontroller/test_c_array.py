"""The C array is the file; the program built from it computes the twin's codes, but for ties."""

import os
import pathlib
import re
import subprocess

import numpy as np
import pytest

from examples.microcontroller import c_array
from tests.tflite_export import small_network, small_student
import tflite_export
from tflite_export.flatbuffer import file_summary, writer
from tflite_export.twin import integer_twin

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Folders of the four checkouts that examples/microcontroller/Makefile asks for.
SOURCES = {name: os.environ.get(name) for name in ("TFLM", "FLATBUFFERS", "GEMMLOWP", "RUY")}


def test_methods_have_the_names_of_tflm():
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MEAN", "RELU6", "PADV2")
    assert [c_array.method_of(kind) for kind in kinds] == [
        "AddConv2D",
        "AddDepthwiseConv2D",
        "AddFullyConnected",
        "AddMean",
        "AddRelu6",
        "AddPadV2",
    ]


def test_the_array_holds_every_byte():
    contents = bytes(range(256)) * 3
    text = c_array.source(contents, "model.h")
    assert bytes(int(byte, 16) for byte in re.findall(r"0x(..)", text)) == contents


def test_the_header_has_borders_and_the_operators_of_the_file(tmp_path):
    writer.write(small_network.residual_network(), tmp_path / "a.tflite")
    text = c_array.header(file_summary.inspect_file(tmp_path / "a.tflite"), "A_H_")
    assert "kInputElements = 192;" in text and "kOutputElements = 10;" in text
    assert "kInputScale = 0.00392156886f;" in text and "kInputZeroPoint = -128;" in text
    added = re.findall(r"resolver\.(\w+)\(\)", text)
    assert added == sorted(set(added)) and "AddDepthwiseConv2D" in added
    assert f"kModelOperators = {len(added)};" in text


def test_a_file_that_is_not_for_microcontrollers_is_refused(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    with pytest.raises(ValueError, match="batch"):
        c_array.main([exported.path, str(tmp_path / "model")])
    assert not (tmp_path / "model.cc").exists()


@pytest.mark.slow
@pytest.mark.skipif(not all(SOURCES.values()), reason=f"needs checkouts: {', '.join(SOURCES)}")
def test_the_program_computes_the_twins_codes_but_for_ties_of_the_dense_layer(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite", target="tflm")
    assert c_array.main([exported.path, str(tmp_path / "model")]) == 0
    variables = [f"{name}={path}" for name, path in SOURCES.items()]
    folder = ROOT / "examples/microcontroller"
    subprocess.run(["make", "-s", "-C", folder, f"BUILD={tmp_path}", *variables], check=True)

    model = exported.deployed
    source, result = model.tensors[model.inputs[0]], model.tensors[model.outputs[0]]
    images = small_student.images(24)
    codes = np.clip(np.rint(images / source.one_scale) + source.one_zero_point, -128, 127)
    done = subprocess.run(
        [tmp_path / "classify"],
        input=codes.astype(np.int8).tobytes(),
        capture_output=True,
        check=True,
    )
    twin = integer_twin.IntegerTwin(model, "double").predict(images, verbose=0)
    expected = np.rint(twin / result.one_scale) + result.one_zero_point
    found = np.frombuffer(done.stdout, np.int8).reshape(expected.shape)
    # TFLM rounds a FULLY_CONNECTED layer twice, the twin and the reference kernels once.
    np.testing.assert_allclose(found, expected, atol=1)
    assert (found != expected).mean() < 0.01
