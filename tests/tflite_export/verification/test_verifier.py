import dataclasses
import itertools
import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.integration import exactness
from tests.tflite_export import small_student
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import exported_model
from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import reader, writer
from tflite_export.runtimes import litert
from tflite_export.verification import measurements

IMAGES = small_student.images()
KERNELS = ("xnnpack", "reference")
FEW = IMAGES[:24]


@pytest.fixture()
def exported(tmp_path):
    return tflite_export.export(small_student.student(), tmp_path / "small.tflite")


def verify(exported, images=IMAGES, **arguments):
    arguments = {"kernels": KERNELS, "verbose": 0, "tensor_images": 16, **arguments}
    return tflite_export.verify(small_student.student(), exported, images, **arguments)


def tamper(exported, name, **changes):
    """Rewrites the file with one tensor changed."""
    found = reader.read(exported.path)
    changed = dataclasses.replace(found.tensors[name], **changes)
    writer.write(
        dataclasses.replace(found, tensors={**found.tensors, name: changed}), exported.path
    )


def exporter_changes(monkeypatch, name, changes):
    """From now on the exporter itself makes one tensor otherwise, for files and for `verify`."""
    original = exported_model.lowered

    def changed(student, weights):
        lowered = original(student, weights)
        tensors = dict(lowered.deployed.tensors)
        tensors[name] = dataclasses.replace(tensors[name], **changes(tensors[name]))
        deployed = dataclasses.replace(lowered.deployed, tensors=tensors)
        return dataclasses.replace(lowered, deployed=deployed)

    monkeypatch.setattr(exported_model, "lowered", changed)


def shift_outputs_of_the_student(monkeypatch):
    """Every class gets its neighbour's score."""
    original = measurements.Run._student_codes
    monkeypatch.setattr(
        measurements.Run,
        "_student_codes",
        lambda self, outputs: [np.roll(c, 1, -1) for c in original(self, outputs)],
    )


def failure(exported, **arguments):
    with pytest.raises(tflite_export.VerificationError) as caught:
        verify(exported, FEW, **{"kernels": ("xnnpack",), **arguments})
    return caught.value


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 2), (3, 6)])
def test_an_export_is_its_twin_on_both_roundings(tmp_path, bits):
    student = small_student.make_student(*bits)
    exported = tflite_export.export(student, tmp_path / "x.tflite")
    report = tflite_export.verify(
        student, exported, IMAGES, kernels=KERNELS, min_top1_agreement=0.9, verbose=0
    )
    assert report.passed and report.images == 96 and report.tensor_images == 64
    for pair in (("twin", "xnnpack"), ("twin_double", "reference")):
        assert report.output(*pair).codes == 96 * 5
        assert report.output(*pair).differing == 0
        assert report.first_diverging(*pair) is None
        assert report.output(*pair).top1 == 1.0
    assert report.output("student", "xnnpack").top1 >= 0.9


@pytest.mark.parametrize("borders", [("uint8", "int8"), ("float32", "uint8"), ("int8", "float32")])
def test_borders_change_no_code(tmp_path, borders):
    exported = tflite_export.export(
        small_student.student(),
        tmp_path / "x.tflite",
        input_type=borders[0],
        output_type=borders[1],
    )
    report = verify(exported, FEW)
    assert report.output("twin", "xnnpack").differing == 0
    assert report.output("twin_double", "reference").differing == 0


