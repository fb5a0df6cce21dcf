"""In which order `verify` measures and judges, with measurements that are given."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest

from tests.tflite_export import small_network
from tflite_export import exported_model
from tflite_export.flatbuffer import file_summary, writer
from tflite_export.verification import measurements, parameter_checks, verifier
from tflite_export.verification.report_records import Comparison, Failure, OperatorBound

NETWORK = small_network.residual_network()
OUTPUT = Comparison("probabilities", "SOFTMAX", "student", "xnnpack", 10, 9, 9, (), 1.0, 0.1)
LAYER = dataclasses.replace(OUTPUT, tensor="stem", left="twin", sqnr_db=None, top1=None)


@pytest.fixture
def network(tmp_path, monkeypatch):
    """The export of a network whose student deploys to it; nothing differs, and nothing crashes."""
    path = tmp_path / "net.tflite"
    writer.write(NETWORK, path)
    monkeypatch.setattr(
        exported_model,
        "lowered",
        lambda student, weights: types.SimpleNamespace(deployed=NETWORK, float_sums={}),
    )
    monkeypatch.setattr(parameter_checks, "student_weights", lambda student, found: ((), ()))
    monkeypatch.setattr(verifier, "_crash", lambda *arguments: None)
    return exported_model.ExportedModel(str(path), NETWORK, "int8", "int8", "int8", 1)


@pytest.fixture
def runs(monkeypatch):
    """The arguments of all measurements, which find an output that differs and a layer."""
    made = []

    class Run:
        unselected = ()

        def __init__(self, *arguments):
            made.append(arguments)

        def outputs(self, report, images, teacher, runtimes):
            made.append(("outputs", images, teacher, runtimes))
            second = dataclasses.replace(OUTPUT, right="reference", max_lsb=3)
            kinds = {"probabilities": "classes"}
            return dataclasses.replace(
                report, images=100, outputs=(OUTPUT, second), output_kinds=kinds
            )

        def tensors(self, report, images, teacher):
            made.append(("tensors", images, teacher))
            return dataclasses.replace(report, tensor_images=4, tensors=(LAYER,))

    monkeypatch.setattr(measurements, "Run", Run)
    return made


def failures(exported, **arguments):
    with pytest.raises(verifier.VerificationError) as caught:
        verifier.verify("student", exported, "images", **{"verbose": 0, **arguments})
    return caught.value.report


def test_a_report_begins_with_the_file(network, runs):
    report = failures(network)
    contents = pathlib.Path(network.path).read_bytes()
    assert (report.model, report.path, report.bytes) == ("residual", network.path, len(contents))
    assert report.parameters == 10 and report.notes == ()
    assert report.operators == tuple((o.kind, o.outputs[0]) for o in NETWORK.operators)
    assert report.costs == file_summary.operator_costs(NETWORK)
    assert report.bounds == (OperatorBound("SOFTMAX", "xnnpack", 1, 0.01),)
    assert set(report.versions) == {"tensorflow", "tf_keras", "ai-edge-litert", "numpy"}


def test_twins_are_judged_before_the_student_and_this_by_the_first_kernels(network, runs):
    report = failures(network, kernels=("xnnpack", "reference", "xnnpack"), max_student_lsb=8)
    assert [(f.check, f.tensor) for f in report.failures] == [
        ("twin", "stem"),
        ("student", "probabilities"),
        ("student", "probabilities"),
    ]
    assert "student and xnnpack differ by 9 LSB; the budget is 8" in report.failures[1].message
    report = failures(network, kernels=("reference", "xnnpack"), min_top1_agreement=0.25)
    assert [f.message[:29] for f in report.failures] == [
        "9 of 10 codes differ between ",
        "student and reference choose ",
    ]
    relaxed = failures(network, max_twin_codes=9, max_student_lsb=8, min_top1_agreement=0.1)
    assert [f.check for f in relaxed.failures] == ["student"]


def test_measurements_get_the_file_and_the_sizes(network, runs):
    verifier.verify(
        "student", network, "images", kernels=("builtin", "builtin"), runtimes=("micro",)
    )
    run, outputs, tensors = runs
    assert run == (
        "student",
        network,
        pathlib.Path(network.path).read_bytes(),
        ("builtin",),
        measurements.Sizes.of(NETWORK, None, None, None, 200),
        {},
        1,
    )
    assert outputs == ("outputs", "images", None, ("micro",))
    assert tensors == ("tensors", "images", None)
    runs.clear()
    failures(network, tensor_images=0, batch_size=3, reference_images=5, runtime_images=7)
    assert [call[0] for call in runs] == ["student", "outputs"]
    assert runs[0][4] == measurements.Sizes(3, 0, 5, 7, 512)


def test_what_passes_is_returned_and_saved_as_what_fails_is(network, runs, tmp_path):
    limits = {"max_twin_codes": 9, "min_top1_agreement": 0.1, "verbose": 0}
    one, two = tmp_path / "one.txt", tmp_path / "two.json"
    report = verifier.verify("student", network, "images", save=one, **limits)
    assert report.passed and one.read_text() == report.text()
    report = failures(network, save=[one, str(two)])
    assert one.read_text() == report.text() and two.exists()
    with pytest.raises(ValueError, match="must end in .json, .html or .txt"):
        verifier.verify("student", network, "images", save=(two, "x.pdf"), **limits)


def test_a_path_is_opened_as_an_export_of_the_student(network, runs, monkeypatch):
    opened = []
    monkeypatch.setattr(
        exported_model, "open_exported", lambda *arguments: opened.append(arguments) or network
    )
    failures(network)
    assert opened == []
    failures(network.path)
    assert opened == [("student", network.path)] and runs[3][1] is network


def test_a_file_of_another_graph_is_not_run(network, runs):
    """Not even one that is the student's, as where the path was exported to again."""
    other = small_network.residual_network(classes=4)
    report = failures(dataclasses.replace(network, deployed=other))
    assert {f.check for f in report.failures} == {"parameters"} and runs == []
    assert report.failures[0].tensor == "logits/weights"
    assert report.bounds and report.images == 0


