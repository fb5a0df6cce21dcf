import json
import subprocess
import sys

import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
import tflite_export
from tflite_export.flatbuffer import reader, writer
from tflite_export.lowering import io_types


def run(program, *arguments):
    """Runs a program as a user does."""
    return subprocess.run(
        [sys.executable, "-m", f"tflite_export.{program}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, its float teacher, images with labels, and two hand-made files."""
    folder = tmp_path_factory.mktemp("binaries")
    small_student.student().save(folder / "student.keras")
    small_student.float_model().save(folder / "float.keras")
    images = small_student.images(24)
    np.savez(folder / "test.npz", images=images, labels=np.arange(24) % 5)
    np.save(folder / "test.npy", images)
    network = small_network.residual_network()
    writer.write(network, folder / "a.tflite")
    writer.write(io_types.with_io(network, "uint8", "float32"), folder / "b.tflite")
    (folder / "bad.tflite").write_bytes(b"TFL3" * 100)
    (folder / "bad.keras").write_bytes(b"PK\x03\x04 not an archive")
    return folder


def test_export_then_verify(folder):
    target = folder / "x.tflite"
    done = run("export", folder / "student.keras", target, "--weights=int4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == target.stat().st_size and found["int8_weights"] == [
        "depthwise_kernel",
        "logits_kernel",
    ]
    # A saved and loaded student has the same integers.
    again = tflite_export.open_exported(small_student.student(), target)
    assert reader.differences(again.file_model, tflite_export.read(target)) == []

    saved = folder / "report.json"
    done = run(
        "verify",
        folder / "student.keras",
        target,
        f"--images={folder / 'test.npz'}",
        f"--teacher={folder / 'float.keras'}",
        f"--save={saved}",
        f"--overlay={folder / 'overlay.json'}",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    report = tflite_export.Report.from_dict(json.loads(done.stdout))
    assert report == tflite_export.Report.from_dict(json.loads(saved.read_text()))
    assert (
        report.output("twin", "xnnpack").differing == 0 and report.float_errors and report.accuracy
    )
    assert json.loads((folder / "overlay.json").read_text())["main"]["results"]


def test_labels_and_normalization_become_metadata(folder):
    labels = folder / "labels.txt"
    labels.write_text("cat\ndog\nbird\nfish\nhorse\n\n")
    target = folder / "labelled.tflite"
    flags = [f"--labels={labels}", "--mean=127.5,100", "--std=64", "--input_type=float32", "--json"]
    done = run("export", folder / "student.keras", target, *flags)
    assert done.returncode == 0, done.stderr
    found = tflite_export.read_metadata(target)
    assert found.labels == ("cat", "dog", "bird", "fish", "horse")
    # One number stands for both channels.
    assert (found.mean, found.std) == ((127.5, 100.0), (64.0, 64.0))
    printed = json.loads(done.stdout)
    assert (printed["labels"], printed["mean"], printed["std"]) == (
        list(found.labels),
        [127.5, 100.0],
        [64.0, 64.0],
    )
    # The network is the one without metadata.
    plain = tflite_export.export(
        small_student.student(), folder / "plain.tflite", input_type="float32"
    )
    assert reader.differences(plain.file_model, tflite_export.read(target)) == []


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ("cat\ndog\n", [], "labels must be one per class, 5. Received: 2 labels."),
        (None, ["--labels=absent.txt"], "No such file or directory: 'absent.txt'"),
        (
            None,
            ["--mean=127.5"],
            "--mean and --std go together. Received: --mean=['127.5'], --std=None.",
        ),
        (
            None,
            ["--mean=half", "--std=1"],
            "--mean must be one number, or one per channel by commas. Received: half.",
        ),
    ],
)
def test_labels_and_normalizations_that_do_not_fit_are_one_line(
    folder, tmp_path, lines, flags, message
):
    if lines is not None:
        (tmp_path / "labels.txt").write_text(lines)
        flags = [*flags, f"--labels={tmp_path / 'labels.txt'}"]
    done = run("export", folder / "student.keras", tmp_path / "never.tflite", *flags)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and message in line and "Traceback" not in done.stderr
    assert not (tmp_path / "never.tflite").exists()


def test_verify_fails_for_ci_and_names_the_tensor(folder):
    exported = tflite_export.export(small_student.student(), folder / "y.tflite")
    student = small_student.make_student()
    bias = student.get_layer("project").layer.bias
    bias.assign(bias + 1.0)
    student.save(folder / "trained_on.keras")
    done = run(
        "verify",
        folder / "trained_on.keras",
        exported.path,
        f"--images={folder / 'test.npy'}",
        "--kernels=xnnpack",
    )
    assert done.returncode == 1
    assert (
        "FAILED" in done.stdout and "parameters: project_kernel_bias: data differs" in done.stdout
    )


def test_benchmark_compares_float_int8_and_int4(folder):
    done = run("benchmark", folder / "float.keras", folder / "student.keras", "--runs=5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["measurements"]
    assert [m["label"] for m in found] == ["float float32", "student int8", "student int4"]
    assert found[0]["bytes"] > found[2]["bytes"] and all(m["median_ms"] > 0 for m in found)


def test_inspect_shows_operators_and_bits(folder):
    done = run("inspect", folder / "a.tflite")
    assert done.returncode == 0 and "DEPTHWISE_CONV_2D" in done.stdout
    done = run("inspect", folder / "a.tflite", folder / "b.tflite", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(line["operators"]) for line in lines] == [9, 11]


@pytest.mark.parametrize(
    ("program", "names", "message"),
    [
        ("inspect", ["bad.tflite"], "bad.tflite is"),
        ("inspect", ["absent.tflite"], "No such file"),
        ("inspect", [], "Expected arguments: MODEL.tflite"),
        ("verify", ["a.tflite", "bad.tflite"], "bad.tflite is"),
        ("verify", ["a.tflite"], "Expected arguments"),
        ("verify", ["student.keras", "a.tflite"], "A student is verified on images"),
        ("verify", ["student.keras", "absent.tflite"], "No such file: '.*absent.tflite'"),
        ("benchmark", ["bad.tflite"], "bad.tflite is"),
        ("export", ["absent.keras", "x.tflite"], "No such file: '.*absent.keras'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, program, names, message):
    done = run(program, *(folder / name for name in names))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr and done.stdout == ""
    import re

    assert re.search(message, line)


def test_a_damaged_keras_file_is_one_line(folder):
    done = run("export", folder / "bad.keras", folder / "never.tflite")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is no model file" in done.stderr
    assert not (folder / "never.tflite").exists()


@pytest.mark.parametrize("program", ["export", "verify", "benchmark", "inspect"])
def test_help_teaches(program):
    done = run(program, "--help")
    assert (
        f"tf-fpq {program}" in done.stdout
        and "Exit code" in done.stdout
        and "--[no]json" in done.stdout
    )


def test_a_program_does_not_hide_the_function():
    with pytest.raises(ImportError, match="is a program"):
        __import__("tflite_export.verify")
    with pytest.raises(ImportError, match="is a program"):
        __import__("tflite_export.export")
    assert callable(tflite_export.verify) and callable(tflite_export.export)
