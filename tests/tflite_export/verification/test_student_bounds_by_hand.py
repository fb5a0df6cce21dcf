"""The bounds of a student's layers, worked by hand: how far from a tie, and what beyond it."""

import dataclasses

import numpy as np
import pytest

from tflite_export import deployed as deployed_lib
from tflite_export.lowering import records
from tflite_export.verification import student_bounds


def _of(kinds_and_tensors):
    operators, tensors = [], {}
    for kind, inputs, output in kinds_and_tensors:
        tensors |= {tensor.name: tensor for tensor in (*inputs, output)}
        names = tuple(tensor.name for tensor in inputs)
        kind = "".join([*kind])  # as read from a file: equal to the literal, not the same object
        operators.append(deployed_lib.Operator(kind, names, (output.name,)))
    return deployed_lib.DeployedModel(tensors, tuple(operators), (), ()), operators


def _tensor(name, scale, shape=(1, 4, 4, 2), dtype="int8"):
    return deployed_lib.Tensor(name, shape, dtype, np.float32(scale))


def test_the_slack_of_sums_of_products():
    image, y, clipped = _tensor("x", 0.1), _tensor("y", 0.5), _tensor("z", 0.5)
    weights = _tensor("w", [0.01, 0.02], (2, 3, 3, 16))
    bias = _tensor("b", [0.001, 0.002], (2,), "int32")
    model, operators = _of(
        [("CONV_2D", (image, weights, bias), y), ("MINIMUM", (y, _tensor("c", 0.5, (1,))), clipped)]
    )
    sums = {"b": records.FloatSum(np.array([0.0, 0.0005]), np.array([350.0, 700.0]), 144)}
    # 144 products, 12 = sqrt(144): 700 steps * 12 * 2^-24, and half a bias step of 0.001 steps.
    expected = 2**-12 + np.array([700, 1400]) * 12 * 2**-24 + [0, 0.001]
    found = student_bounds.slack(model, operators, sums, "xnnpack")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Kernels that round twice first round to less than two steps of the sum.
    twice = student_bounds.slack(model, operators, sums, "reference")
    np.testing.assert_allclose(twice, expected + np.array([0.002, 0.004]), rtol=1e-6)
    assert student_bounds.slack(model, operators[1:], sums, "xnnpack") == 0
    assert student_bounds.title(o.kind for o in operators) == "CONV_2D"
    assert student_bounds.title([]) == "INPUT"


@pytest.mark.parametrize(
    ("kind", "expected"), [("SOFTMAX", 2**-10), ("TANH", 2**-12), ("RESHAPE", 0), ("MEAN", 0)]
)
def test_the_slack_of_one_tensor(kind, expected):
    """A softmax divides by a sum of a thousand exponentials; a table is one float operation."""
    model, operators = _of([(kind, (_tensor("x", 0.1),), _tensor("y", 0.2))])
    assert student_bounds.slack(model, operators, {}, "xnnpack") == expected


def test_the_slack_of_operands_that_the_exporter_put_on_coarser_grids():
    a, b, y = _tensor("a", 0.1), _tensor("b", 1e-5), _tensor("y", 0.2)
    coarser = _tensor("b_coarser", 0.001)
    model, operators = _of([("QUANTIZE", (b,), coarser), ("ADD", (a, coarser), y)])
    found = student_bounds.slack(model, operators, {}, "xnnpack")
    np.testing.assert_allclose(found, 2**-12 * 1.5 + 0.0005 / 0.2, rtol=1e-6)
    model, operators = _of([("ADD", (a, b), y)])
    np.testing.assert_allclose(
        student_bounds.slack(model, operators, {}, "xnnpack"), 2**-12 * 1.5, rtol=1e-6
    )
    model, operators = _of([("QUANTIZE", (b,), coarser), ("MUL", (a, coarser), y)])
    found = student_bounds.slack(model, operators, {}, "xnnpack")
    np.testing.assert_allclose(found, 2**-12 + 0.0005 * 255 * 0.1 / 0.2, rtol=1e-6)
    # Kernels that round twice first round to the product of both steps.
    twice = student_bounds.slack(model, operators, {}, "reference")
    np.testing.assert_allclose(twice, found + 0.1 * 0.001 / 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("kinds", "kernels", "expected"),
    [
        (("CONV_2D", "MINIMUM"), "xnnpack", student_bounds.NONE),
        (("MAX_POOL_2D", "CONV_2D", "MINIMUM"), "reference", student_bounds.NONE),
        (("MEAN",), "reference", student_bounds.ROUNDS_TWICE),
        (("MEAN",), "xnnpack", student_bounds.NONE),
        (("HARD_SWISH",), "xnnpack", student_bounds.OWN_KIND),
        ((), "xnnpack", student_bounds.NONE),
    ],
)
def test_what_ties_need_not_explain(kinds, kernels, expected):
    assert student_bounds.beyond_ties(kinds, kernels) == expected


