"""What is run on which images, and what is kept of it: with runtimes of a few lines."""

import dataclasses
import types

import numpy as np
import pytest

from tflite_export import deployed as deployed_lib
from tflite_export import image_batches
from tflite_export.verification import measurements, report_records

SCORES = deployed_lib.Tensor("scores", (1, 3), "int8", np.float32(0.5), -1)
VALUES = deployed_lib.Tensor("values", (1, 2), "int8", np.float32(0.25), 3)
IMAGES = np.arange(10.0).reshape(5, 2)
REPORT = report_records.Findings("m", "p", 1, notes=("a note",))


def run_of(kernels=("xnnpack", "reference"), sizes=(), outputs=(SCORES, VALUES), verbose=0):
    """A `Run` of a student with one input of two numbers."""
    student = types.SimpleNamespace(
        input_names=["x"], inputs=[types.SimpleNamespace(shape=(None, 2))]
    )
    tensors = {tensor.name: tensor for tensor in outputs}
    operators = tuple(deployed_lib.Operator("MEAN", ("x",), (name,)) for name in tensors)
    tensors["x"] = deployed_lib.Tensor("x", (1, 2), "int8", np.float32(1))
    model = deployed_lib.DeployedModel(tensors, operators, ("x",), tuple(t.name for t in outputs))
    exported = types.SimpleNamespace(file_model=model, deployed=model)
    chosen = measurements.Sizes(
        **{
            "batch_size": 2,
            "tensor_images": 3,
            "reference_images": 3,
            "runtime_images": 1,
            "moved_images": 4,
            **dict(sizes),
        }
    )
    return measurements.Run(student, exported, b"", kernels, chosen, {}, verbose)


class Source:
    """Counts the images of each call, and computes the same codes everywhere but where told."""

    def __init__(self, wrong=(), dtype=np.int8):
        self.sizes, self._wrong, self._dtype = [], wrong, dtype

    def __call__(self, arrays):
        (images,) = arrays
        self.sizes.append(len(images))
        first = images[:, 0]
        scores = np.stack([first * 0, first, first + np.isin(first, self._wrong)], 1)
        return [scores.astype(self._dtype), images.astype(self._dtype)]


def measured(monkeypatch, run, images, teacher=None, runtimes=(), **sources):
    """The report, with these functions as sources, and the student moved by nothing."""
    moved = Source(dtype=np.float32)
    monkeypatch.setattr(run, "_sources", lambda: dict(sources))
    monkeypatch.setattr(measurements.student_layers, "Moved", lambda student: moved)
    monkeypatch.setattr(measurements, "_traced_model", lambda model: model)
    return run.outputs(REPORT, images, teacher, runtimes), moved


def five():
    names = ("student", "twin", "xnnpack", "twin_double", "reference")
    return {name: Source() for name in names}


def test_each_source_runs_on_its_first_images(monkeypatch):
    run, sources, floats = run_of(), five(), Source(dtype=np.float32)
    other = types.SimpleNamespace(name="other", run=Source())
    monkeypatch.setattr(run, "_of_runtime", lambda runtime: runtime.run)
    labels = np.array([2, 1, 2, 2, 0])
    report, moved = measured(monkeypatch, run, (IMAGES, labels), floats, [other], **sources)
    assert {name: source.sizes for name, source in sources.items()} == {
        "student": [2, 2, 1],
        "twin": [2, 2, 1],
        "xnnpack": [2, 2, 1],
        "twin_double": [2, 1],
        "reference": [2, 1],
    }
    assert (other.run.sizes, moved.sizes, floats.sizes) == ([1], [2, 2], [2, 2, 1])
    assert report.images == 5
    assert report.notes == (
        "a note",
        "other ran on the first 1 of 5 images.",
        "reference ran on the first 3 of 5 images.",
        "moved ran on the first 4 of 5 images.",
    )
    codes = {(c.left, c.right, c.tensor): (c.kind, c.codes, c.differing) for c in report.outputs}
    assert codes["twin", "xnnpack", "scores"] == ("MEAN", 15, 0)
    assert codes["twin", "reference", "values"] == ("MEAN", 6, 0)
    assert codes["xnnpack", "other", "scores"] == ("MEAN", 3, 0)
    assert codes["student", "moved", "values"][:2] == ("MEAN", 8) and len(codes) == 2 * (15 + 1)
    # All scores of the first image are 0; of the others the second is the largest.
    expected = {"float": 0.2, "student": 0.2, "twin": 0.2, "xnnpack": 0.2, "other": 0.0}
    assert report.accuracy == {**expected, "twin_double": 1 / 3, "reference": 1 / 3}
    assert report.output_kinds == {"scores": "classes", "values": "values"}
    assert set(report.seconds) == {*sources, "other", "moved", "float"}


