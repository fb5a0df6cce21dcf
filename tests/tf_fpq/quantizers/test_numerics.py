"""Rounding and its gradients, against NumPy and against the stop-gradient form."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tf_fpq.quantizers import numerics


def test_ties_round_to_even():
    ties = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]
    np.testing.assert_array_equal(numerics.round_ste(tf.constant(ties)), [-2, -2, 0, 0, 2, 2, 4])
    codes = numerics.quantize(tf.constant(ties), tf.constant(1.0), tf.constant(4.0), 0, 7)
    np.testing.assert_array_equal(codes, [2, 2, 4, 4, 6, 6, 7])


@hypothesis.given(st.floats(-(2.0**22), 2.0**22, width=32))
@hypothesis.settings(max_examples=200, deadline=None)
def test_round_ste_is_exactly_round(value):
    assert numerics.round_ste(tf.constant(value)).numpy() == np.rint(np.float32(value))


def test_straight_through_gradients():
    x = tf.Variable([0.4, 3.0, -9.0])
    for function, scale in (
        (numerics.round_ste, 1.0),
        (lambda v: numerics.clip_ste(v, -1.0, 1.0), 1.0),
        (lambda v: numerics.scale_gradient(v, 0.25), 0.25),
    ):
        with tf.GradientTape() as tape:
            y = function(x)
        np.testing.assert_array_equal(tape.gradient(y, x), np.full(3, scale))
    np.testing.assert_array_equal(
        numerics.clip_ste(tf.constant([0.4, 1e30, -9.0]), -1.0, 1.0), [np.float32(0.4), 1, -1]
    )
    np.testing.assert_array_equal(numerics.scale_gradient(x, 0.25), x)


def test_quantize_and_dequantize_are_inverse_on_the_grid():
    codes = tf.range(0.0, 16.0)
    values = numerics.dequantize(codes, tf.constant(0.3), tf.constant(5.0))
    np.testing.assert_array_equal(
        numerics.quantize(values, tf.constant(0.3), tf.constant(5.0), 0, 15), codes
    )


def test_codes_round_the_product_with_the_reciprocal_as_xnnpack_does():
    # In float32 the quotient is the tie, which goes to 12; the product lies beyond it.
    x, step = np.float32(3.7500002), np.float32(0.3)
    assert x / step == np.float32(12.5) < x * (np.float32(1) / step)
    codes = numerics.quantize(tf.constant(x), tf.constant(step), tf.constant(0.0), 0, 255)
    assert float(codes) == 13
    y = numerics.fake_quant(tf.constant(x), tf.constant(step), tf.constant(0.0), 0, 255)
    assert float(y) == np.float32(13) * step


def _ste_form(x, step, zero_point, qmin, qmax, scale):
    """LSQ with stop_gradient, as its paper's appendix writes it."""
    step = step * scale + tf.stop_gradient(step * (1 - scale))
    v = tf.clip_by_value(x / step, qmin - zero_point, qmax - zero_point)
    return numerics.round_ste(v) * step


@pytest.mark.parametrize("per_channel", [False, True])
def test_fused_form_equals_the_stop_gradient_form_up_to_second_derivatives(per_channel):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(6, 5)), tf.float32)
    step = tf.constant(random.uniform(0.2, 0.4, (1, 5) if per_channel else ()), tf.float32)
    vectors = [
        tf.constant(random.normal(size=x.shape), tf.float32),
        tf.constant(random.normal(size=step.shape), tf.float32),
    ]

    def all_of(function):
        with tf.GradientTape() as outer:
            outer.watch([x, step])
            with tf.GradientTape() as inner:
                inner.watch([x, step])
                y = function(x, step, tf.constant(3.0), 0, 7, 0.25)
                loss = tf.reduce_sum(tf.sin(y) + y**3)
            gradients = inner.gradient(loss, [x, step])
            product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors)])
        return [y, *gradients, *outer.gradient(product, [x, step])]

    for fused, plain in zip(all_of(numerics.fake_quant), all_of(_ste_form), strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-4, atol=1e-5)


def test_forward_over_reverse_works():
    x, step = tf.constant([0.3, -0.2, 5.0]), tf.constant(0.1)
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as forward:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(numerics.fake_quant(x, step, tf.constant(0.0), 0, 15) ** 2)
        gradient = tape.gradient(loss, x)
    np.testing.assert_allclose(forward.jvp(gradient), [2.0, 0.0, 0.0])


def test_delta_zero_is_lsq_bit_for_bit():
    x = tf.constant(np.random.default_rng(1).normal(size=(50, 3)), tf.float32)
    step, zero = tf.constant(0.21), tf.constant(3.0)

    def all_of(**arguments):
        with tf.GradientTape() as tape:
            tape.watch([x, step])
            y = numerics.fake_quant(x, step, zero, 0, 7, 0.3, **arguments)
        return [y, *tape.gradient(y, [x, step], output_gradients=tf.sin(x))]

    for with_delta, without in zip(all_of(delta=tf.constant(0.0)), all_of(), strict=True):
        np.testing.assert_array_equal(with_delta, without)


def test_fixed_grid_passes_the_gradient_of_the_extreme_codes():
    x = tf.constant([-0.8, -0.7, 0.0, 0.7, 0.74, 0.8])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = numerics.fake_quant_fixed(x, tf.constant(0.1), tf.constant(0.0), -7, 7)
    # 0.74 rounds to the highest code 7; 0.8 would be 8 and saturates.
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 1, 1, 0])


def test_divide_no_zero():
    x, divisor = tf.constant([[0.0, 0.0], [1.0, 4.0]]), tf.constant([[0.0], [2.0]])
    with tf.GradientTape() as tape:
        tape.watch([x, divisor])
        y = numerics.divide_no_zero(x, divisor)
    np.testing.assert_array_equal(y, [[0, 0], [0.5, 2]])
    assert all(np.isfinite(g).all() for g in tape.gradient(y, [x, divisor]))


def test_into_cell_moves_what_rounds_otherwise_and_nothing_else():
    x = tf.constant([2.5, 2.5, 2.2, 3.4, 9.0, -3.0])
    levels = tf.constant([3.0, 2.0, 2.0, 3.0, 7.0, 0.0])
    found = numerics.into_cell(
        x * 0.5, tf.constant(0.5), levels, tf.constant(0.0), tf.constant(7.0)
    )
    margin = 2.0**-13
    expected = [2.5 + margin, 2.5 - margin, 2.2, 3.4, 9.0, -3.0]
    assert found.numpy().tolist() == (np.array(expected, np.float32) * np.float32(0.5)).tolist()


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        y = numerics.straight_through(x * 3.0, tf.constant([7.0, 8.0]))
    assert y.numpy().tolist() == [7.0, 8.0]
    assert tape.gradient(y, x).numpy().tolist() == [3.0, 3.0]