def test_kernels_that_round_twice_may_move_three_codes_of_twenty_by_one():
    bound = student_bounds.beyond_ties(("MEAN",), "reference")
    assert bound.allows(1000, 150, 1)
    assert not bound.allows(1000, 151, 1) and not bound.allows(1000, 1, 2)
    assert not student_bounds.beyond_ties(("MEAN",), "xnnpack").allows(1000, 1, 1)


@pytest.mark.parametrize(("terms", "root"), [(4, 4), (16, 4), (25, 5)])
def test_a_short_sum_counts_as_16_products(terms, root):
    weights, bias = _tensor("w", [0.01], (1, 1, 1, 4)), _tensor("b", [0.001], (1,), "int32")
    y = _tensor("y", 0.5)
    model, operators = _of([("CONV_2D", (_tensor("x", 0.1), weights, bias), y)])
    sums = {"b": records.FloatSum(np.array([0.0]), np.array([2.0**22]), terms)}
    found = student_bounds.slack(model, operators, sums, "xnnpack")
    np.testing.assert_allclose(found, [2**-12 + root * 2**-2 / 0.5], rtol=1e-6)
    assert found.dtype == np.float32


def test_packed_weights_are_rounded_twice_on_every_kernel_set():
    """XNNPACK does not take them: LiteRT's own kernels do."""
    bias, y = _tensor("b", [0.001], (1,), "int32"), _tensor("y", 0.5)
    sums = {"b": records.FloatSum(np.array([0.0]), np.array([0.0]), 16)}
    for dtype, twice in (("int4", 0.002), ("int8", 0.0)):
        weights = _tensor("w", [0.01], (1, 1, 1, 4), dtype)
        model, operators = _of([("FULLY_CONNECTED", (_tensor("x", 0.1), weights, bias), y)])
        found = student_bounds.slack(model, operators, sums, "xnnpack")
        np.testing.assert_allclose(found, [2**-12 + twice], rtol=1e-6)


def test_the_slack_is_the_largest_of_a_layers_operators():
    """By channel where an operator writes the layer's shape, else that of its worst channel."""
    x, weights = _tensor("x", 0.1), _tensor("w", [1.0, 1.0], (2, 1, 1, 2))
    bias, y = _tensor("b", [1.0, 1.0], (2,), "int32"), _tensor("y", 1.0)
    sums = {"b": records.FloatSum(np.array([0.5, 0.25]), np.array([0.0, 0.0]), 16)}
    convolution = ("CONV_2D", (x, weights, bias), y)
    by_channel = [2**-12 + 0.5, 2**-12 + 0.25]
    for shape, expected in (((1, 4, 4, 2), by_channel), ((1, 32), by_channel[0])):
        model, operators = _of([convolution, ("RESHAPE", (y,), _tensor("z", 1.0, shape))])
        found = student_bounds.slack(model, operators, sums, "xnnpack")
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    model, operators = _of([convolution, ("SOFTMAX", (y,), _tensor("z", 1.0))])
    found = student_bounds.slack(model, operators, {**sums}, "xnnpack")
    np.testing.assert_allclose(found, by_channel, rtol=1e-6)
    small = {"b": records.FloatSum(np.array([0.0, 0.5]), np.array([0.0, 0.0]), 16)}
    found = student_bounds.slack(model, operators, small, "xnnpack")
    np.testing.assert_allclose(found, [2**-10, by_channel[0]], rtol=1e-6)


