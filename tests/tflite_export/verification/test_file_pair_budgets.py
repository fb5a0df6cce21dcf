"""What of two files is compared, on which grid, and what is over a budget; no file is run."""

import dataclasses
import re

import numpy as np
import pytest

from tflite_export import deployed
from tflite_export.verification import file_pair
from tflite_export.verification import report as report_lib


@pytest.mark.parametrize("share", [-0.5, -1e-9, 1 + 1e-9, 1.5, float("nan")])
def test_an_agreement_that_is_no_share_is_refused(share):
    message = f"min_top1_agreement must be between 0 and 1. Received: min_top1_agreement={share}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        file_pair._check_budgets(share)


@pytest.mark.parametrize("limit", [-1, -0.5, float("nan")])
def test_a_budget_below_zero_is_refused(limit):
    message = f"max_abs must not be negative. Received: max_abs={limit}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        file_pair._check_budgets(0.5, max_lsb=None, max_abs=limit)


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_shares_and_budgets_from_zero_on_are_taken(share):
    file_pair._check_budgets(share, max_lsb=0, max_abs=0.25)
    file_pair._check_budgets(share, max_lsb=300, max_abs=None)


GRID = deployed.Tensor("y", (1, 4), "int8", np.float32(0.5), 3)
FLOATS = deployed.Tensor("y", (1, 4), "float32")
COARSE = dataclasses.replace(GRID, name="z", scale=np.float32(1.0), zero_point=-2)
UNSIGNED = dataclasses.replace(GRID, name="z", dtype="uint8", zero_point=131)
WIDE = dataclasses.replace(GRID, name="w", dtype="int16", zero_point=0)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(GRID, COARSE, GRID), (FLOATS, COARSE, COARSE), (COARSE, FLOATS, COARSE), (WIDE, GRID, GRID)],
)
def test_outputs_are_compared_on_the_first_8_bit_grid_under_the_left_name(left, right, expected):
    found = file_pair._grid(left, right)
    assert (found.name, found.dtype, found.scale, found.zero_point) == (
        *(left.name, expected.dtype),
        *(expected.scale, expected.zero_point),
    )


def test_without_an_8_bit_grid_outputs_are_compared_by_value():
    found = file_pair._grid(WIDE, FLOATS)
    assert (found.name, found.shape, found.dtype, found.scale) == ("w", (1, 4), "float32", None)


@pytest.mark.parametrize(
    ("values", "own", "grid", "expected"),
    [
        ([5, -128], GRID, GRID, [5, -128]),
        ([5, -128], GRID, COARSE, [-1, -68]),  # 1.0 and -65.5, which rounds to the even code
        ([5, 7], GRID, dataclasses.replace(GRID, zero_point=4), [6, 8]),
        ([5, 7], GRID, dataclasses.replace(GRID, scale=np.float32(0.25)), [7, 11]),
        ([133, 0], UNSIGNED, GRID, [5, -128]),
        ([1.0, 99.0], FLOATS, GRID, [5, 127]),
        ([1.0, 99.0], FLOATS, FLOATS, [1.0, 99.0]),
        ([2, 4], WIDE, FLOATS, [1.0, 2.0]),
    ],
)
def test_outputs_of_any_type_are_put_on_the_common_grid(values, own, grid, expected):
    found = file_pair._on_grid(np.array(values, own.dtype), own, grid)
    assert found.tolist() == expected and found.dtype == grid.dtype


def one_operator(**changes):
    """A network of one operator, with another tensor `y`."""
    x, y = dataclasses.replace(GRID, name="x"), dataclasses.replace(GRID, **changes)
    operator = deployed.Operator("TANH", ("x",), ("y",))
    return deployed.DeployedModel({"x": x, y.name: y}, (operator,), ("x",), (y.name,))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"shape": (1, 5)},
        {"dtype": "uint8"},
        {"scale": np.float32(0.25)},
        {"scale": None},
        {"zero_point": 2},
        {"zero_point": 4},
        {"data": np.zeros(4, np.int8)},
    ],
)
def test_tensors_of_another_grid_or_shape_are_not_compared(changes):
    same, other = one_operator(), one_operator(**changes)
    assert file_pair._shared(same, one_operator()) == {"x", "y"}
    assert file_pair._shared(same, other) == {"x"}


def test_tensors_without_a_grid_are_not_compared():
    floats = one_operator(dtype="float32", scale=None)
    assert file_pair._shared(floats, floats) == {"x"}