def test_without_labels_or_a_teacher_nothing_is_right_or_wrong(monkeypatch):
    for images, teacher in ((IMAGES, Source()), ((IMAGES, np.zeros(5)), None)):
        run, sources = run_of(("xnnpack",)), {name: Source() for name in ("student", "twin")}
        report, _ = measured(monkeypatch, run, images, teacher, **sources)
        assert "float" not in {*report.seconds, *report.accuracy}
        assert bool(report.accuracy) == isinstance(images, tuple)
        assert report.output_kinds["scores"] == ("classes" if report.accuracy else "values")


def test_labels_of_the_first_elements_of_a_dataset_are_enough(monkeypatch):
    elements = [(IMAGES, np.ones(5)), IMAGES]
    dataset = types.SimpleNamespace(as_numpy_iterator=lambda: iter(elements))
    report, _ = measured(monkeypatch, run_of(("builtin",)), dataset, student=Source())
    assert report.images == 10 and report.output_kinds["scores"] == "classes"


def test_the_student_is_compared_with_itself_moved_on_codes(monkeypatch):
    run = run_of(("xnnpack",))
    report, _ = measured(monkeypatch, run, IMAGES, student=Source())
    # Values 0 to 7 at a step of 1/4 and zero point 3, against the codes 0 to 7.
    _, found = report.of_pair("student", "moved")
    assert found.histogram == tuple((-3 - 3 * value, 1) for value in reversed(range(8)))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_first_images_on_which_a_twin_is_wrong_are_kept(monkeypatch, count):
    images = np.arange(120.0).reshape(60, 2)
    wrong = 2 * np.arange(10, 10 + count)
    run = run_of(sizes={"reference_images": 100, "batch_size": 7}.items())
    measured(monkeypatch, run, images, **{**five(), "twin": Source(wrong)})
    kept = [arrays[0][0] for arrays in run._suspects]
    assert kept == wrong[:16].tolist()
    measured(monkeypatch, run, images, **{**five(), "reference": Source([4])})
    assert len(run._suspects) == min(16, count + 1)


def test_only_a_twin_and_its_own_interpreter_are_suspected(monkeypatch):
    run = run_of(("builtin", "reference", "xnnpack"), sizes={"reference_images": 0}.items())
    sources = {**five(), "builtin": Source([2, 4]), "student": Source([6])}
    measured(monkeypatch, run, IMAGES, **sources)
    assert run._suspects == [] and sources["reference"].sizes == []


def test_any_code_of_any_output_makes_an_image_suspect():
    run = run_of(("xnnpack",))
    scores, maps = np.zeros((4, 3)), np.zeros((4, 2, 2, 1))
    others = scores.copy(), maps.copy()
    others[0][1, 2] = 1
    others[1][3, 0, 1, 0] = -1
    images = np.arange(4.0), np.arange(4.0) + 10
    run._suspect({"twin": [scores, maps], "xnnpack": others}, images)
    assert run._suspects == [(1, 11), (3, 13)]


class Operators:
    """Stands in for `OperatorByOperator`: what was added, and comparisons that count it."""

    def __init__(self, *arguments):
        self.arguments, self.added = arguments, []
        self.kernels = arguments[3]

    def add(self, arrays, kernels):
        self.added.append((kernels, arrays[0][:, 0].tolist()))
        return {"of": kernels}

    def comparisons(self):
        return (len(self.added),)

    def layer_bounds(self):
        return ("bounds",)


class Floats:
    """Stands in for `FloatTable`."""

    def __init__(self, teacher, model):
        self.added = []

    def add(self, arrays, tensors):
        self.added.append((tensors["of"], len(arrays[0])))

    def result(self):
        return tuple(self.added)


