"""Operators that only move codes, against the interpreter."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases

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


def test_a_constant_is_joined_to_each_image():
    x = cases.activation("x", (1, 2, 2), **GRID)
    pieces = [
        cases.constant(name, np.array([[[code, code]]], np.int8), 0.05, zero_point=-11)
        for name, code in (("first", 7), ("last", -9))
    ]
    y = cases.activation("y", (1, 4, 2), **GRID)
    model = cases.one_operator("CONCATENATION", [pieces[0], x, pieces[1]], y, axis=1)
    codes = np.arange(12).reshape(3, 2, 2)
    found = cases.kernel_of(model)(tf.constant(codes, tf.int32)).numpy()
    assert found.shape == (3, 4, 2) and (found[:, 0] == 7).all() and (found[:, 3] == -9).all()
    np.testing.assert_array_equal(found[:, 1:3], codes)


@pytest.mark.parametrize("options", [{"axis": 0}, {"axis": -2}, {"axis": 1, "activation": "RELU"}])
def test_a_concatenation_has_no_activation_and_leaves_the_batch(options):
    inputs = [cases.activation(name, (1, 4), **GRID) for name in "ab"]
    model = cases.one_operator(
        "CONCATENATION", inputs, cases.activation("y", (1, 8), **GRID), **options
    )
    received = {"axis": -1, "activation": "NONE", **options}
    assert cases.refusal(model) == (
        "CONCATENATION -> 'y': takes activation='NONE' and an axis that is not the batch. Received:"
        f" {received}."
    )


@pytest.mark.parametrize(
    "kind",
    [
        *("RESHAPE", "PAD", "SLICE", "STRIDED_SLICE", "TRANSPOSE", "CONCATENATION", "SPLIT"),
        *("SPACE_TO_DEPTH", "DEPTH_TO_SPACE"),
    ],
)
def test_what_moves_codes_needs_one_grid(kind):
    x, y = cases.activation("x", (1, 4), 0.05), cases.activation("y", (1, 4), 0.06)
    axis = cases.constant("axis", np.array(1, np.int32))
    model = cases.one_operator(kind, [axis, x] if kind == "SPLIT" else [x], y)
    assert cases.refusal(model).startswith(f"{kind} -> 'y': needs one scale and zero point")


def test_every_part_of_a_split_has_the_grid():
    x = cases.activation("x", (1, 4), **GRID)
    parts = [cases.activation("a", (1, 2), **GRID), cases.activation("b", (1, 2), 0.06, -11)]
    axis = cases.constant("axis", np.array(1, np.int32))
    assert "and 'b' (int8, 0.0599" in cases.refusal(cases.one_operator("SPLIT", [axis, x], parts))


def test_a_padding_is_the_zero_point():
    model = moved("PAD", (1, 2), (1, 5), [[[0, 0], [1, 2]]])
    found = cases.kernel_of(model)(tf.constant([[3, 4], [5, 6]]))
    assert found.numpy().tolist() == [[-11, 3, 4, -11, -11], [-11, 5, 6, -11, -11]]


@pytest.mark.parametrize(
    ("block", "expected"), [({}, (3, 2, 2, 12)), ({"block_size": 4}, (3, 1, 1, 48))]
)
def test_a_block_has_2_by_2_places_unless_it_says_otherwise(block, expected):
    model = moved("SPACE_TO_DEPTH", (1, 4, 4, 3), (1, *expected[1:]), **block)
    assert cases.kernel_of(model)(tf.zeros((3, 4, 4, 3), tf.int32)).shape == expected


def test_split_is_exact():
    x = cases.activation("x", (1, 4, 6), **GRID)
    parts = [cases.activation(f"y{i}", (1, 4, 2), **GRID) for i in range(3)]
    model = cases.one_operator(
        "SPLIT", [cases.constant("axis", np.array(2, np.int32)), x], parts, num_splits=3
    )
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 8))


@pytest.mark.parametrize(("begin", "size"), [(0, 1), (1, -1), (-1, -1), (0, -2), (0, 0)])
def test_a_slice_takes_the_whole_batch(begin, size):
    assert cases.refusal(moved("SLICE", (1, 6), (1, 3), [[begin, 1], [size, 3]])) == (
        f"SLICE -> 'y': must take the whole batch: begin 0, size -1. Received: {begin}, {size}."
    )


@pytest.mark.parametrize(
    ("begin_mask", "end_mask", "stride"),
    [(0, 0, 1), (1, 0, 1), (0, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, -1), (3, 6, 1)],
)
def test_a_strided_slice_takes_the_whole_batch(begin_mask, end_mask, stride):
    model = moved(
        "STRIDED_SLICE",
        (1, 6),
        (1, 3),
        [[0, 0], [1, 3], [stride, 1]],
        begin_mask=begin_mask,
        end_mask=end_mask,
    )
    received = {
        "begin_mask": begin_mask,
        "end_mask": end_mask,
        "ellipsis_mask": 0,
        "new_axis_mask": 0,
        "shrink_axis_mask": 0,
    }
    assert cases.refusal(model) == (
        "STRIDED_SLICE -> 'y': must take the whole batch: bit 0 of begin_mask and end_mask."
        f" Received: {received}."
    )


def test_a_strided_slice_may_skip_behind_the_batch():
    model = moved(
        "STRIDED_SLICE", (1, 6), (1, 2), [[0, 1], [0, 5], [1, 3]], begin_mask=1, end_mask=3
    )
    found = cases.kernel_of(model)(tf.reshape(tf.range(12), (2, 6)))
    assert found.numpy().tolist() == [[1, 4], [7, 10]]


@pytest.mark.parametrize("permutation", [[1, 0], [-1, 0]])
def test_a_transposition_leaves_the_batch_first(permutation):
    assert cases.refusal(moved("TRANSPOSE", (1, 6), (6, 1), [permutation])) == (
        f"TRANSPOSE -> 'y': must leave the batch first. Received: permutation={permutation}."
    )


@pytest.mark.parametrize("axis", [0, -3])
def test_a_split_leaves_the_batch(axis):
    x = cases.activation("x", (1, 4, 6), **GRID)
    inputs = [cases.constant("axis", np.array([axis], np.int32)), x]
    parts = [cases.activation(f"y{i}", (1, 4, 2), **GRID) for i in range(3)]
    assert cases.refusal(cases.one_operator("SPLIT", inputs, parts, num_splits=3)) == (
        f"SPLIT -> 'y0': cannot split the batch. Received: axis={axis}."
    )
