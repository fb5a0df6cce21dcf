"""Differences are counted code by code, over all pairs of runtimes."""

import dataclasses

import numpy as np
import pytest

from tflite_export import deployed
from tflite_export.verification import code_differences
from tflite_export.verification.report_records import Comparison

TENSOR = deployed.Tensor("t", (1, 4), "int8", np.float32(0.5), zero_point=-1)
KINDS = pytest.mark.parametrize(
    "kind", [code_differences.Difference, code_differences.ValueDifference]
)


def test_difference_counts_golden_codes():
    difference = code_differences.Difference(TENSOR, "a", "b")
    difference.add(np.array([[0, 1, 2, 127]]), np.array([[0, 1, 3, -128]]))
    difference.add(np.array([[5, 1, 2, 1]]), np.array([[5, 1, 2, 1]]))
    found = difference.result("ADD")
    assert found.histogram == ((-1, 1), (0, 6), (255, 1))
    assert (found.codes, found.differing, found.max_lsb, found.share) == (8, 2, 255, 0.25)
    # signal: squares of right + 1, noise: 1 + 255^2
    signal = 1 + 4 + 16 + 127**2 + 36 + 4 + 9 + 4
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / (1 + 255**2)))
    # [0, 1, 2, 127] and [0, 1, 3, -128] have different best classes, the second pair the same.
    assert found.top1 == 0.5


@KINDS
def test_of_no_codes_none_differs(kind):
    found = kind(TENSOR, "a", "b").result()
    assert (found.codes, found.differing, found.share, found.max_lsb) == (0, 0, 0.0, 0)
    assert found.sqnr_db is None and found.top1 is None


@KINDS
@pytest.mark.parametrize(
    ("shape", "top1"), [((4, 3), 0.75), ((4,), None), ((4, 1), None), ((4, 1, 3), None)]
)
def test_only_scores_of_classes_have_a_best_class(kind, shape, top1):
    """A number for each image has none, nor has a map of scores. One image of four changes."""
    left = np.zeros(shape, np.int8)
    right = left.copy()
    right.reshape(-1)[-1] = 5
    difference = kind(TENSOR, "a", "b")
    difference.add(left, right)
    found = difference.result()
    assert (found.codes, found.differing, found.top1) == (left.size, 1, top1)


@pytest.mark.parametrize(("left", "right"), [((1, 4), (1, 3)), ((1, 3), (1, 4))])
def test_codes_of_other_shapes_are_refused(left, right):
    with pytest.raises(ValueError) as caught:
        code_differences.Difference(TENSOR, "a", "b").add(np.zeros(left), np.zeros(right))
    assert str(caught.value) == f"Tensor 't' has shape {left} in a and {right} in b."


def test_codes_of_any_type_may_be_a_whole_grid_apart_and_further_counts_as_that():
    difference = code_differences.Difference(TENSOR, "a", "b")
    difference.add(np.array([0, 255], np.uint8), np.array([255, 0], np.uint8))
    difference.add(np.array([-128.0, 300.0]), np.array([127.0, 0.0]))
    difference.add(np.array([-300], np.int32), np.array([0], np.int32))
    found = difference.result()
    assert found.histogram == ((-255, 3), (255, 2))
    assert (found.kind, found.codes, found.differing, found.max_lsb) == ("", 5, 5, 255)


def test_beyond_are_the_codes_that_the_nearest_within_slack_are_not():
    difference = code_differences.Difference(TENSOR, "a", "b")
    difference.add(np.int8([3, 3, 3, 3]), np.int8([0, 1, 2, 3]), np.int8([2, 2, 2, 3]))
    assert (difference.result().beyond, difference.result().beyond_lsb) == (2, 2)
    difference.add(np.int8([127]), np.int8([-128]), np.int8([-127]))
    difference.add(np.zeros(0), np.zeros(0), np.zeros(0))
    assert (difference.result().beyond, difference.result().beyond_lsb) == (3, 2)
    difference.add(np.int8([127]), np.int8([-128]), np.int8([127]))
    assert (difference.result().beyond, difference.result().beyond_lsb) == (4, 255)
    assert difference.result().differing == 5