def operators_of(monkeypatch, run, teacher=None, images=IMAGES):
    made = []
    monkeypatch.setattr(
        measurements.operator_by_operator,
        "OperatorByOperator",
        lambda *arguments: made.append(Operators(*arguments)) or made[0],
    )
    monkeypatch.setattr(measurements.operator_by_operator, "FloatTable", Floats)
    monkeypatch.setattr(measurements.operator_by_operator, "images_at_once", lambda model: 2)
    monkeypatch.setattr(type(run), "_twins", {})
    readings = iter([5.0, 7.5])
    monkeypatch.setattr(
        measurements, "time", types.SimpleNamespace(perf_counter=lambda: next(readings))
    )
    return run.tensors(REPORT, images, teacher), made[0].added


def test_operators_are_compared_on_the_first_images_and_on_suspects(monkeypatch):
    run = run_of(sizes={"tensor_images": 4, "reference_images": 3}.items())
    run._suspects = [(np.array([50.0, 0.0]),), (np.array([60.0, 0.0]),)]
    report, added = operators_of(monkeypatch, run, teacher="teacher")
    assert added == [
        ("xnnpack", [0, 2]),
        ("reference", [0, 2]),
        ("xnnpack", [4, 6]),
        ("reference", [4]),
        ("xnnpack", [50]),
        ("reference", [50]),
        ("xnnpack", [60]),
        ("reference", [60]),
    ]
    assert report == dataclasses.replace(
        REPORT,
        tensor_images=6,
        tensors=(8,),
        layer_bounds=("bounds",),
        float_errors=(("xnnpack", 2), ("xnnpack", 2), ("xnnpack", 1), ("xnnpack", 1)),
        seconds={"operators one by one": 2.5},
    )
    assert run.unselected == (4,)


def test_each_suspect_is_compared_though_the_reference_takes_one_image(monkeypatch):
    run = run_of(sizes={"tensor_images": 2, "reference_images": 1}.items())
    run._suspects = [(np.array([50.0, 0.0]),), (np.array([60.0, 0.0]),)]
    _, added = operators_of(monkeypatch, run)
    assert [images for kernels, images in added if kernels == "reference"] == [[0], [50], [60]]


def test_without_a_teacher_there_is_no_float_error(monkeypatch):
    run = run_of(("reference", "xnnpack"), sizes={"reference_images": 1}.items())
    report, added = operators_of(monkeypatch, run)
    assert added == [("reference", [0]), ("xnnpack", [0, 2]), ("xnnpack", [4])]
    assert report.float_errors == () and report.tensor_images == 3


@pytest.mark.parametrize("kernels", [("reference", "xnnpack"), ("xnnpack", "builtin")])
def test_the_float_error_is_that_of_the_first_kernels(monkeypatch, kernels):
    report, added = operators_of(monkeypatch, run_of(kernels), teacher="teacher")
    first, _ = kernels
    assert [name for name, _ in added] == [*kernels] * 2
    assert report.float_errors == ((first, 2), (first, 1))


def test_outputs_come_from_the_student_the_twins_and_the_interpreters(monkeypatch):
    """Twins get an interpreter's own input codes; borders of uint8 and float become int8."""
    opened = []

    class Interpreter:
        def __init__(self, contents, kernels):
            opened.append((contents, kernels))

        def to_inputs(self, batch):
            return (batch.astype(np.int8) + 1,)

        def run(self, batch):
            return {"values": np.float32(batch) / 4, "scores": np.uint8([[128, 255, 0]])}

    class Twin:
        def __init__(self, model, rounding):
            self.deployed, self._more = model, 2 if rounding == "double" else 1

        def run_codes(self, codes):
            return {"scores": codes + self._more, "values": codes}

    monkeypatch.setattr(measurements.litert, "Interpreter", Interpreter)
    monkeypatch.setattr(measurements.integer_twin, "IntegerTwin", Twin)
    monkeypatch.setattr(
        measurements, "_traced_model", lambda model: lambda arrays: [array / 4 for array in arrays]
    )
    run = run_of(("xnnpack", "builtin", "reference"), outputs=(SCORES, VALUES))
    sources = run._sources()
    assert list(sources) == ["student", "twin", "twin_double", "xnnpack", "builtin", "reference"]
    assert opened == [(b"", name) for name in ("xnnpack", "xnnpack", "builtin", "reference")]
    batch = (np.float32([[4, 5]]),)
    for name, more in (("twin", 1), ("twin_double", 2)):
        scores, values = sources[name](batch)
        assert scores.tolist() == [[5 + more, 6 + more]] and values.tolist() == [[5, 6]]
    scores, values = sources["builtin"](batch)
    assert scores.tolist() == [[0, 127, -128]] and values.tolist() == [[7, 8]]
    scores, values = sources["student"]((*batch, *batch))
    # Values 1.0 and 1.25 on steps of 1/2 from -1, and on steps of 1/4 from 3.
    assert scores.tolist() == [[1, 1]] and values.tolist() == [[7, 8]]
    assert run._twins is run._twins