def test_a_file_that_crashes_is_not_run_either(network, runs, monkeypatch):
    crash = Failure("runtime", "residual", "SIGSEGV")
    seen = []
    monkeypatch.setattr(verifier, "_crash", lambda *arguments: seen.append(arguments) or crash)
    report = failures(network, kernels=("builtin",))
    assert report.failures == (crash,) and runs == []
    assert seen == [("residual", pathlib.Path(network.path).read_bytes(), ("builtin",))]


def test_the_students_own_codes_are_asked_where_the_constants_are_right(network, runs, monkeypatch):
    wrong = Failure("parameters", "stem/weights", "codes are not the student's")
    asked = []

    def student_weights(student, found):
        asked.append(student)
        return (wrong,), ("The codes of 'x' were compared through the exporter only.",)

    monkeypatch.setattr(parameter_checks, "student_weights", student_weights)
    report = failures(network)
    assert report.failures[0] == wrong and asked == ["student"]
    assert report.notes == ("The codes of 'x' were compared through the exporter only.",)
    bias = NETWORK.tensors["stem/bias"]
    moved = dataclasses.replace(bias, data=bias.constant + np.int32(1))
    tensors = {**NETWORK.tensors, "stem/bias": moved}
    writer.write(dataclasses.replace(NETWORK, tensors=tensors), network.path)
    report = failures(network)
    assert [f.tensor for f in report.failures[:2]] == ["stem/bias", "stem"]
    assert len(asked) == 1 and report.notes == ()


def test_packed_weights_are_noted_and_those_that_stay_int8(network, runs):
    packed = dataclasses.replace(network, weights="int4")
    first, stayed = failures(packed).notes
    assert first.startswith("Packed INT4 convolutions do not run on XNNPACK")
    names = [f"{name}/weights" for name in ("stem", "depthwise", "project", "logits")]
    assert stayed == f"Weights that stay int8: {', '.join(names)}."
    tensors = {
        name: dataclasses.replace(tensor, dtype="int4" if name in names else tensor.dtype)
        for name, tensor in NETWORK.tensors.items()
    }
    whole = dataclasses.replace(packed, deployed=dataclasses.replace(NETWORK, tensors=tensors))
    assert failures(whole).notes == (first,)


def test_a_teacher_is_flattened_for_all_measurements(network, runs, monkeypatch):
    monkeypatch.setattr(verifier, "_flat", lambda teacher: f"flat {teacher}")
    failures(network, teacher="teacher")
    assert [call[2] for call in runs[1:]] == ["flat teacher"] * 2
