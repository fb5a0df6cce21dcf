"""Each operator starts anew from the interpreter's own codes: with runtimes of a few lines."""

import types

import numpy as np
import pytest

from tf_fpq import graph
from tflite_export import deployed as deployed_lib
from tflite_export.verification import operator_by_operator, report_records
from tflite_export.verification import student_layers as layers_lib

IMAGES = (np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),)
NAMES = ("image", "conv", "hidden", "scores")
GRIDS = {
    name: deployed_lib.Tensor(name, (1, 2), "int8", np.float32(0.5), 1 + index)
    for index, name in enumerate(NAMES)
}
OPERATORS = tuple(
    deployed_lib.Operator(kind, (x,), (y,))
    for kind, x, y in (
        ("TANH", "image", "conv"),
        ("RELU", "conv", "hidden"),
        ("HARD_SWISH", "hidden", "scores"),
    )
)
WEIGHTS = deployed_lib.Tensor("w", (9, 9), "int8", np.float32(1), data=np.zeros((9, 9), np.int8))
MODEL = deployed_lib.DeployedModel({**GRIDS, "w": WEIGHTS}, OPERATORS, ("image",), ("scores",))
CODES = {"image": 10, "conv": 20, "hidden": 30, "scores": 40}


class Interpreter:
    """Has the same codes everywhere, 100 more on the reference kernels; hides some tensors."""

    opened: list = []
    hidden: tuple = ()

    def __init__(self, contents, kernels, keep_all_tensors=False):
        self.opened.append((contents, kernels, keep_all_tensors))
        self._more = 1 if kernels == "reference" else 0

    def tensors(self, batch):
        shape = np.shape(batch)
        return {
            name: np.full(shape, code + self._more, np.int8)
            for name, code in CODES.items()
            if name not in self.hidden
        }


class Twin:
    """Adds 10 to the codes of an operator's input, and in one operator one more."""

    def __init__(self, wrong=None):
        self._wrong = wrong

    def run_operator(self, index, codes):
        operator = OPERATORS[index]
        found = codes[operator.inputs[0]] + np.int8(10) + np.int8(index == self._wrong)
        return {operator.outputs[0]: types.SimpleNamespace(numpy=lambda: found)}


class Layer:
    """A student layer of values `source + 5` on the grid of its tensor."""

    def __init__(self, name, *sources):
        self.name, self.sources, self.seen = name, sources, []

    def unrounded(self, given, arrays):
        self.seen.append(({name: float(value.max()) for name, value in given.items()}, arrays))
        return sum(given.values(), np.zeros(2)) + 5.0

    def codes(self, unrounded):
        return np.rint(unrounded / 0.5).astype(np.int8) + np.zeros((2, 1), np.int8)

    def codes_towards(self, wanted, unrounded, slack):
        return np.clip(wanted, self.codes(unrounded) - 1, self.codes(unrounded) + 1)


@pytest.fixture
def compared(monkeypatch):
    """A function that compares on two images, of some kernel sets and a wrong operator."""
    layers = [Layer("image"), Layer("conv", "image"), Layer("scores", "conv")]
    monkeypatch.setattr(operator_by_operator.litert, "Interpreter", Interpreter)
    monkeypatch.setattr(layers_lib, "student_layers", lambda student: tuple(layers))
    monkeypatch.setattr(Interpreter, "opened", [])

    def compare(*kernels, wrong=None, hidden=()):
        monkeypatch.setattr(Interpreter, "hidden", hidden)
        exported = types.SimpleNamespace(file_model=MODEL)
        twins = {"twin": Twin(wrong), "twin_double": Twin()}
        found = operator_by_operator.OperatorByOperator(
            "student", exported, b"file", kernels, twins, {}
        )
        for name in found.kernels:
            tensors = found.add(IMAGES, name)
            assert set(tensors) == set(NAMES) - set(hidden)
        return found, layers

    return compare


def rows(found):
    return [
        (c.left, c.right, c.tensor, c.kind, c.codes, c.differing, c.max_lsb, c.beyond)
        for c in found.comparisons()
    ]


def test_twins_come_first_and_the_student_stands_against_the_first_kernels(compared):
    found, layers = compared("reference", "builtin", "xnnpack", wrong=1)
    assert found.kernels == ("reference", "xnnpack")
    assert Interpreter.opened == [(b"file", "reference", True), (b"file", "xnnpack", True)]
    assert rows(found) == [
        ("twin_double", "reference", "conv", "TANH", 4, 0, 0, 0),
        ("twin_double", "reference", "hidden", "RELU", 4, 0, 0, 0),
        ("twin_double", "reference", "scores", "HARD_SWISH", 4, 0, 0, 0),
        # What is wrong stays in its operator.
        ("twin", "xnnpack", "conv", "TANH", 4, 0, 0, 0),
        ("twin", "xnnpack", "hidden", "RELU", 4, 4, 1, 0),
        ("twin", "xnnpack", "scores", "HARD_SWISH", 4, 0, 0, 0),
        ("student", "reference", "image", "INPUT", 4, 4, 1, 0),
        # (11 - 1) / 2 + 5 are 20 steps, and (21 - 2) / 2 + 5 are 29.
        ("student", "reference", "conv", "TANH", 4, 4, 1, 0),
        ("student", "reference", "scores", "HARD_SWISH", 4, 4, 12, 4),
    ]
    assert [layer.seen for layer in layers] == [
        [({}, IMAGES)],
        [({"image": 5.0}, IMAGES)],
        [({"conv": 9.5}, IMAGES)],
    ]