def test_random_images_are_floats_where_the_left_input_is():
    rng, indices = np.random.default_rng(0), dataclasses.replace(FLOATS, dtype="int32")
    assert file_pair._random(rng, (FLOATS, indices)).dtype == np.float32
    assert set(file_pair._random(rng, (indices, FLOATS)).ravel()) == {0, 1}
    assert file_pair._random(rng, (FLOATS, dataclasses.replace(GRID, shape=(1, 9)))).min() < 0


def test_ten_differences_of_two_trainings_are_listed():
    names = [f"w{number:02}" for number in range(12)]
    weights = {
        name: dataclasses.replace(GRID, name=name, data=np.zeros(4, np.int8)) for name in names
    }
    left, right = (
        deployed.DeployedModel(
            {name: dataclasses.replace(w, data=w.data + step) for name, w in weights.items()},
            *((), (), ()),
        )
        for step in (0, 1)
    )
    _, notes = file_pair._parameters(left, right, True)
    assert [note[:4] for note in notes[:10]] == [f"{name}:" for name in names[:10]]
    assert notes[10:] == ("2 more differences of constants and operators.",)
    failures, notes = file_pair._parameters(left, right, False)
    assert [failure.tensor for failure in failures] == names and notes == ()


def test_files_of_other_shapes_are_refused_whichever_is_larger():
    for shape in ((1, 3), (1, 5)):
        models = {"left": one_operator(), "right": one_operator(shape=shape)}
        shapes = f"Received: [(4,)] and [({shape[1]},)]."
        message = f"The outputs of the files have different shapes. {shapes}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            file_pair._check_pair(models)
    wider = dataclasses.replace(one_operator(), inputs=("x", "x"))
    with pytest.raises(ValueError, match="^The inputs of the files have different shapes."):
        file_pair._check_pair({"left": wider, "right": one_operator()})
    other_batch = one_operator(shape=(7, 4))
    file_pair._check_pair({"left": one_operator(), "right": other_batch})


def comparison(left, right, **changes):
    same = report_lib.Comparison("y", "TANH", left, right, 40, 0, 0, ((0, 40),), top1=1.0)
    return dataclasses.replace(same, **changes)


def failures(*outputs, tensors=(), max_lsb=1, max_abs=0.5, agreement=0.9):
    names = [(side, kernels) for kernels in ("builtin", "xnnpack") for side in ("left", "right")]
    sides = {f"{side} {kernels}": (side, kernels) for side, kernels in names}
    report = report_lib.Report("m", "p", 1, outputs=outputs, tensors=tensors)
    return list(file_pair._failures(report, sides, max_lsb, max_abs, agreement))


XNNPACK, BUILTIN = ("left xnnpack", "right xnnpack"), ("left builtin", "right builtin")


def test_what_is_over_its_budget_fails_where_it_starts():
    codes = comparison(*XNNPACK, differing=7, max_lsb=2, top1=0.875)
    values = comparison(*BUILTIN, tensor="z", differing=3, max_abs=0.75)
    before = (
        comparison(*XNNPACK, tensor="a"),
        comparison(*XNNPACK, tensor="b", differing=1, max_lsb=1),
    )
    assert failures(codes, values, tensors=before) == [
        report_lib.Failure("runtime", "b", "7 of 40 output codes differ, by up to 2 LSB; budget 1"),
        report_lib.Failure(
            "runtime",
            "b",
            "left xnnpack and right xnnpack choose the same class on 87.5000% of the images; at"
            " least 90.0000% is asked for",
        ),
        report_lib.Failure(
            "runtime", "z", "3 of 40 output values differ, by up to 0.75; budget 0.5"
        ),
    ]
    assert len(failures(comparison(*XNNPACK, max_abs=float("nan")))) == 1


def test_kernel_sets_are_not_asked_to_agree_with_each_other():
    far = {"differing": 40, "max_lsb": 255, "top1": 0.0}
    mixed = [
        comparison("left builtin", "right xnnpack", **far),
        comparison("left xnnpack", "right builtin", **far),
        comparison("left builtin", "left xnnpack", **far),
    ]
    assert failures(*mixed) == []
    assert len(failures(*mixed, comparison(*XNNPACK, **far))) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"max_lsb": 1, "differing": 40},
        {"max_abs": 0.5, "differing": 40},
        {"top1": 0.9},
        {"top1": None},
    ],
)
def test_a_budget_may_be_used_up(changes):
    assert failures(comparison(*XNNPACK, **changes)) == []


def test_without_a_limit_any_difference_passes():
    far = comparison(*XNNPACK, max_lsb=255), comparison(*XNNPACK, max_abs=1e9)
    assert failures(*far, max_lsb=None, max_abs=None) == []
    assert failures(*far, max_lsb=None) == failures(far[1])
    assert failures(*far, max_abs=None) == failures(far[0])
