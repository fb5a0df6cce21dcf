"""Folding is exact: codes keep, scales absorb the factor, biases the offset.

What a file stores has the right code for every input: constants, wide codes, and codes rounded
beside a large bias.
"""

import dataclasses

import numpy as np
import pytest

from tflite_export.kernels import rounding
from tflite_export.lowering.kernel import Grids, Kernel

# Codes -128..127 with zero point 0 in steps of 0.1, to codes in steps of 0.5.
GRIDS = Grids(0.1, (-128, 127), 0.5, 0, (-128, 127))


def _kernel(codes, scale, bias):
    codes = np.array(codes, np.int8).reshape(len(scale), 1, 1, -1)
    return Kernel("k", codes, 0, np.array(scale), np.array(bias))


def test_a_factor_scales_flips_or_silences_a_channel():
    kernel = _kernel([[1, -7], [2, 3], [4, 5]], [0.5, 0.25, 0.125], [1.0, 2.0, 3.0])
    folded = kernel.fold(np.array([2.0, -1.0, 0.0]), np.array([0.5, 0.0, 7.0]))
    assert folded.codes.reshape(3, 2).tolist() == [[1, -7], [-2, -3], [0, 0]]
    assert folded.codes.dtype == np.int8
    assert folded.scale.tolist() == [
        1.0,
        0.25,
        0.125,
    ]  # a silent channel keeps a scale that is no zero
    assert folded.bias.tolist() == [2.5, -2.0, 7.0]


def test_one_factor_for_all_channels():
    folded = _kernel([[1, 2], [3, 4]], [0.5, 0.25], [1.0, 2.0]).fold(np.array(-2.0), np.array(1.0))
    assert folded.codes.ravel().tolist() == [-1, -2, -3, -4]
    assert folded.scale.tolist() == [1.0, 0.5] and folded.bias.tolist() == [-1.0, -3.0]


def test_folding_twice_is_folding_the_product():
    rng = np.random.default_rng(0)
    kernel = _kernel(rng.integers(-7, 8, (4, 3)), rng.random(4), rng.normal(size=4))
    (f, a), (g, b) = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    twice, once = kernel.fold(f, a).fold(g, b), kernel.fold(f * g, a * g + b)
    np.testing.assert_array_equal(twice.codes, once.codes)
    np.testing.assert_allclose(twice.scale, once.scale)
    np.testing.assert_allclose(twice.bias, once.bias)


def _stored(codes, scale, bias, limit=127, **grids):
    return _kernel(codes, scale, bias).stored(dataclasses.replace(GRIDS, **grids), limit)


@pytest.mark.parametrize(
    ("codes", "limit", "power"),
    [
        ([[1, -1], [0, 1]], 127, 64),
        ([[1, -1], [0, 1]], 7, 4),
        ([[7, 0], [3, -2]], 127, 16),
        ([[7, 0], [3, -2]], 7, 1),
        ([[127, 1], [0, 5]], 127, 1),
    ],
)  # fmt: skip
def test_wider_codes_are_the_same_weights(codes, limit, power):
    stored = _stored(codes, [0.5, 0.25], [1.0, -2.0], limit)
    assert stored.codes.dtype == np.int8
    assert stored.codes.reshape(2, 2).tolist() == (power * np.array(codes)).tolist()
    assert (stored.scale * power).tolist() == [0.5, 0.25]
    steps = stored.scale.astype(float) * 0.1
    np.testing.assert_array_equal(stored.bias, np.rint([1.0, -2.0] / steps))
    np.testing.assert_allclose(stored.bias_move, stored.bias * steps - [1.0, -2.0], atol=1e-12)


def test_codes_are_as_wide_as_the_bias_allows():
    # Sums of 1e7, 4e7 and 1.9e9 steps: 2^31 / 1e7 = 214, 2^31 / 4e7 = 53, 2^31 / 1.9e9 = 1.1.
    for steps, power in ((1e7, 64), (4e7, 32), (1.9e9, 1)):
        stored = _stored([[1]], [0.5], [steps * 0.05], output_scale=steps * 0.05 / 100.5)
        assert stored.codes.item() == power and stored.bias.item() == pytest.approx(steps * power)


