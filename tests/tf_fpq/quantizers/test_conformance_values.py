"""Every quantizer computes its codes exactly and on a grid that can be deployed."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import (
    GRIDS,
    Built,
    assert_gradients,
    case,
    data,
    reference_case,
)
from tests.tf_fpq.quantizers.quantizer_rows import nothing_moves, reach


def test_golden_activation_codes(row):
    # s = 1/2, z = 3, 4 bits: the range is -1.5 .. 6.
    values = [-9.0, -1.5, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 5.75, 6.0, 99.0]
    # Saturated; the lowest; ties at -1.5, -0.5, 0.5, 1.5, 2.5 and 11.5 steps go to the even step;
    # the highest; saturated.
    codes = [0, 0, 1, 3, 3, 3, 5, 5, 15, 15, 15]
    built = Built.of(row, "activation", shape=(11, 1)).set(0.5, 3)
    x = np.array(values, np.float32)[:, None]
    np.testing.assert_array_equal(built.codes(x)[:, 0], codes)
    np.testing.assert_array_equal(built(x).numpy()[:, 0], 0.5 * (np.array(codes) - 3))


def test_golden_weight_codes(row):
    # 3 bits, narrow: codes -3 .. 3. Per channel: steps 1/4 and 1.
    built = Built.of(row, "weight", (1,), 3, (9, 2)).set([[0.25, 1.0]], [[0, 0]])
    first = np.array([-9.0, -0.875, -0.625, -0.375, 0.0, 0.125, 0.375, 0.625, 9.0], np.float32)
    if row.weight_codes.__name__ == "steps_codes":
        # -3.5 would go to -4, which a narrow range does not have; -2.5, -1.5, 0.5, 1.5 and 2.5 go
        # to the even step.
        expected = [-3, -3, -2, -2, 0, 0, 2, 2, 3]
        second = first * 4
    else:
        # tanh: 3 * 0.9, 0.3, 0.5, -0.9 of the largest.
        first = np.arctanh([0.8, -0.8, 0.72, 0.24, 0.0, 0.4001, -0.72, -0.24, 0.1]).astype(
            np.float32
        )
        expected = [3, -3, 3, 1, 0, 2, -3, -1, 0]
        second = first
    built_codes = built.codes(np.stack([first, second], axis=1))
    np.testing.assert_array_equal(built_codes, np.stack([expected, expected], axis=1))


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("kind, axis", GRIDS)
def test_output_is_exactly_on_the_exported_grid(row, kind, axis, num_bits):
    built, x, _ = case(row, kind, axis, num_bits)
    codes, (s, z), spec = built.codes(x * 3), built.grid(), built.quantizer.spec
    np.testing.assert_array_equal(built(x * 3).numpy(), s * (codes - z))
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert codes.min() == spec.qmin and codes.max() == spec.qmax
    if kind == "weight":
        assert not z.any() and (codes.min(), codes.max()) == (
            -(2 ** (num_bits - 1) - 1),
            2 ** (num_bits - 1) - 1,
        )
    else:
        assert (spec.qmin, spec.qmax) == (0, 2**num_bits - 1)


@pytest.mark.parametrize("axis", [None, (3,), (2, 3)])
def test_each_channel_has_its_own_grid(row, axis):
    built, x, _ = case(row, "weight", axis)
    s, _ = built.grid()
    places = np.ndindex(*(x.shape[a] for a in axis or ()))
    codes = built.codes(x)
    for place in places:
        elements = [slice(None)] * 4
        step = [0] * 4
        for a, index in zip(axis or (), place):
            elements[a], step[a] = index, index
        step_size = s[tuple(step)] if axis else s
        np.testing.assert_array_equal(
            codes[tuple(elements)], row.weight_codes(x[tuple(elements)], step_size, 7)
        )


def test_set_grid_is_read_back_by_grid(row):
    for kind, axis in GRIDS:
        built, x, _ = case(row, kind, axis)
        places = built.quantizer.spec.step_shape(x.shape)
        s = np.linspace(0.1, 0.9, int(np.prod(places))).reshape(places)
        z = np.zeros(places) if kind == "weight" else np.arange(np.prod(places)).reshape(places) + 2
        built.set(s, z)
        got_s, got_z = built.grid()
        np.testing.assert_allclose(got_s, s, rtol=1e-6)
        np.testing.assert_array_equal(got_z, z)


def test_grid_is_deployable_whatever_training_did(row):
    for kind, axis in GRIDS:
        built, x, _ = case(row, kind, axis)
        for seed, variable in enumerate(built.variables.values()):
            if variable.trainable:
                variable.assign(
                    variable * np.random.default_rng(seed).uniform(0.6, 1.4, variable.shape)
                )
        (s, z), spec = built.grid(), built.quantizer.spec
        assert (
            (s > 0).all()
            and (z == np.rint(z)).all()
            and (z >= spec.qmin).all()
            and (z <= spec.qmax).all()
        )
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))


def test_moving_ranges_give_deployable_grids(row):
    for kind, axis in GRIDS:
        built, x, _ = case(row, kind, axis)
        for seed in range(3):
            built(1.7 * data(kind, seed)[0], training=True)
        (s, z), spec = built.grid(), built.quantizer.spec
        assert (
            (s > 0).all()
            and (z == np.rint(z)).all()
            and (z >= spec.qmin).all()
            and (z <= spec.qmax).all()
        )
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))


def test_an_observed_weight_range_reaches_the_largest_weight_of_either_sign(row):
    if row.observes is nothing_moves:
        return  # its steps are learned
    for axis in (None, (3,), (2, 3)):
        for sign in (1, -1):
            built, x, g = case(row, "weight", axis)
            x = np.where(sign * x > 0, x, 0.5 * x)
            built(x, training=True)
            np.testing.assert_allclose(
                built.grid()[0] * 7, reach(reference_case(row, built, x, g)), rtol=1e-5
            )


def test_zero_is_exact(row):
    for kind, axis in GRIDS:
        built, x, _ = case(row, kind, axis)
        assert not built(np.zeros_like(x)).numpy().any()


def test_one_element_channels(row):
    built, x, g = case(row, "weight", (3,), shape=(1, 1, 1, 6))
    y, gradients = built.gradients(x, g)
    s, _ = built.grid()
    expected = [
        row.weight_codes(w.reshape(1), s[0, 0, 0, i], 7)[0] for i, w in enumerate(x.ravel())
    ]
    np.testing.assert_array_equal(built.codes(x).ravel(), expected)
    assert_gradients(row, built, x, g, gradients)
    assert np.isfinite(y).all()


def test_infinity_saturates_and_has_no_gradient(row):
    built = Built.of(row, "activation", shape=(2, 2)).set(0.5, 3)
    y, gradients = built.gradients(
        np.array([[np.inf, -np.inf], [1, 2]], np.float32), np.ones((2, 2), np.float32)
    )
    np.testing.assert_array_equal(y, [[6, -1.5], [1, 2]])
    if row.name != "ewgs":
        np.testing.assert_array_equal(gradients["x"], [[0, 0], [1, 1]])


@pytest.mark.parametrize("axis", [None, (2,), (3,), (2, 3)])
@pytest.mark.parametrize("unit", [1.0, 30.0])
def test_held_weights_have_the_codes_that_they_are_held_at(row, axis, unit):
    """And the others keep theirs. In the larger unit the tanh of most weights is 1."""
    built, x, _ = case(row, "weight", axis)
    x, random = x * np.float32(unit), np.random.default_rng(0)
    free = ~built.quantizer.sets_scale(tf.constant(x)).numpy()
    mask = free & (random.uniform(size=x.shape) < 0.3)
    assert mask.any()
    wanted = random.integers(-7, 8, x.shape).astype(np.float32)
    held = built.quantizer.held(tf.constant(x), tf.constant(wanted), mask, built.variables).numpy()
    assert np.isfinite(held).all()
    np.testing.assert_array_equal(held[~mask], x[~mask])
    np.testing.assert_array_equal(built.codes(held), np.where(mask, wanted, built.codes(x)))
