"""Every quantizer has its paper's gradients, of weights and of what it learns."""

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
    start,
)
from tests.tf_fpq.quantizers.quantizer_rows import nothing_moves


def test_a_training_call_updates_what_it_observes_and_an_inference_call_nothing(row):
    for kind, axis in GRIDS:
        built, x, g = case(row, kind, axis)
        assert built.quantizer.observes == (row.observes is not nothing_moves)
        known = reference_case(row, built, x, g)
        for training, expected in (
            (False, known.variables),
            (None, known.variables),
            (True, row.observes(known)),
        ):
            built(x, training=training)
            assert set(expected) == set(built.variables)
            for name, value in expected.items():
                np.testing.assert_allclose(built.variables[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("kind, axis", GRIDS)
def test_gradients_are_the_papers(row, kind, axis, num_bits):
    built, x, g = case(row, kind, axis, num_bits)
    _, gradients = built.gradients(x, g)
    learns = row.learns[0] if kind == "weight" else row.learns[1]
    assert set(gradients) == {"x", *learns}
    assert all(np.any(value) for value in gradients.values())
    assert_gradients(row, built, x, g, gradients)


def test_gradients_do_not_depend_on_the_batch_size_beyond_the_sum(row):
    built, x, g = case(row, "activation", None)
    once, twice = (
        built.gradients(x, g)[1],
        built.gradients(np.tile(x, (2, 1, 1, 1)), np.tile(g, (2, 1, 1, 1)))[1],
    )
    for name in set(once) - {"x"}:
        np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-4)


def test_unknown_sizes_have_the_same_gradients(row):
    built, x, g = case(row, "activation", (-1,))
    _, known = built.gradients(x, g)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 3))]
    )
    def unknown(x, g):
        learned = [v for v in built.variables.values() if v.trainable]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = built.quantizer(x, False, built.variables)
        return tape.gradient(y, [x, *learned], output_gradients=g)

    for got, expected in zip(unknown(x, g), known.values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_second_derivatives_exist(row):
    built, x, _ = case(row, "weight", (3,))
    x, vector = tf.constant(x), tf.constant(data("weight", 5)[0])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tf.exp(0.3 * built(x)))
        product = tf.reduce_sum(inner.gradient(loss, x) * vector)
    curved = outer.gradient(product, x)
    assert curved is not None and np.isfinite(curved).all() and np.any(curved)


def test_an_all_zero_channel_neither_divides_by_zero_nor_trains_to_nan(row):
    x, g = data("weight")
    x[..., 1] = 0.0
    for axis in (None, (3,), (2, 3)):
        built = Built.of(row, "weight", axis)
        start(built, x)
        s, _ = built.grid()
        assert (s > 0).all()
        if axis == (3,):
            assert s[0, 0, 0, 1] == pytest.approx(s.max(), rel=1e-5)
        values = tf.Variable(x)
        for _ in range(5):
            learned = {name: v for name, v in built.variables.items() if v.trainable}
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(
                    tf.square(built.quantizer(values, True, built.variables) - 0.1 * g)
                )
            gradients = tape.gradient(loss, {"x": values, **learned})
            for variable, gradient in zip(
                [values, *learned.values()], gradients.values(), strict=True
            ):
                variable.assign_sub(0.05 * gradient)
        assert np.isfinite(values).all() and np.any(values.numpy()[..., 1])
        assert all(np.isfinite(v).all() for v in built.variables.values())
        zeros = Built.of(row, "weight", axis)
        start(zeros, np.zeros_like(x))
        y, gradients = zeros.gradients(np.zeros_like(x), g, training=True)
        assert not y.any() and all(np.isfinite(value).all() for value in gradients.values())
        assert np.all(zeros.grid()[0] > 1e-6)


def test_learned_steps_are_reflected_where_they_cross_zero(row):
    for kind in ("weight", "activation"):
        built, x, _ = case(row, kind, None)
        before, _ = built.grid()
        for variable in built.variables.values():
            if variable.trainable:
                variable.assign(-variable)
        s, z = built.grid()
        assert s == before > 0
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))