def test_a_layer_without_operators_rounds_an_input_once():
    found = student_bounds.slack(deployed_lib.DeployedModel({}, (), (), ()), (), {}, "xnnpack")
    assert found == np.float32(2**-12) and found.dtype == np.float32


@pytest.mark.parametrize("coarser", [0, 1])
@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL"])
def test_half_a_step_of_a_coarser_operand_counts_as_the_operator_weighs_it(kind, coarser):
    a, b, y = _tensor("a", 0.25), _tensor("b", 0.5), _tensor("y", 2.0)
    fine = _tensor("fine", 1e-5)
    model, operators = _of([("QUANTIZE", (fine,), (a, b)[coarser]), (kind, (a, b), y)])
    found = student_bounds.slack(model, operators, {}, "xnnpack")
    half, other = ((0.125, 0.5), (0.25, 0.25))[coarser]
    if kind == "MUL":
        expected = 2**-12 + half * 255 * other / 2.0
    else:
        expected = 2**-12 + 2**-12 * 0.5 / 2.0 + half / 2.0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    requantized = dataclasses.replace(operators[0], kind="RELU")
    alone = student_bounds.slack(model, [requantized, operators[1]], {}, "xnnpack")
    np.testing.assert_allclose(alone, found - half * (255 * other if kind == "MUL" else 1) / 2.0,
                               rtol=1e-6)  # fmt: skip


def test_of_an_operator_with_several_outputs_the_first_counts():
    tensors = {name: _tensor(name, scale) for name, scale in (("x", 0.1), ("y", 0.5), ("z", 2.0))}
    bias = _tensor("b", [0.25, 0.5], (2,), "int32")
    operator = deployed_lib.Operator("CONV_2D", ("x", "b"), ("y", "z"))
    model = deployed_lib.DeployedModel({**tensors, "b": bias}, (operator,), (), ())
    sums = {"b": records.FloatSum(np.array([0.25, 0.5]), np.array([0.0, 0.0]), 16)}
    found = student_bounds.slack(model, [operator], sums, "xnnpack")
    np.testing.assert_allclose(found, [2**-12 + 0.5, 2**-12 + 1.0], rtol=1e-6)
    product = dataclasses.replace(operator, kind="MUL", inputs=("x", "x"))
    found = student_bounds.slack(model, [product], {}, "reference")
    np.testing.assert_allclose(found, 2**-12 + 0.01 / 0.5, rtol=1e-6)


def test_the_bounds_beyond_ties_are_these():
    bounds = (student_bounds.NONE, student_bounds.ROUNDS_TWICE, student_bounds.OWN_KIND)
    assert [(bound.lsb, bound.share) for bound in bounds] == [(0, 0.0), (1, 0.15), (1, 0.25)]


def test_a_layers_operators_are_those_between_its_sources_and_its_tensor():
    pairs = (("x", "a"), ("x", "other"), ("a", "b"), ("w", "c"), ("b", "y"), ("y", "behind"))
    operators = [deployed_lib.Operator("RELU", (x,), (y,)) for x, y in pairs]
    operators[4] = dataclasses.replace(operators[4], inputs=("b", "c"))
    model = deployed_lib.DeployedModel({}, tuple(operators), (), ())

    def between(sources, target):
        found = student_bounds.operators_between(model, sources, target)
        return [operator.outputs[0] for operator in found]

    assert between(["x"], "y") == ["a", "b", "c", "y"]
    assert between(["a", "w"], "y") == ["b", "c", "y"]
    assert between(["b", "c"], "y") == ["y"]
    assert between([], "x") == []


@pytest.mark.parametrize(
    ("kinds", "title"),
    [
        (["PAD", "CONV_2D", "RELU", "MUL"], "CONV_2D"),
        (["PAD", "RESHAPE", "MEAN"], "MEAN"),
        (["MEAN", "PAD"], "PAD"),
        (["TANH"], "TANH"),
        ([], "INPUT"),
    ],
)
def test_a_layer_is_called_by_the_operator_that_rounds_or_its_last(kinds, title):
    assert student_bounds.title(iter(kinds)) == title