def test_values_are_compared_in_float64_and_a_nan_equals_a_nan_alone():
    nan, inf = np.nan, np.inf
    tensor = dataclasses.replace(TENSOR, dtype="float32", scale=None)
    difference = code_differences.ValueDifference(tensor, "a", "b")
    difference.add(np.float32([[1.0, 2.0, 3.5]]), np.float32([[1.5, 2.0, 3.0]]))
    difference.add(np.float32([[3.0, inf, nan]]), np.float32([[2.75, inf, nan]]))
    assert difference.result("ADD") == Comparison(
        tensor="t",
        kind="ADD",
        left="a",
        right="b",
        codes=6,
        differing=3,
        max_lsb=0,
        histogram=(),
        sqnr_db=None,  # the signal is no number
        top1=1.0,
        max_abs=0.5,
    )
    finite = code_differences.ValueDifference(tensor, "a", "b")
    finite.add(np.float32([1.0, 2.0]), np.float32([1.5, 2.0]))
    finite.add(np.float32([3.5, 3.0]), np.float32([3.0, 2.75]))
    signal, noise = 2.25 + 4 + 9 + 2.75**2, 0.25 + 0.25 + 0.0625
    assert finite.result().sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-12)
    for left, right in ((nan, 1.0), (1.0, nan)):
        other = code_differences.ValueDifference(tensor, "a", "b")
        other.add(np.float32([left, 0.0]), np.float32([right, 0.0]))
        other.add(np.zeros(0), np.zeros(0))
        assert other.result().differing == 1 and np.isnan(other.result().max_abs)


def test_a_hundredth_of_the_energy_is_20_decibels_and_without_noise_or_signal_there_are_none():
    assert code_differences.decibels(1.0, 0.01) == pytest.approx(20.0)
    assert code_differences.decibels(0.5, 2) == pytest.approx(10 * np.log10(0.25))
    for signal, noise in ((1, 0), (0, 1), (0, 0), (np.nan, 1), (1, np.nan)):
        assert code_differences.decibels(signal, noise) is None


@pytest.mark.parametrize(
    ("dtype", "scale", "grid"),
    [("int8", 1.0, True), ("uint8", 1.0, True), ("int8", None, False), ("int32", 1.0, False)],
)
def test_an_8_bit_grid_has_a_scale_and_8_bits(dtype, scale, grid):
    assert code_differences.has_8_bit_grid(deployed.Tensor("t", (1,), dtype, scale)) == grid


SCORES = deployed.Tensor("scores", (1, 3), "int8", np.float32(0.5))
VALUES = deployed.Tensor("values", (1, 2), "float32")


def test_every_pair_of_runtimes_is_compared_on_the_images_that_both_ran_on():
    table = code_differences.OutputTable([SCORES, VALUES], {"scores": "SOFTMAX"})
    scores = np.int8([[1, 2, 3], [3, 2, 1], [1, 9, 1]])
    values = np.float32([[0, 1], [2, 3], [4, 5]])
    few = [scores[:2] + np.int8([[1, 0, 0]]), values[:2] + np.float32(0.5)]
    for _ in range(2):
        codes = {"a": [scores, values], "b": few, "c": [scores, values]}
        table.add(codes, np.array([2, 1, 1]))
    found = table.comparisons()
    assert [(c.left, c.right, c.tensor, c.kind, c.codes, c.differing) for c in found] == [
        ("a", "b", "scores", "SOFTMAX", 12, 4),
        ("a", "b", "values", "", 8, 8),
        ("a", "c", "scores", "SOFTMAX", 18, 0),
        ("a", "c", "values", "", 12, 0),
        ("b", "c", "scores", "SOFTMAX", 12, 4),
        ("b", "c", "values", "", 8, 8),
    ]
    assert [c.max_abs for c in found] == [None, 0.5, None, 0.0, None, 0.5]
    # The first and the third image of three are right, and the first of two.
    assert table.accuracy() == {"a": 4 / 6, "b": 2 / 4, "c": 4 / 6}