def test_one_scale_for_all_channels_is_a_scalar_and_stays_one():
    # Biases of 20.5 and half an output step: no constants. 2^31 / 7e7 = 30, so 16 for both.
    bias, step = 7e7 * 0.05, 7e7 * 0.05 / 20.5
    alike = _stored([[1, -1], [2, 3]], [0.5, 0.5], [bias, step / 2], output_scale=step)
    assert alike.scale.shape == ()
    assert alike.codes.reshape(2, 2).tolist() == [[16, -16], [32, 48]]
    assert _stored([[1], [2]], [0.5, 0.25], [0.0, 0.0]).scale.shape == (2,)


def _codes(stored, grids, x):
    """Output codes of input codes `x` (all weights of a channel see the same one), by rounding."""
    weights = stored.codes.reshape(len(stored.bias), -1).sum(1, dtype=np.int64)
    sums = np.outer(x, weights) + stored.bias.astype(np.int64)
    assert np.abs(sums).max() < 2**31
    ratio = np.float32(grids.input_scale) * stored.scale / np.float32(grids.output_scale)
    ends = (grids.zero_point, *grids.output_range)
    return (
        rounding.single_rounding(sums, ratio.astype(np.float32), *ends).numpy(),
        rounding.double_rounding(sums, ratio.astype(np.float64), *ends).numpy(),
    )


def _real(codes, scale, bias, grids, x):
    """The output in steps, before it is rounded."""
    sums = np.outer(x, np.sum(codes, 1)) * grids.input_scale * np.array(scale) + bias
    return sums / grids.output_scale


@pytest.mark.parametrize("limit", [127, 7])
@pytest.mark.parametrize("ends", [(-128, 127), (0, 127), (0, 12), (-8, 7)])
@pytest.mark.parametrize("bias", [-1.3, 0.0, 0.24, 0.26, 63.25, -63.75, 1e4, -1e9])
def test_every_code_is_that_of_the_real_sum(bias, ends, limit):
    """For dead channels of all sizes, beside one that lives, in both roundings. Ties are where
    the bias' int32 grid, or a float32 sum of that size, cannot tell the sides apart."""
    grids, x = dataclasses.replace(GRIDS, output_range=ends), np.arange(-128, 128)
    codes = [[7, -6], [5, 7], [1, 0], [0, 0]]
    for scale in 10.0 ** -np.arange(1, 40, 1.5):
        channels = ([0.01, scale, scale, scale], [0.5, bias, -bias, bias])
        kernel = _kernel(codes, *channels)
        stored = kernel.stored(grids, limit)
        steps = _real(codes, *channels, grids, x)
        wanted = np.clip(np.rint(steps), *ends)
        bias_step = np.broadcast_to(stored.scale, 4) * grids.input_scale / grids.output_scale
        sure = np.abs(steps - np.floor(steps) - 0.5) > 2e-5 + 0.6 * bias_step
        for found in _codes(stored, grids, x):
            assert np.all(found[sure] == wanted[sure]), (scale, stored)
            assert np.abs(found - wanted).max() <= 1
        assert not stored.codes[kernel.constant(grids)].any()


def test_a_rounded_bias_gives_the_same_again():
    """`verify` lowers the student once more, whose biases are on their grids by then. Some of them
    have one code where the student's own bias had two."""
    rng, tipped = np.random.default_rng(0), 0
    for _ in range(4000):
        last = int(rng.choice([-128, -126, -110, 127]))
        grids = dataclasses.replace(
            GRIDS,
            input_range=(0, 3),
            output_range=(-128, last),
            output_scale=float(10 ** rng.uniform(-3, 3)),
        )
        scale, bias = 10 ** rng.uniform(-3, 2, 3), rng.normal(size=3) * 10 ** rng.uniform(-2, 3)
        kernel = _kernel(rng.integers(-7, 8, (3, 2)), scale, bias)
        stored = kernel.stored(grids)
        moved = dataclasses.replace(kernel, bias=kernel.bias + stored.bias_move)
        again = moved.stored(grids)
        for field in ("codes", "scale", "bias"):
            np.testing.assert_array_equal(getattr(again, field), getattr(stored, field))
        tipped += np.any(moved.constant(grids) != kernel.constant(grids))
    assert tipped > 0


