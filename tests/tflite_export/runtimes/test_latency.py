import pytest

from tests.tflite_export import small_network
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import file_summary, writer
from tflite_export.runtimes import latency

NETWORK = small_network.residual_network()
CONTENTS = writer.to_bytes(NETWORK)


def test_a_measurement_has_all_figures():
    found = latency.measure(CONTENTS, "int8", runs=20, threads=2)
    assert (found.label, found.kernels, found.threads, found.runs) == ("int8", "xnnpack", 2, 20)
    assert 0 < found.median_ms <= found.p90_ms
    assert found.bytes == len(CONTENTS)
    assert found.arena_bytes == file_summary.arena_bytes(NETWORK)
    # At least what it has to hold, at most a hundred megabytes: the interpreter's own libraries are
    # not counted.
    assert found.memory_bytes is None or 0 < found.memory_bytes < 1e8


def test_files_and_kernel_sets_are_compared_in_order():
    found = latency.compare(
        {"a": CONTENTS, "b": CONTENTS}, kernels=("xnnpack", "reference"), runs=3, warmup=0
    )
    assert [(m.label, m.kernels) for m in found] == [
        ("a", "xnnpack"),
        ("a", "reference"),
        ("b", "xnnpack"),
        ("b", "reference"),
    ]
    lines = latency.text(found).splitlines()
    assert lines[0].split()[:3] == ["model", "kernels", "threads"] and len(lines) == 6
    assert "1.00x" in lines[2]


@pytest.mark.parametrize(
    "argument", [{"runs": 0}, {"threads": 0}, {"warmup": -1}, {"kernels": "gpu"}]
)
def test_bad_arguments_are_refused(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"Received: {name}="):
        latency.measure(CONTENTS, **argument)


def test_files_that_cannot_run_are_one_error(tmp_path):
    with pytest.raises(ValueError, match="not a TFLite file"):
        latency.measure(b"no model at all")
    with pytest.raises(InterpreterError, match="Cannot read"):
        latency.measure(tmp_path / "absent.tflite")
