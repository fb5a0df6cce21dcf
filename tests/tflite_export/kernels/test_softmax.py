"""SOFTMAX of the twin against the interpreter, and what it stands on number by number."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import softmax


@pytest.mark.parametrize("classes", [2, 10, 64])
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.7])
def test_softmax(classes, scale):
    """Reference: exact. Default: the float table's last bit may move a code by 1 LSB; none of these
    moves."""
    rng = np.random.default_rng(4)
    x = cases.activation("x", (1, classes), scale, 11)
    model = cases.one_operator("SOFTMAX", [x], cases.activation("y", (1, classes), 1 / 256, -128))
    codes = cases.random_codes(rng, model, 2000)
    cases.assert_exact(model, codes, ["double"])
    differing, total, worst = cases.mismatches(model, codes, "single")
    assert worst <= 1
    assert differing <= 1e-4 * total


def test_softmax_beta_and_leading_axes():
    rng = np.random.default_rng(5)
    x = cases.activation("x", (1, 3, 5, 7), 0.1, 11)
    model = cases.one_operator(
        "SOFTMAX", [x], cases.activation("y", (1, 3, 5, 7), 1 / 256, -128), beta=0.5
    )
    cases.assert_exact(model, cases.random_codes(rng, model, 100))


@pytest.mark.parametrize("scale", [2.0**-25, 1e-3, 3.1, 31.9, 32.0, 50.0])
def test_inputs_of_any_scale_are_exact_in_the_reference_kernels(scale):
    x = cases.activation("x", (1, 9), scale, -3)
    model = cases.one_operator("SOFTMAX", [x], cases.activation("y", (1, 9), 1 / 256, -128))
    rng = np.random.default_rng(6)
    codes = rng.integers(-128, 128, (300, 9)) // rng.choice([1, 20, 128], (300, 1))
    cases.assert_exact(model, {"x": codes.astype(np.int8)}, ["double"])


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_shares_of_256_and_the_highest_code_for_all_of_it(rounding):
    x = cases.activation("x", (1, 4), 1.0, 0)
    model = cases.one_operator("SOFTMAX", [x], cases.activation("y", (1, 4), 1 / 256, -128))
    kernel = cases.kernel_of(model, rounding)
    codes = [[0, 0, 0, 0], [127, -128, -128, -128], [5, 5, -9, -9], [3, 2, 1, 0]]
    found = kernel(tf.constant(codes))
    exponentials = np.exp([3.0, 2.0, 1.0, 0.0])
    shares = np.round(256 * exponentials / exponentials.sum()).astype(int) - 128
    assert found.dtype == tf.int32 and found.numpy().tolist() == [
        [-64, -64, -64, -64],
        [127, -128, -128, -128],
        [0, 0, -128, -128],
        shares.tolist(),
    ]


@pytest.mark.parametrize(
    ("scale", "zero"),
    [(1 / 256, -127), (1 / 256, 0), (1 / 255, -128), (1 / 257, -128), (1 / 128, -128)],
)
def test_the_outputs_grid_is_prescribed(scale, zero):
    x, y = cases.activation("x", (1, 4), 0.1, 5), cases.activation("y", (1, 4), scale, zero)
    assert cases.refusal(cases.one_operator("SOFTMAX", [x], y)) == (
        "SOFTMAX -> 'y': needs output scale 1/256, zero point -128. Received:"
        f" {np.float32(scale)}, {zero}."
    )


def test_differences_are_of_the_largest_code_of_a_row():
    found = softmax._differences(tf.constant([[[3, -128, 127], [0, 1, -1]]]))
    assert found.numpy().tolist() == [[[131, 0, 255], [254, 255, 253]]]


def test_sums_are_added_from_first_to_last():
    """Beside 2^24 a 1 is lost, and two are not if they come first."""
    rows = tf.constant([[2.0**24, 1.0, 1.0], [1.0, 1.0, 2.0**24]])
    assert softmax._sum_in_order(rows).numpy().tolist() == [[2.0**24], [2.0**24 + 2]]


@pytest.mark.parametrize(
    ("total", "reciprocal", "bits"),
    [
        # Q12.19: 1, next above it, 1.5, next below 2, 2, 256.
        (2**19, 2**31 - 1, 0),
        (2**19 + 1, 2147479552, 0),
        (3 * 2**18, 1431655762, 0),
        (2**20 - 1, 1073742844, 0),
        (2**20, 2**31 - 1, 1),
        (2**27, 2**31 - 1, 8),
    ],
)
def test_the_reciprocal_of_a_sum(total, reciprocal, bits):
    found = [int(part) for part in softmax._reciprocal(tf.constant(total, tf.int64))]
    assert found == [reciprocal, bits]
    assert reciprocal / 2**31 / 2**bits == pytest.approx(2**19 / total, rel=2.0**-27)
