"""The operations of a quantizer against the plain formula."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.native.native_library import needs_native
from tests.tf_fpq.quantizers.test_grid_kernels import grids, hard_values
from tf_fpq.keras_compat import keras
from tf_fpq.native import library, tracing
from tf_fpq.quantizers import grid_kernels, numerics

pytestmark = needs_native


def by_both(x, g, step_size, zero_point, qmin, qmax, scale=1.0, **arguments):
    """Values and gradients, by the operations and by the formula."""
    results = []
    for context in (tracing.training_step(), tracing.plain_formula()):
        x, step_size = tf.constant(x), tf.constant(step_size)
        with context, tf.GradientTape() as tape:
            tape.watch([x, step_size])
            zeros = tf.constant(zero_point, tf.float32)
            y = numerics.fake_quant(x, step_size, zeros, qmin, qmax, scale, **arguments)
        results.append([part.numpy() for part in (y, *tape.gradient(y, [x, step_size], g))])
    return results


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_values_and_gradients_are_the_formula_bit_for_bit_and_slopes_to_a_millionth(num_bits):
    for step, zero_point, qmin, qmax in grids(num_bits):
        x = hard_values(step, qmin - zero_point, qmax - zero_point)
        x = x[np.isfinite(x)]
        g = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
        native, plain = by_both(x, g, step, zero_point, qmin, qmax)
        np.testing.assert_array_equal(native[0], plain[0])
        np.testing.assert_array_equal(native[1], plain[1])
        magnitudes = np.abs(g.astype(np.float64) * (plain[0] - np.where(plain[1] != 0, x, 0)))
        assert abs(native[2] - plain[2]) <= 1e-6 * magnitudes.sum() / step


def test_a_number_of_elements_that_is_no_number_of_blocks():
    random = np.random.default_rng(0)
    for elements in (0, 1, 15, 17, 4095, 4097, 20_000):
        x, g = random.normal(size=(2, elements)).astype(np.float32)
        native, plain = by_both(x, g, np.float32(0.3), 2, 0, 7)
        np.testing.assert_array_equal(native[0], plain[0])
        np.testing.assert_array_equal(native[1], plain[1])
        np.testing.assert_allclose(native[2], plain[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((3, 3, 5, 7), (1, 1, 1, 7)), ((3, 3, 6, 1), (1, 1, 6, 1)), ((9, 4), (1, 4))],
)
def test_a_step_per_channel(shape, steps):
    random = np.random.default_rng(0)
    x, g = random.normal(size=(2, *shape)).astype(np.float32)
    step_size = random.uniform(0.05, 0.5, steps).astype(np.float32)
    assert grid_kernels.kernels_for(tf.constant(x), tf.constant(step_size)) is grid_kernels.PLAIN
    native, plain = by_both(x, g, step_size, np.zeros(steps), -7, 7, 0.25)
    np.testing.assert_array_equal(native[0], plain[0])
    np.testing.assert_array_equal(native[1], plain[1])
    np.testing.assert_allclose(native[2], plain[2], rtol=1e-5, atol=1e-5)


def test_channels_that_are_not_neighbours_are_left_to_the_formula():
    transposed_kernel, steps = tf.zeros([3, 3, 6, 4]), tf.ones([1, 1, 6, 1])
    with tracing.training_step():
        assert not grid_kernels.uses_native(transposed_kernel, steps)
        assert not grid_kernels.uses_native(tf.zeros([5, 4]), tf.ones([5, 4]))
        assert grid_kernels.uses_native(transposed_kernel, tf.ones([1, 1, 1, 4]))
        assert grid_kernels.uses_native(transposed_kernel, tf.ones([1, 1, 1, 1]))


@pytest.mark.parametrize("step_size", [-0.3, 0.0, 1e-13, -1e-13])
def test_the_magnitude_of_a_step_size_counts(step_size):
    random = np.random.default_rng(0)
    x, g = random.normal(size=(2, 50)).astype(np.float32)
    native, plain = by_both(x, g, np.float32(step_size), 3, 0, 15, 0.5)
    for one, other in zip(native, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_pacts_slope_is_that_of_the_ends():
    x, g = np.float32([-1.0, 0.2, 0.7, 5.0]), np.float32([1.0, 2.0, 3.0, 4.0])
    native, plain = by_both(x, g, np.float32(0.5), 0, 0, 3, slope_inside=False)
    # The last value alone is outside above, at 3 steps.
    assert native[2] == plain[2] == 4.0 * 3.0


def test_a_zero_point_without_the_axes_of_the_step_size():
    native, plain = by_both(
        np.float32([[0.3], [0.9]]), np.ones((2, 1), np.float32), np.float32([[0.1]]), 3.0, 0, 15
    )
    np.testing.assert_array_equal(native[0], plain[0])


def test_what_is_no_number_is_no_number():
    for x, g, step in ((np.nan, 1.0, 0.1), (0.3, np.nan, 0.1), (0.3, 1.0, np.nan)):
        native, plain = by_both(np.float32([x]), np.float32([g]), np.float32(step), 0, 0, 15)
        for one, other in zip(native, plain, strict=True):
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


def test_second_derivatives_are_the_formulas():
    random = np.random.default_rng(0)
    x, g = (tf.constant(part) for part in random.normal(size=(2, 40)).astype(np.float32))
    found = []
    for context in (tracing.training_step(), tracing.plain_formula()):
        step = tf.constant(-0.23)
        with context, tf.GradientTape() as outer:
            outer.watch([x, step])
            with tf.GradientTape() as inner:
                inner.watch([x, step])
                y = numerics.fake_quant(x, step, tf.constant(3.0), 0, 15, 0.3)
                loss = tf.reduce_sum(g * tf.sin(y))
            first = inner.gradient(loss, [x, step])
            product = tf.reduce_sum(first[0] * g) + first[1]
        found.append([*first, *outer.gradient(product, [x, step])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_the_sum_does_not_depend_on_the_number_of_threads():
    random = np.random.default_rng(0)
    x, g = (tf.constant(part) for part in random.normal(size=(2, 100_000)).astype(np.float32))
    arguments = {"g": g, "x": x, "step_size": 0.1, "zero_point": 0.0, "qmin": 0, "qmax": 15}
    arguments |= {"min_step_size": 1e-12, "gradient_scale": 1.0, "slope_inside": True}
    slopes = {
        float(library.operations().tf_fpq_fake_quant_gradient(**arguments).dstep)
        for _ in range(20)  # threads share the blocks out otherwise each time
    }
    assert len(slopes) == 1


def test_shapes_that_do_not_fit_are_refused():
    operations = library.operations()
    grid = {"qmin": 0, "qmax": 15, "min_step_size": 1e-12}
    with pytest.raises(tf.errors.InvalidArgumentError, match="step_size does not fit x"):
        operations.tf_fpq_fake_quant(
            x=tf.zeros([3, 4]), step_size=tf.ones([5]), zero_point=tf.zeros([5]), **grid
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have as many elements"):
        operations.tf_fpq_fake_quant(
            x=tf.zeros([3, 4]), step_size=tf.ones([4]), zero_point=tf.zeros([]), **grid
        )
    gradient = {**grid, "gradient_scale": 1.0, "slope_inside": True}
    with pytest.raises(tf.errors.InvalidArgumentError, match="g and x must have one shape"):
        operations.tf_fpq_fake_quant_gradient(
            **{"g": tf.zeros([4]), "x": tf.zeros([3])},
            **{"step_size": 1.0, "zero_point": 0.0, **gradient},
        )


def _operations(function) -> set[str]:
    graph = tf.function(function).get_concrete_function(tf.TensorSpec([8])).graph
    return {operation.type for operation in graph.get_operations()}


def test_they_are_for_training_steps_on_a_cpu_alone():
    native = {"TfFpqFakeQuant", "TfFpqFakeQuantGradient"}

    def gradient(x):
        step = tf.constant(0.1)
        with tf.GradientTape() as tape:
            tape.watch([x, step])
            y = numerics.fake_quant(x, step, tf.constant(0.0), 0, 15)
        return tape.gradient(y, [x, step])

    def step(x):
        with tracing.training_step():
            return gradient(x)

    def by_formula(x):
        with tracing.plain_formula():
            return step(x)

    assert native < _operations(step)
    assert not native & _operations(gradient)  # a student that is saved as a graph
    assert not native & _operations(by_formula)
    compiled = tf.function(step, jit_compile=True)
    assert not native & _operations(compiled)


def _behind_a_batch_norm(z, g, *, training: bool):
    """Value and gradients of a quantizer behind a batch norm, and what its graph keeps."""
    norm = keras.layers.BatchNormalization()
    norm.build(z.shape)
    norm.gamma.assign([0.5, -1.5, 2.0])
    norm.beta.assign([0.3, 0.6, -0.2])

    @tf.function
    def step(z):
        size = tf.constant(0.2)
        with tracing.training_step(), tf.GradientTape() as tape:
            tape.watch([z, size])
            y = numerics.fake_quant(norm(z, training=training), size, tf.constant(0.0), 0, 7, 0.5)
        return y, *tape.gradient(y, [z, size], g)

    operations = {op.type for op in step.get_concrete_function(z).graph.get_operations()}
    return [part.numpy() for part in step(z)], operations


def test_behind_a_batch_norm_in_training_its_input_stands_for_its_output():
    random = np.random.default_rng(0)
    z, g = (tf.constant(random.normal(1.0, 2.0, (8, 5, 5, 3)), tf.float32) for _ in "zg")
    found, operations = _behind_a_batch_norm(z, g, training=True)
    assert "TfFpqNormalizedFakeQuantGradient" in operations
    assert "TfFpqFakeQuantGradient" not in operations
    with tracing.plain_formula():
        expected, _ = _behind_a_batch_norm(z, g, training=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4)
    # Moving statistics are other numbers: a batch norm at inference is none that counts.
    _, operations = _behind_a_batch_norm(z, g, training=False)
    assert "TfFpqFakeQuantGradient" in operations


def test_statistics_of_other_channels_are_refused():
    arguments = {"g": tf.ones([2, 3]), "z": tf.ones([2, 3]), "step_size": 0.1, "zero_point": 0.0}
    arguments |= {"mean": tf.ones(3), "variance": tf.ones(3), "scale": tf.ones(3)}
    arguments |= {"qmin": 0, "qmax": 15, "min_step_size": 1e-12, "gradient_scale": 1.0}
    arguments |= {"slope_inside": True, "epsilon": 1e-3, "offset": tf.ones(3)}
    gradient = library.operations().tf_fpq_normalized_fake_quant_gradient
    assert gradient(**arguments).dx.shape == (2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be those of the channels"):
        gradient(**{**arguments, "offset": tf.ones(2)})
    with pytest.raises(tf.errors.InvalidArgumentError, match="step_size must be one number"):
        gradient(**{**arguments, "step_size": tf.ones(3), "zero_point": tf.zeros(3)})
