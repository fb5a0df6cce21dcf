"""Operators that only move codes, against the interpreter."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.twin import integer_twin as twin_lib

GRID = {"scale": 0.05, "zero_point": -11}


def moved(kind, x_shape, y_shape, constants=(), **options):
    x, y = cases.activation("x", x_shape, **GRID), cases.activation("y", y_shape, **GRID)
    extra = [
        cases.constant(f"c{i}", np.array(value, np.int32)) for i, value in enumerate(constants)
    ]
    return cases.one_operator(kind, [x, *extra], y, **options)


@pytest.mark.parametrize(
    "model",
    [
        moved("RESHAPE", (1, 4, 3, 5), (1, 60), [[-1, 60]]),
        moved("RESHAPE", (1, 60), (1, 4, 15), [[-1, 4, 15]]),
        moved("PAD", (1, 4, 3, 5), (1, 7, 3, 8), [[[0, 0], [1, 2], [0, 0], [3, 0]]]),
        moved("EXPAND_DIMS", (1, 4, 3), (1, 4, 1, 3), [2]),
        moved("SQUEEZE", (1, 4, 1, 3), (1, 4, 3), squeeze_dims=(2,)),
        moved("SLICE", (1, 6, 5, 3), (1, 3, 5, 2), [[0, 1, 0, 1], [-1, 3, 5, 2]]),
        moved(
            "STRIDED_SLICE",
            (1, 6, 5, 3),
            (1, 2, 4, 3),
            [[0, 1, 0, 0], [0, 5, -1, 0], [1, 2, 1, 1]],
            begin_mask=0b1001,
            end_mask=0b1001,
        ),
        moved("TRANSPOSE", (1, 6, 5, 3), (1, 3, 6, 5), [[0, 3, 1, 2]]),
        moved("SPACE_TO_DEPTH", (1, 6, 4, 3), (1, 3, 2, 12)),
        moved("DEPTH_TO_SPACE", (1, 3, 2, 12), (1, 6, 4, 3)),
    ],
    ids=lambda model: model.operators[0].kind,
)
def test_moving_codes_is_exact(model):
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 8))


@pytest.mark.parametrize(("axis", "y"), [(-1, (1, 4, 3, 11)), (3, (1, 4, 3, 11))])
def test_concatenation_is_exact(axis, y):
    inputs = [cases.activation(f"x{i}", (1, 4, 3, c), **GRID) for i, c in enumerate((5, 2, 4))]
    model = cases.one_operator("CONCATENATION", inputs, cases.activation("y", y, **GRID), axis=axis)
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 8))


def test_concatenation_refuses_different_grids():
    inputs = [cases.activation("a", (1, 4), 0.05), cases.activation("b", (1, 4), 0.06)]
    model = cases.one_operator("CONCATENATION", inputs, cases.activation("y", (1, 8), 0.05))
    with pytest.raises(ValueError, match="requantize first"):
        twin_lib.IntegerTwin(model)


def test_split_is_exact():
    x = cases.activation("x", (1, 4, 6), **GRID)
    parts = [cases.activation(f"y{i}", (1, 4, 2), **GRID) for i in range(3)]
    model = cases.one_operator(
        "SPLIT", [cases.constant("axis", np.array(2, np.int32)), x], parts, num_splits=3
    )
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (moved("SLICE", (1, 6), (1, 3), [[0, 1], [1, 3]]), "whole batch"),
        (moved("STRIDED_SLICE", (1, 6), (1, 3), [[0, 0], [1, 3], [1, 1]]), "whole batch"),
        (moved("TRANSPOSE", (1, 6), (6, 1), [[1, 0]]), "batch first"),
    ],
)
def test_the_batch_axis_is_left_alone(model, message):
    with pytest.raises(ValueError, match=message):
        twin_lib.IntegerTwin(model)