def test_right_answers_are_counted_where_there_are_labels_and_classes():
    table = code_differences.OutputTable([SCORES], {})
    scores = np.float32([[0, 0, 1], [0, 1, 0]])
    table.add({"a": [scores]})
    table.count_right("none", scores, None)
    table.count_right("map", scores[:, None], np.array([2, 1]))
    table.count_right("one", scores[:, :1], np.array([0, 0]))
    assert table.accuracy() == {}
    table.count_right("float", scores, np.array([2, 0, 7]))
    table.count_right("two", scores[:, 1:], np.array([1, 0]))
    assert table.accuracy() == {"float": 0.5, "two": 1.0}


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 1], [0, 0], [2, 2], [1.0], []])
def test_labels_are_the_numbers_of_classes(labels):
    table = code_differences.OutputTable([SCORES, VALUES], {})
    table.add({}, np.array(labels))


@pytest.mark.parametrize("labels", [[-1, 1], [-2, 0], [0, 3], [4], [0.5, 1]])
def test_labels_that_no_class_has_are_refused(labels):
    with pytest.raises(ValueError) as caught:
        code_differences.OutputTable([SCORES, VALUES], {}).add({}, np.array(labels))
    assert str(caught.value) == (
        "labels must be class numbers 0 to 2, of output 'scores'."
        f" Received: labels from {np.min(labels)} to {np.max(labels)}."
    )


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 2, 2)])
def test_an_output_without_classes_takes_any_labels(shape):
    output = deployed.Tensor("y", shape, "int8", np.float32(0.5))
    code_differences.OutputTable([output], {}).add({}, np.array([-1, 9]))


def test_tensors_are_compared_in_execution_order_where_both_have_them():
    tensors = {
        name: deployed.Tensor(name, (1, 2), dtype, np.float32(1))
        for name, dtype in (("x", "int8"), ("a", "uint8"), ("f", "float32"), ("y", "int8"))
    }
    tensors["w"] = deployed.Tensor("w", (2,), "int8", np.float32(1), data=np.int8([1, 2]))
    pairs = (("x", "a", "QUANTIZE"), ("a", "f", "DEQUANTIZE"), ("f", "y", "TANH"))
    operators = tuple(deployed.Operator(kind, (x, "w"), (y,)) for x, y, kind in pairs)
    model = deployed.DeployedModel(tensors, operators, ("x",), ("y",))
    assert code_differences.kinds(model) == {"a": "QUANTIZE", "f": "DEQUANTIZE", "y": "TANH"}

    def found(table):
        return [(c.tensor, c.kind, c.left, c.right, c.codes, c.beyond) for c in table.comparisons()]

    codes = {name: np.int8([[1, 2]]) for name in tensors}
    table = code_differences.TensorTable(model, "p", "q")
    assert found(table) == []
    table.add(codes, {name: codes[name] for name in ("y", "x")})
    table.add({"y": codes["y"]}, codes)
    table.add({"a": codes["a"]}, {"x": codes["x"]})
    assert found(table) == [("x", "INPUT", "p", "q", 2, 0), ("y", "TANH", "p", "q", 4, 0)]
    named = code_differences.TensorTable(model, "p", "q", {"a": "CONV_2D"})
    named.add(codes, codes, {name: value + 1 for name, value in codes.items()})
    assert found(named) == [
        ("x", "INPUT", "p", "q", 2, 2),
        ("a", "CONV_2D", "p", "q", 2, 2),
        ("y", "INPUT", "p", "q", 2, 2),
    ]
