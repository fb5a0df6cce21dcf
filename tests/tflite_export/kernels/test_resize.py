"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR of the twin against the interpreter."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import resize

MODES = [{}, {"align_corners": True}, {"half_pixel_centers": True}]
SIZES = [
    ((4, 5), (8, 10)),
    ((4, 5), (7, 13)),
    ((9, 8), (4, 3)),
    ((3, 3), (1, 1)),
    ((1, 1), (3, 4)),
    ((6, 6), (6, 6)),
]


def resized(kind, size, target, **options):
    x, y = (cases.activation(n, (1, *s, 9), 0.05, -11) for n, s in (("x", size), ("y", target)))
    return cases.one_operator(
        kind, [x, cases.constant("size", np.array(target, np.int32))], y, **options
    )


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("kind", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_resizing_is_exact(kind, size, target, options):
    model = resized(kind, size, target, **options)
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 16))


@pytest.mark.parametrize("kind", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_the_size_is_the_outputs_and_one_of_the_options_is_set(kind):
    both = {"align_corners": True, "half_pixel_centers": True}
    neither = {"align_corners": False, "half_pixel_centers": False}
    message = "size must be the output's and only one of the options set."
    assert cases.refusal(resized(kind, (2, 2), (4, 4), **both)) == (
        f"{kind} -> 'y': {message} Received: [4, 4], {both}."
    )
    for size in ([4, 5], [5, 4], [4]):
        model = resized(kind, (2, 2), (4, 4))
        wrong = cases.one_operator(
            kind,
            [model.tensors["x"], cases.constant("size", np.array(size, np.int32))],
            model.tensors["y"],
        )
        assert cases.refusal(wrong) == f"{kind} -> 'y': {message} Received: {size}, {neither}."


@pytest.mark.parametrize(
    ("size", "target", "options", "first", "second", "weight"),
    [
        (3, 6, (False, False), [0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 2, 2], [0, 1, 0, 1, 0, 0]),
        (3, 5, (True, False), [0, 0, 1, 1, 2], [1, 1, 2, 2, 2], [0, 1, 0, 1, 0]),
        (2, 4, (False, True), [0, 0, 0, 1], [1, 1, 1, 1], [0, 0.5, 1.5, 0]),
        (4, 2, (False, True), [0, 2], [1, 3], [1, 1]),
        (4, 1, (True, False), [0], [1], [0]),
        (1, 3, (False, False), [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_positions_and_weights_in_xnnpack(size, target, options, first, second, weight):
    """Weights are given in halves of 2^11."""
    axis = resize._axis_single(size, target, *options)
    found = np.minimum(axis.first + 1, size - 1)
    assert axis.first.tolist() == first and axis.second.tolist() == found.tolist() == second
    assert axis.weight.tolist() == [part * 2**10 for part in weight]


@pytest.mark.parametrize(
    ("size", "target", "options", "first", "second", "weight"),
    [
        (3, 6, (False, False), [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 0, 1]),
        (3, 5, (True, False), [0, 0, 1, 1, 2], [0, 1, 1, 2, 2], [0, 1, 0, 1, 0]),
        (2, 4, (False, True), [0, 0, 0, 1], [0, 1, 1, 1], [-0.5, 0.5, 1.5, 0.5]),
        (4, 2, (False, True), [0, 2], [1, 3], [1, 1]),
        (4, 1, (True, False), [0], [0], [0]),
        (1, 3, (False, False), [0, 0, 0], [0, 0, 0], [0, 341 / 512, 682 / 512]),
    ],
)
def test_positions_and_weights_in_the_reference_kernels(
    size, target, options, first, second, weight
):
    """Weights are given in halves of 2^10."""
    axis = resize._axis_double(size, target, *options)
    assert axis.first.tolist() == first and axis.second.tolist() == second
    assert axis.weight.tolist() == [part * 2**9 for part in weight]


@pytest.mark.parametrize(
    ("size", "target", "options", "expected"),
    [
        (3, 6, (False, False), [0, 0, 1, 1, 2, 2]),
        (4, 2, (False, False), [0, 2]),
        (4, 2, (False, True), [1, 3]),
        (3, 5, (True, False), [0, 1, 1, 2, 2]),
        (5, 1, (True, False), [0]),
        (5, 1, (False, True), [2]),
    ],
)
def test_the_nearest_positions(size, target, options, expected):
    found = resize._nearest(size, target, *options)
    assert found.dtype == np.int32 and found.tolist() == expected


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_halves_between_codes_go_upward_in_xnnpack_and_away_from_zero_in_the_reference(rounding):
    x, y = cases.activation("x", (1, 1, 2, 1), 0.05), cases.activation("y", (1, 1, 4, 1), 0.05)
    size = cases.constant("size", np.array((1, 4), np.int32))
    kernel = cases.kernel_of(cases.one_operator("RESIZE_BILINEAR", [x, size], y), rounding)
    codes = tf.constant([[[[-3], [0]]], [[[3], [0]]], [[[0], [0]]]])
    half = {"single": -1, "double": -2}[rounding]
    expected = [[-3, half, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0]]
    assert kernel(codes).numpy().reshape(3, 4).tolist() == expected
