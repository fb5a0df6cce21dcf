import subprocess
import sys

import numpy as np
import pytest

from tests.tflite_export import small_network
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import writer
from tflite_export.lowering import io_types
from tflite_export.runtimes import litert

NETWORK = small_network.residual_network()
CONTENTS = writer.to_bytes(NETWORK)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (5, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("kernels", list(litert.KERNEL_SETS))
def test_floats_and_their_codes_give_the_same_outputs(kernels):
    runner = litert.Interpreter(CONTENTS, kernels)
    codes = litert.quantize(IMAGES, 1 / 255, -128)
    (of_floats,) = runner.run(IMAGES).values()
    (of_codes,) = runner.run(codes).values()
    assert of_floats.shape == (5, 10) and of_floats.dtype == np.int8
    np.testing.assert_array_equal(of_floats, of_codes)
    # One image alone gives what it gives among others.
    np.testing.assert_array_equal(runner.run(IMAGES[3:4])["probabilities"], of_floats[3:4])


def test_keeping_all_tensors_changes_no_result():
    keeps = litert.Interpreter(CONTENTS, keep_all_tensors=True)
    tensors = keeps.tensors(IMAGES)
    assert list(tensors)[0] == "image" and set(tensors) >= {
        "stem",
        "add",
        "mean",
        "logits",
        "probabilities",
    }
    assert not any(name.endswith(("weights", "bias", "pads", "axes")) for name in tensors)
    np.testing.assert_array_equal(
        tensors["probabilities"], litert.Interpreter(CONTENTS).run(IMAGES)["probabilities"]
    )
    np.testing.assert_array_equal(tensors["image"], litert.quantize(IMAGES, 1 / 255, -128))
    with pytest.raises(ValueError, match="keep_all_tensors=True"):
        litert.Interpreter(CONTENTS).tensors(IMAGES)


def test_kernel_sets_really_differ():
    found = {
        name: litert.Interpreter(CONTENTS, name, keep_all_tensors=True)
        for name in ("xnnpack", "reference")
    }
    images = RNG.uniform(0, 1, (40, 8, 8, 3)).astype(np.float32)
    add = {name: runner.tensors(images)["add"] for name, runner in found.items()}
    assert np.any(add["xnnpack"] != add["reference"])


def test_quantize_golden():
    # Halves go to the even code; the container clips.
    values = np.array([0.25, 0.75, 1.25, -0.25, 1e6, -1e6], np.float32)
    np.testing.assert_array_equal(litert.quantize(values, 0.5, 3), [3, 5, 5, 3, 127, -128])
    np.testing.assert_array_equal(litert.quantize(values, 0.5, 3, np.uint8), [3, 5, 5, 3, 255, 0])
    np.testing.assert_array_equal(
        litert.dequantize(np.array([-128, 3, 5]), 0.5, 3), [-65.5, 0.0, 1.0]
    )
    with pytest.raises(ValueError, match="no grid"):
        litert.quantize(values, 0.0, 0)


def test_a_uint8_input_takes_floats_and_bytes():
    runner = litert.Interpreter(writer.to_bytes(io_types.with_io(NETWORK, "uint8", "int8")))
    of_floats = runner.run(IMAGES)["probabilities"]
    pixels = np.rint(IMAGES * 255).astype(np.uint8)
    np.testing.assert_array_equal(runner.run(pixels)["probabilities"], of_floats)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES[..., :2], r"must have shape \(None, 8, 8, 3\). Received: \(5, 8, 8, 2\)"),
        (IMAGES[:0], "must have shape"),
        (IMAGES.astype(np.int32), "must be float or int8. Received: dtype int32"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        litert.Interpreter(CONTENTS).run(batch)


def test_an_unknown_kernel_set_is_refused():
    with pytest.raises(
        ValueError,
        match="kernels must be one of xnnpack, builtin, reference. Received: kernels='gpu'",
    ):
        litert.Interpreter(CONTENTS, "gpu")


def test_files_that_cannot_run_are_one_clear_error(tmp_path):
    for contents in (b"", b"TFL3", CONTENTS[:500], b"\x00" * 1000):
        with pytest.raises(InterpreterError, match="cannot open"):
            litert.Interpreter(contents)
    with pytest.raises(InterpreterError, match="Cannot read .*absent"):
        litert.Interpreter(tmp_path / "absent.tflite")


def test_a_probe_survives_what_kills_its_process(monkeypatch):
    litert.probe(CONTENTS, list(litert.KERNEL_SETS))
    monkeypatch.setattr(litert, "_PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(InterpreterError, match="crashed on these .* xnnpack kernels .SIGSEGV."):
        litert.probe(CONTENTS)
    monkeypatch.setattr(litert, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(litert, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(InterpreterError, match="did not finish"):
        litert.probe(CONTENTS)


def test_a_name_that_is_no_utf8_is_one_of_many():
    """A damaged file: the tensor is another one, and the others have their names."""
    name = b"stem"
    damaged = CONTENTS.replace(name + bytes(1), b"st\xe7m" + bytes(1))
    assert damaged != CONTENTS
    whole, found = (
        litert.Interpreter(contents, keep_all_tensors=True).tensors(IMAGES)
        for contents in (CONTENTS, damaged)
    )
    assert set(whole) - set(found) == {"stem"} and len(found) >= len(whole) - 1
    for name in set(whole) & set(found):
        np.testing.assert_array_equal(whole[name], found[name])


def test_a_probe_names_the_file_and_the_kernels():
    with pytest.raises(
        InterpreterError, match="^'x.tflite' with the xnnpack kernels cannot be run:"
    ):
        litert.probe(CONTENTS[:-200], source="x.tflite")


def test_a_probe_reports_what_litert_says():
    with pytest.raises(InterpreterError, match="not a valid Flatbuffer|valid Flatbuffer"):
        litert.probe(CONTENTS[:-200])


def test_reading_and_running_need_no_tensorflow():
    script = (
        "import sys; import tflite_export; from tflite_export.flatbuffer import file_summary,"
        " reader; from tflite_export.runtimes import latency, litert; from"
        " tflite_export.verification import file_pair, report; tflite_export.read,"
        " tflite_export.Report, tflite_export.compare_files, tflite_export.quant_params;"
        " sys.exit(any(name.split('.')[0] in ('tensorflow', 'tf_keras') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