def test_a_constant_is_far_from_ties_and_moves_no_bias():
    # 0.24 / 0.5 = 0.48 steps, and no products: code 0, whose value is 0 and not 0.24.
    stored = _stored([[127], [90]], [1e-9, 0.01], [0.24, 0.24])
    assert stored.codes.ravel().tolist()[0] == 0 and stored.codes.ravel().tolist()[1] != 0
    assert stored.bias[0] == 0 and stored.bias_move[0] == 0 and stored.bias_move[1] != 0


def test_padding_and_lower_input_codes_decide_what_is_constant():
    # Products of codes 0..127 raise 0.2 steps by 1.27 * 0.1 * 100 / 0.5 = 25 steps or lower it: a
    # negative weight leaves a ReLU at 0 for all of them, but not for codes below the zero point.
    kernel = _kernel([[100], [-100]], [0.01, 0.01], [0.1, 0.1])
    relu = dataclasses.replace(GRIDS, output_range=(0, 127))
    assert kernel.constant(relu).tolist() == [False, False]
    nonnegative = dataclasses.replace(relu, input_range=(0, 127))
    assert kernel.constant(nonnegative).tolist() == [False, True]


def test_a_bias_beyond_int32_next_to_a_tie_gets_rounded_weights():
    # 126.5 steps, decided by sums of 1e-9: 63.25 / 1e-9 = 6.3e10 = 29.5 * 2^31.
    stored = _stored([[127, 100], [50, 1]], [1e-8, 0.01], [63.25, 1.0])
    assert stored.codes.reshape(2, 2).tolist() == [[4, 3], [50, 1]]  # 127 / 32 and 100 / 32
    assert stored.scale[0] == np.float32(1e-8 * 32) and stored.scale[1] == np.float32(0.01)
    assert abs(stored.bias_move[0]) <= 0.5 * 3.2e-9 + 1e-14
    # 127 - 4 * 32 = -1 and 100 - 3 * 32 = 4 steps of 1e-8, times the largest input level.
    largest = max(abs(end) for end in GRIDS.input_range) * GRIDS.input_scale
    np.testing.assert_allclose(stored.weights_move, [5e-8 * largest, 0.0], rtol=1e-6)


def test_magnitudes_do_not_cancel():
    kernel = _kernel([[3, -7]], [0.1], [500.0]).fold(np.array([0.5]), np.array([-249.0]))
    assert kernel.bias == 1.0
    largest = max(abs(end) for end in GRIDS.input_range) * GRIDS.input_scale
    # 0.5 * 0.1 * sqrt(3^2 + 7^2) for each unit of the largest input, and |0.5 * 500| + |-249|.
    np.testing.assert_allclose(kernel.magnitude(GRIDS), [0.05 * 58**0.5 * largest + 499.0])


def test_weights_that_are_not_next_to_nothing_are_not_rounded_away():
    # 100,000 weights of 1, each of which may move the output by 255 * 2^-25 steps.
    kernel = Kernel(
        "k", np.ones((1, 1, 1, 100_000), np.int8), 0, np.array([0.5**17]), np.array([63.4])
    )
    grids = dataclasses.replace(GRIDS, input_scale=0.5**9, input_range=(-255, 0))
    with pytest.raises(ValueError, match="bias of channel 0 of 'k' does not fit int32.*prune the"):
        kernel.stored(grids)


def test_a_zero_channel_has_its_bias_whatever_its_scale():
    # Steps of 100 output steps hold no bias of 20 steps.
    stored = _stored([[0], [3]], [500.0, 0.01], [10.0, 0.0])
    (once, twice) = _codes(stored, GRIDS, np.array([0, 5]))
    assert once[:, 0].tolist() == twice[:, 0].tolist() == [20, 20]