def test_a_student_with_fewer_outputs_than_the_file_is_no_match():
    with pytest.raises(ValueError):
        run_of()._student_codes([np.zeros((1, 3), np.float32)])
    codes = [np.zeros((1, 3), np.int8)]
    with pytest.raises(ValueError):
        run_of()._suspect({"twin": codes, "xnnpack": codes * 2}, (IMAGES[:1],))


def test_progress_is_shown_unless_nothing_is_to_be(monkeypatch):
    seen = []
    monkeypatch.setattr(
        image_batches, "shown", lambda *arguments: seen.append(arguments) or iter(())
    )
    run = run_of(verbose=1)
    assert list(run._batches(IMAGES, 2, "outputs")) == []
    assert seen == [(IMAGES, {"x": (2,)}, 2, 1, "verify outputs", None)]


@pytest.mark.parametrize(
    ("kernels", "limits"),
    [
        (("xnnpack",), {"other": 1}),
        (("xnnpack", "reference"), {"other": 1, "reference": 3, "twin_double": 3}),
    ],
)
def test_only_slow_runtimes_are_limited(kernels, limits):
    assert run_of(kernels)._limits([types.SimpleNamespace(name="other")]) == limits


def test_what_ran_on_fewer_images_is_noted_but_for_twins():
    limits = {"a": 3, "twin_double": 2, "b": 2, "c": 1999}
    assert measurements._limit_notes(limits, 3) == ["b ran on the first 2 of 3 images."]
    assert measurements._limit_notes({"c": 1999}, 2000) == [
        "c ran on the first 1,999 of 2,000 images."
    ]


MAP = deployed_lib.Tensor("map", (1, 3, 3), "int8", np.float32(1))
ONE = deployed_lib.Tensor("one", (1, 1), "int8", np.float32(1))


@pytest.mark.parametrize(
    ("outputs", "kinds", "labelled", "expected"),
    [
        ([SCORES], {"scores": "FULLY_CONNECTED"}, False, ["classes"]),
        ([SCORES], {"scores": "MEAN"}, False, ["values"]),
        ([SCORES], {}, False, ["values"]),
        ([SCORES], {}, True, ["classes"]),
        ([SCORES, VALUES], {"scores": "FULLY_CONNECTED"}, False, ["values", "values"]),
        ([SCORES, VALUES], {"values": "SOFTMAX"}, False, ["values", "classes"]),
        ([SCORES, VALUES], {}, True, ["classes", "values"]),
        ([SCORES, VALUES], {"scores": "SOFTMAX", "values": "SOFTMAX"}, True, ["classes"] * 2),
        ([MAP], {"map": "SOFTMAX"}, True, ["values"]),
        ([ONE], {"one": "FULLY_CONNECTED"}, True, ["values"]),
    ],
)
def test_an_output_is_classes_or_values(outputs, kinds, labelled, expected):
    kinds = {name: "".join([*kind]) for name, kind in kinds.items()}  # as read from a file
    found = run_of(outputs=outputs)._output_kinds(kinds, labelled)
    assert found == dict(zip([tensor.name for tensor in outputs], expected, strict=True))


def test_the_seconds_of_all_calls_add_up(monkeypatch):
    readings = iter([10.0, 13.0, 20.0, 22.0, 30.0, 30.5])
    monkeypatch.setattr(
        measurements, "time", types.SimpleNamespace(perf_counter=lambda: next(readings))
    )
    run = run_of()
    assert [run._timed(name, len, (1, 2)) for name in "aba"] == [2, 2, 2]
    assert run.seconds == {"a": 3.5, "b": 2.0}