def test_kernels_without_a_twin_are_compared_with_the_student_if_they_are_the_first(compared):
    found, _ = compared("builtin", "xnnpack")
    assert found.kernels == ("builtin", "xnnpack")
    assert {(left, right) for left, right, *_ in rows(found)} == {
        ("student", "builtin"),
        ("twin", "xnnpack"),
    }


def test_what_is_hidden_is_not_compared_and_what_is_behind_it_is(compared, monkeypatch):
    found, layers = compared("xnnpack", hidden=("hidden",))
    twin = [row[2] for row in rows(found) if row[0] == "twin"]
    assert twin == ["conv", "scores"]
    monkeypatch.setattr(layers[2], "sources", ("image",))
    found, _ = compared("xnnpack", hidden=("conv",))
    student = [row[2] for row in rows(found) if row[0] == "student"]
    assert student == ["image", "scores"]


def test_the_bounds_of_a_layer_are_those_of_its_operators(compared):
    found, _ = compared("xnnpack")
    assert found.layer_bounds() == (
        report_records.LayerBound("image", (), 2.0**-12, 0, 0.0),
        report_records.LayerBound("conv", ("TANH",), 2.0**-12, 0, 0.0),
        report_records.LayerBound("scores", ("RELU", "HARD_SWISH"), 2.0**-12, 1, 0.25),
    )


@pytest.mark.parametrize(
    ("codes", "images"),
    [(1, 16), (2**20, 16), (2**20 + 1, 15), (2**23, 2), (2**24, 1), (2**24 + 1, 1)],
)
def test_images_at_once_are_as_many_as_fit_and_one_at_least(codes, images):
    tensors = {"w": WEIGHTS, "a": deployed_lib.Tensor("a", (1, codes), "int8")}
    model = deployed_lib.DeployedModel(tensors, (), (), ())
    assert operator_by_operator.codes_per_image(model) == codes
    assert operator_by_operator.images_at_once(model) == images


def test_codes_per_image_are_those_of_all_activations():
    assert operator_by_operator.codes_per_image(MODEL) == 8


def test_the_float_error_is_that_of_the_layers_of_the_same_names(monkeypatch):
    names = ("stem_quantize", "other", "add_quantize", "gone_quantize")
    tensors = {
        name: deployed_lib.Tensor(name, (1, 2), "int8", np.float32(0.5), 1)
        for name in ("image", *names)
    }
    operators = tuple(deployed_lib.Operator("ADD", ("image",), (name,)) for name in names)
    model = deployed_lib.DeployedModel(tensors, operators, ("image",), names[-1:])
    layers = [
        types.SimpleNamespace(name=name, output=f"{name}'s") for name in ("add", "stem", "other")
    ]
    seen = []

    def functional(inputs, outputs):
        assert inputs == ["image"]
        assert outputs == {"stem_quantize": "stem's", "add_quantize": "add's"}

        def probe(images, training):
            seen.append((images, training))
            values = {"stem_quantize": [[1.0, 2.0]], "add_quantize": [[4.0, -1.0]]}
            return {
                name: types.SimpleNamespace(numpy=lambda v=value: np.float32(v))
                for name, value in values.items()
            }

        return probe

    monkeypatch.setattr(graph, "functional", functional)
    teacher = types.SimpleNamespace(layers=layers, inputs=["image"])
    table = operator_by_operator.FloatTable(teacher, model)
    codes = {"stem_quantize": np.int8([[3, 5]]), "add_quantize": np.int8([[8, -1]])}
    table.add(IMAGES, codes)
    assert [error.sqnr_db for error in table.result()] == [None, pytest.approx(10 * np.log10(68))]
    table.add((*IMAGES, *IMAGES), {**codes, "stem_quantize": np.int8([[4, 5]])})
    # Errors of half a step: 2 * (1 + 4) against 1/4, and 2 * (16 + 1) against 2/4.
    stem, add = table.result()
    assert (stem.tensor, stem.layer) == ("stem_quantize", "stem")
    assert (add.tensor, add.layer) == ("add_quantize", "add")
    assert stem.sqnr_db == pytest.approx(10 * np.log10(40))
    assert add.sqnr_db == pytest.approx(10 * np.log10(68))
    (one, first), (several, second) = seen
    assert one is IMAGES[0] and several == [*IMAGES, *IMAGES] and not (first or second)