def test_packed_int4_verifies_and_says_what_stays_int8(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite", weights="int4")
    report = verify(exported, FEW)
    assert report.output("twin", "xnnpack").differing == 0
    assert any("stay int8" in note and "depthwise_kernel" in note for note in report.notes)


def test_a_step_size_changed_by_one_percent_is_caught(exported):
    scale = exported.deployed.tensors["project_kernel"].scale.copy()
    scale[3] *= np.float32(1.01)
    tamper(exported, "project_kernel", scale=scale)
    error = failure(exported)
    assert "project_kernel: scale differs in 1 of 6 values; first at [3]" in str(error)
    # The codes tell as well, and where it starts.
    assert error.report.first_diverging("twin", "xnnpack") == "project_bn_quantize"


def test_one_flipped_weight_code_is_caught(exported):
    codes = exported.deployed.tensors["depthwise_kernel"].data.copy()
    codes[0, 1, 1, 4] += 5 if codes[0, 1, 1, 4] < 0 else -5
    tamper(exported, "depthwise_kernel", data=codes)
    error = failure(exported)
    assert "depthwise_kernel: data differs in 1 of 54 values; first at [0, 1, 1, 4]" in str(error)
    assert error.report.first_diverging("twin", "xnnpack") == "depthwise_relu_quantize"


def test_a_wrong_zero_point_is_caught(exported):
    zero_point = exported.deployed.tensors["add_quantize"].zero_point
    tamper(exported, "add_quantize", zero_point=zero_point - 1)
    error = failure(exported)
    assert f"add_quantize: zero_point {zero_point} != {zero_point - 1}" in str(error)
    assert error.report.first_diverging("twin", "xnnpack") == "add_quantize"


def test_a_batch_that_is_no_longer_fixed_is_caught(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite", target="vela")
    assert verify(exported, FEW, kernels=("xnnpack",)).passed
    found = reader.read(exported.path)
    assert found.fixed_batch
    writer.write(dataclasses.replace(found, fixed_batch=False), exported.path)
    assert "fixed_batch: True != False" in str(failure(exported))


def test_a_dropped_bias_is_caught(exported):
    bias = exported.deployed.tensors["stem_kernel_bias"].data
    assert np.abs(bias).max() > 0
    tamper(exported, "stem_kernel_bias", data=np.zeros_like(bias))
    error = failure(exported)
    assert "stem_kernel_bias: data differs" in str(error)
    assert error.report.first_diverging("twin", "xnnpack") == "stem_relu_quantize"


def test_a_swapped_channel_is_caught(exported):
    codes = exported.deployed.tensors["stem_kernel"].data
    tamper(exported, "stem_kernel", data=codes[[1, 0, 2, 3, 4, 5]])
    error = failure(exported)
    assert "stem_kernel: data differs" in str(error)
    assert error.report.first_diverging("twin", "xnnpack") == "stem_relu_quantize"


def test_the_students_own_codes_are_a_second_opinion_on_the_fold(exported, monkeypatch):
    # An exporter that swaps two channels of codes, scales and biases together would agree with
    # itself.
    exporter_changes(monkeypatch, "logits_kernel", lambda t: {"data": t.data[::-1].copy()})
    broken = tflite_export.export(small_student.student(), exported.path)
    assert "logits_kernel: codes are not the student's in 4 channels" in str(failure(broken))


def test_a_student_trained_on_after_its_export_is_caught(tmp_path):
    student = small_student.make_student()
    exported = tflite_export.export(student, tmp_path / "x.tflite")
    kernel = student.get_layer("logits").layer.bias
    kernel.assign(kernel + 1.0)
    with pytest.raises(tflite_export.VerificationError, match="logits_kernel_bias: data differs"):
        tflite_export.verify(student, exported, IMAGES, kernels=KERNELS, verbose=0)


def test_an_operator_with_another_option_is_caught(exported):
    found = reader.read(exported.path)
    operators = [
        (
            dataclasses.replace(o, options={**o.options, "activation": "NONE"})
            if "stem_relu_quantize" in o.outputs
            else o
        )
        for o in found.operators
    ]
    writer.write(dataclasses.replace(found, operators=tuple(operators)), exported.path)
    assert "parameters: stem_relu_quantize: operator 0" in str(failure(exported))


def test_another_networks_file_is_refused_before_it_runs(exported, tmp_path):
    student = small_student.make_student(8, 8)
    other = tflite_export.export(student, tmp_path / "other.tflite", output_type="float32")
    error = failure(dataclasses.replace(exported, path=other.path))
    assert error.report.images == 0
    assert {f.check for f in error.report.failures} == {"parameters"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:100], "truncated or corrupt|not a whole"),
        (lambda data: data[: len(data) // 2], "truncated or corrupt|not a whole"),
        (lambda data: b"PK\x03\x04" + data, "not a TFLite file"),
        (lambda data: b"", "not a TFLite file"),
    ],
)
def test_a_damaged_file_is_one_clear_error(exported, damage, message):
    contents = litert.read_bytes(exported.path)
    with open(exported.path, "wb") as file:
        file.write(damage(contents))
    with pytest.raises(ValueError, match=message):
        verify(exported)


def test_a_missing_file_is_one_clear_error(exported):
    with pytest.raises(InterpreterError, match="Cannot read .*missing"):
        verify(dataclasses.replace(exported, path=exported.path + ".missing"))


def test_a_crash_of_the_interpreter_is_reported(exported, monkeypatch):
    monkeypatch.setattr(litert, "_PROBE", "import os; os.abort()")
    error = failure(exported)
    assert "SIGABRT" in str(error)
    assert error.report.failures[0].check == "runtime"


def test_too_low_agreement_of_the_student_is_caught(exported, monkeypatch):
    shift_outputs_of_the_student(monkeypatch)
    error = failure(exported, max_student_lsb=0)
    assert error.report.failures[0].check == "student" and "the budget is 0" in str(error)
    error = failure(exported)
    assert {f.check for f in error.report.failures} == {"student"}
    agreement = error.report.output("student", "xnnpack").top1
    assert (
        agreement < 0.9
        and f"choose the same class on {agreement:.4%} of the images; at least 99.5000%"
        in str(error)
    )
    assert verify(exported, FEW, kernels=("xnnpack",), min_top1_agreement=agreement).passed


def test_a_wrong_grid_of_the_exporter_is_blamed_on_its_layer(exported, monkeypatch):
    wider = np.float32(1.02)
    exporter_changes(monkeypatch, "depthwise_relu_quantize", lambda t: {"scale": t.scale * wider})
    student = small_student.make_student()
    broken = tflite_export.export(student, exported.path, round_biases=False)
    with pytest.raises(tflite_export.VerificationError, match="given the same codes") as caught:
        tflite_export.verify(student, broken, FEW, kernels=("xnnpack",), verbose=0)
    report = caught.value.report
    assert report.output("twin", "xnnpack").differing == 0
    assert report.failures[0].tensor == "depthwise_relu_quantize"
    # The next layer's bias is a multiple of this grid's step.
    worst = {c.tensor: c.kind for c in report.by_damage("student", "xnnpack")[:2]}
    assert worst == {
        "depthwise_relu_quantize": "DEPTHWISE_CONV_2D",
        "project_bn_quantize": "CONV_2D",
    }


def test_biases_that_stay_off_their_grid_explain_what_they_tip_over(tmp_path):
    student = small_student.make_student(2, 2)
    file = tflite_export.export(student, tmp_path / "x.tflite", round_biases=False)
    report = tflite_export.verify(student, file, FEW, kernels=("xnnpack",), verbose=0)
    slack = {bound.tensor: bound.slack for bound in report.layer_bounds}
    exact = tflite_export.export(student, file.path)
    report = tflite_export.verify(student, exact, FEW, kernels=("xnnpack",), verbose=0)
    for bound in report.layer_bounds:
        if "CONV_2D" in bound.kinds:
            assert bound.slack < 0.001 < slack[bound.tensor]


def test_outputs_that_are_no_classes_are_compared_by_value(exported, tmp_path):
    report = verify(exported, FEW, kernels=("xnnpack",))
    assert report.output_kinds == {"logits_quantize": "classes"}
    image = keras.Input((8, 8, 2))
    network = keras.Model(image, keras.layers.Conv2D(3, 3)(image))
    student = exactness.student_of(network, 4, 4)
    file = tflite_export.export(student, tmp_path / "map.tflite")
    report = tflite_export.verify(student, file, FEW, kernels=("xnnpack",), verbose=0)
    assert list(report.output_kinds.values()) == ["values"]
    assert "compared by" in str(report) and "values" in str(report)


def test_nothing_is_traced_where_functions_run_eagerly(exported, monkeypatch):
    def traced(*args, **kwargs):
        raise AssertionError("traced")

    monkeypatch.setattr(tf, "function", traced)
    with pytest.raises(AssertionError, match="traced"):
        verify(exported, FEW, kernels=("xnnpack",))
    tf.config.run_functions_eagerly(True)
    try:
        assert verify(exported, FEW, kernels=("xnnpack",)).passed
    finally:
        tf.config.run_functions_eagerly(False)


def test_the_report_is_saved_when_the_verification_fails(exported, tmp_path, monkeypatch):
    paths = [tmp_path / "r.json", tmp_path / "r.html"]
    with monkeypatch.context() as patch:
        shift_outputs_of_the_student(patch)
        error = failure(exported, save=paths)
    saved = tflite_export.Report.from_dict(json.loads(paths[0].read_text()))
    assert saved == error.report and not saved.passed
    assert "failed" in paths[1].read_text()
    report = verify(exported, FEW, kernels=("xnnpack",), save=str(tmp_path / "one.txt"))
    assert report.passed and "PASSED" in (tmp_path / "one.txt").read_text()


def test_a_teacher_and_labels_give_all_accuracies_side_by_side(exported):
    labels = np.arange(24) % 5
    report = verify(
        exported, (FEW, labels), kernels=("xnnpack",), teacher=small_student.float_model()
    )
    assert list(report.accuracy) == ["float", "student", "twin", "xnnpack"]
    predicted = small_student.float_model().predict(FEW, verbose=0).argmax(-1)
    assert report.accuracy["float"] == pytest.approx((predicted == labels).mean())
    assert re.search(r"^accuracy +float +student +twin +xnnpack$", str(report), re.M)


@pytest.mark.parametrize(
    "labels", [np.full(24, -1), np.full(24, 5), np.arange(24) % 7, np.full(24, 0.5)]
)
def test_labels_that_are_no_class_are_refused(exported, labels):
    with pytest.raises(ValueError, match="labels must be class numbers 0 to 4"):
        verify(exported, (FEW, labels), kernels=("xnnpack",))


def test_the_reference_kernels_may_run_on_fewer_images(exported):
    report = verify(exported, FEW, reference_images=5, tensor_images=8)
    codes = {(c.left, c.right): c.codes for c in report.outputs}
    assert codes["twin", "xnnpack"] == 24 * 5 and codes["twin_double", "reference"] == 5 * 5
    stem = {(c.left, c.right): c.codes for c in report.tensors if c.tensor == "stem_relu_quantize"}
    assert stem["twin_double", "reference"] * 8 == stem["twin", "xnnpack"] * 5
    assert "reference ran on the first 5 of 24 images." in report.notes


def test_the_student_is_compared_with_the_first_kernels_and_a_twin_with_its_own(exported):
    """LiteRT's builtin kernels, where they differ from the reference ones, have no twin."""
    report = verify(exported, FEW, kernels=("builtin", "xnnpack"), tensor_images=4)
    assert report.passed and {"builtin", "xnnpack"} < set(report.seconds)
    assert {(c.left, c.right) for c in report.tensors} == {
        ("student", "builtin"),
        ("twin", "xnnpack"),
    }


def test_sizes_follow_the_network():
    def of(side, *arguments):
        tensor = reader.deployed_lib.Tensor("t", (1, side, side, 64), "int8")
        model = reader.deployed_lib.DeployedModel({"t": tensor}, (), ("t",), ("t",))
        return measurements.Sizes.of(model, *arguments)

    small, large = of(8, None, None, None, 7), of(512, None, None, None, 7)
    assert (small.tensor_images, small.batch_size, small.runtime_images) == (64, 128, 7)
    assert small.reference_images == 2**26 // 4096
    assert small.moved_images == 512
    assert (large.tensor_images, large.reference_images, large.batch_size) == (4, 4, 1)
    assert of(512, 3, 2, 1, 0) == measurements.Sizes(3, 2, 1, 0, 32)


def test_the_seconds_of_a_runtime_are_those_of_all_its_batches(exported, monkeypatch):
    """A clock on which every call takes one second, and what is between two calls none."""
    readings = (call + end for call in itertools.count(1) for end in (0.0, 1.0))
    clock = types.SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(measurements, "time", clock)
    report = verify(exported, FEW, kernels=("xnnpack",), batch_size=10, tensor_images=0)
    assert report.seconds == dict.fromkeys(("student", "twin", "xnnpack", "moved"), 3.0)


def test_datasets_and_labels_give_accuracies(exported):
    labels = np.arange(96) % 5
    array = verify(exported, (IMAGES, labels), kernels=("xnnpack",))
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, tf.one_hot(labels, 5))).batch(40)
    streamed = verify(exported, dataset, batch_size=17, kernels=("xnnpack",))
    assert streamed.accuracy == array.accuracy
    assert array.accuracy["twin"] == array.accuracy["xnnpack"]
    predicted = exported.twin.predict(IMAGES, verbose=0).argmax(-1)
    assert array.accuracy["twin"] == pytest.approx((predicted == labels).mean())
    assert [c.histogram for c in streamed.outputs] == [c.histogram for c in array.outputs]


def test_a_teacher_gives_the_float_error_of_each_layer(exported):
    report = verify(exported, FEW, kernels=("xnnpack",), teacher=small_student.float_model())
    errors = {error.layer: error.sqnr_db for error in report.float_errors}
    assert list(errors) == ["stem_relu", "depthwise_relu", "project_bn", "add", "pool", "logits"]
    # 8-bit activations after 4-bit weights: about 6 dB per bit of the weights.
    assert all(10 < error < 45 for error in errors.values())


def test_another_runtime_is_compared_on_a_few_images(exported):
    class Shifted:
        name = "shifted"

        def __init__(self):
            self.inner = litert.Interpreter(exported.path)

        def run(self, batch):
            return {
                name: np.clip(codes, -128, 126) + 1 for name, codes in self.inner.run(batch).items()
            }

    report = verify(
        exported, FEW, kernels=("xnnpack",), runtimes=[Shifted()], runtime_images=20, batch_size=16
    )
    found = report.output("xnnpack", "shifted")
    assert (found.codes, found.differing, found.max_lsb) == (100, 100, 1)
    assert ("twin", "xnnpack") in report.agreeing() and (
        "xnnpack",
        "shifted",
    ) not in report.agreeing()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:0], "images is empty"),
        (IMAGES[..., :1], "must be numbers of shape"),
        (IMAGES[0], "must be numbers of shape"),
        (np.full_like(IMAGES, np.nan), "NaN or infinity"),
        ((IMAGES, np.zeros(3)), "one per image"),
        ((IMAGES,), "a pair"),
    ],
)
def test_bad_images_are_refused(exported, images, message):
    with pytest.raises(ValueError, match=message):
        verify(exported, images)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"kernels": ("xnnpak",)}, "kernels must be some of"),
        ({"kernels": ()}, "kernels must be some of"),
        ({"min_top1_agreement": 1.5}, "min_top1_agreement"),
        ({"min_top1_agreement": float("nan")}, "min_top1_agreement=nan"),
        ({"reference_images": -1}, "reference_images"),
        ({"tensor_images": -1}, "tensor_images"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_refused(exported, argument, message):
    with pytest.raises(ValueError, match=message):
        verify(exported, **argument)
