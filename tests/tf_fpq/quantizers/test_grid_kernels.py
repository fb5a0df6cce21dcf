"""The fused kernels against the plain formula: values bit for bit, sums to a stated tolerance."""

import contextlib
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, labels
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.native import grids as grids_of_native
from tf_fpq.native import library, tracing
from tf_fpq.quantizers import grid_kernels, numerics
from tf_fpq.quantizers.grid_kernels import COMPILED, FUSED, PLAIN

WIDTHS = range(2, 9)


def grids(num_bits: int):
    """(step, zero point, qmin, qmax): symmetric, unsigned, and with every kind of zero point."""
    random = np.random.default_rng(num_bits)
    top, half = 2**num_bits - 1, 2 ** (num_bits - 1) - 1
    for step in np.exp(random.uniform(-12, 4, 4)).astype(np.float32):
        yield step, 0, -half, half
        for zero_point in {0, 1, top // 2, top}:
            yield step, zero_point, 0, top


def hard_values(step: np.float32, low: float, high: float) -> np.ndarray:
    """Every code, every tie, the floats beside both, the ends, far outside and random values."""
    codes = np.arange(low - 2, high + 3, 0.5) * step
    codes = codes.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    random = np.random.default_rng(0).uniform(low - 3, high + 3, 1001) * step
    extreme = [0.0, -0.0, 1e30, -1e30, np.inf, -np.inf, 1e-30, -1e-30]
    parts = [codes, np.nextafter(codes, up), np.nextafter(codes, down), random, extreme]
    values = np.concatenate(parts).astype(np.float32)
    return values[(values == 0) | (np.abs(values) >= np.finfo(np.float32).tiny)]  # smaller are zero


@pytest.mark.parametrize("num_bits", WIDTHS)
def test_values_and_masks_are_the_formula_bit_for_bit(num_bits):
    for step, zero_point, qmin, qmax in grids(num_bits):
        ends = np.float32([qmin - zero_point, qmax - zero_point]) * step
        x = hard_values(step, qmin - zero_point, qmax - zero_point)
        g = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
        codes = np.clip(np.rint(x * (np.float32(1) / step)) + zero_point, qmin, qmax)
        for kernels in (PLAIN, FUSED):
            values = kernels.on_grid(tf.constant(x), tf.constant(step), *ends)
            np.testing.assert_array_equal(values, step * (codes - zero_point).astype(np.float32))
            passed = kernels.inside(tf.constant(g), tf.constant(x), *ends)
            np.testing.assert_array_equal(passed, np.where((x > ends[0]) & (x < ends[1]), g, 0))


def test_an_end_of_the_range_is_outside():
    # Zeros out of a ReLU, and the largest value; the floats next to the ends are inside.
    x = np.float32([0.0, 1.2e-38, np.nextafter(np.float32(1.5), np.float32(0)), 1.5])
    for kernels in (PLAIN, FUSED):
        passed = kernels.inside(tf.ones(4), tf.constant(x), np.float32(0), np.float32(1.5))
        np.testing.assert_array_equal(passed, [0, 1, 1, 0])


def test_a_step_that_is_no_number_makes_no_number():
    for kernels in (PLAIN, FUSED):
        assert np.isnan(kernels.on_grid(tf.ones(3), tf.constant(np.nan), np.nan, np.nan)).all()
        assert np.isnan(kernels.on_grid(tf.constant([np.nan]), tf.constant(0.1), 0.0, 1.0)).all()


def test_sums_of_products_differ_by_a_rounding_error_of_their_magnitudes():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 300_000)).astype(np.float32)
    exact, magnitudes = (
        np.dot(a.astype(np.float64), b),
        np.dot(np.abs(a).astype(np.float64), np.abs(b)),
    )
    for kernels in (PLAIN, FUSED):
        found = kernels.product_sum(tf.constant(a), tf.constant(b), tf.constant(1.0))
        assert abs(float(found) - exact) < 1e-6 * magnitudes


def _slope_sum(kernels, x, g, step, ends) -> float:
    values, slopes = tf.constant(x), tf.constant(g)
    y = kernels.on_grid(values, tf.constant(step), *ends)
    return float(kernels.slope_sum(slopes, values, y, tf.constant(step), *map(tf.constant, ends)))


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_the_slope_of_the_step_is_the_formula_up_to_a_rounding_error(num_bits):
    for step, zero_point, qmin, qmax in grids(num_bits):
        ends = np.float32([qmin - zero_point, qmax - zero_point]) * step
        x = hard_values(step, qmin - zero_point, qmax - zero_point)
        x = x[np.isfinite(x)]
        g = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
        codes = np.clip(np.rint(x * (np.float32(1) / step)) + zero_point, qmin, qmax)
        y = step * (codes - zero_point).astype(np.float32)
        products = g.astype(np.float64) * (y - np.where((x > ends[0]) & (x < ends[1]), x, 0))
        for kernels in (PLAIN, FUSED, COMPILED):
            error = _slope_sum(kernels, x, g, step, ends) - products.sum()
            assert abs(error) < 1e-6 * np.abs(products).sum()


@pytest.mark.parametrize("elements", [0, 1, 127, 128, 129, 4096])
def test_the_compiled_sum_takes_any_number_of_elements(elements):
    x, g = np.random.default_rng(0).uniform(-1, 2, (2, elements)).astype(np.float32)
    found = _slope_sum(COMPILED, x, g, np.float32(0.1), np.float32([0, 1.5]))
    assert found == pytest.approx(
        _slope_sum(PLAIN, x, g, np.float32(0.1), np.float32([0, 1.5])), rel=1e-5, abs=1e-6
    )


def test_what_is_no_number_is_no_number_in_the_sum():
    for kernels in (PLAIN, FUSED, COMPILED):
        ends = np.float32([0, 1.5])
        for x, g in ((np.nan, 1.0), (0.3, np.nan)):
            assert np.isnan(_slope_sum(kernels, np.float32([x]), np.float32([g]), 0.1, ends))


@pytest.mark.parametrize("shape", [(), (1, 3), (4, 1), (4, 3)])
def test_reduce_to_sums_what_shares_an_element(shape):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    axes = tuple(i for i in range(2) if not shape or shape[i] == 1)
    expected = x.sum(axis=axes, keepdims=bool(shape)) if axes else x
    np.testing.assert_array_equal(grid_kernels.reduce_to(tf.constant(x), tf.zeros(shape)), expected)


def _all_of(x, g, **arguments):
    """Value, gradients and a Hessian-vector product of a quantizer, at one step per tensor."""
    step = tf.constant(0.23)
    with tf.GradientTape() as outer:
        outer.watch([x, step])
        with tf.GradientTape() as inner:
            inner.watch([x, step])
            y = numerics.fake_quant(x, step, tf.constant(3.0), 0, 15, 0.3, **arguments)
            loss = tf.reduce_sum(tf.cast(g, y.dtype) * tf.sin(y))
        gradients = inner.gradient(loss, [x, step])
        product = tf.reduce_sum(gradients[0] * tf.cast(g, y.dtype)) + tf.cast(gradients[1], y.dtype)
    return [y, *gradients, *outer.gradient(product, [x, step])]


@pytest.mark.parametrize(
    "arguments", [{}, {"slope_inside": False}, {"delta": tf.constant(0.2)}], ids=str
)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16])
def test_quantizers_have_the_formulas_gradients_of_both_orders(arguments, dtype):
    random = np.random.default_rng(0)
    x, g = (tf.cast(random.normal(size=(40, 7)), dtype) for _ in range(2))
    fused = _all_of(x, g, **arguments)
    with tracing.plain_formula():
        plain = _all_of(x, g, **arguments)
    for place, (one, other) in enumerate(zip(fused, plain, strict=True)):
        exact = place < 2 and "delta" not in arguments
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-5, "atol": 2e-5}
        np.testing.assert_allclose(one, other, **tolerance)


def _operations(function) -> set[str]:
    graph = function.get_concrete_function(tf.TensorSpec([8])).graph
    return {operation.type for operation in graph.get_operations()}


def test_one_kernel_each_where_there_are_kernels():
    def gradient(x):
        step = tf.constant(0.1)
        with tf.GradientTape() as tape:
            tape.watch([x, step])
            y = numerics.fake_quant(x, step, tf.constant(0.0), 0, 15)
        return tape.gradient(y, [x, step])

    fused = {"QuantizeAndDequantizeV4", "QuantizeAndDequantizeV4Grad"}
    assert fused < _operations(tf.function(gradient))
    # XLA has no kernel for the gradient, also where the compiled function is inside of another.
    compiled = tf.function(gradient, jit_compile=True)
    assert not fused & _operations(compiled)
    x = tf.constant(np.linspace(-1, 2, 8), tf.float32)
    for one, other in zip(compiled(x), gradient(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert tf.function(lambda x: compiled(x)[0])(x).shape == (8,)
    with tracing.plain_formula():
        assert not fused & _operations(tf.function(gradient))
    assert grid_kernels.kernels_for(x, tf.ones([3])) is PLAIN


def test_the_compiled_sum_is_for_large_images():
    step = tf.constant(0.1)
    assert grid_kernels.kernels_for(tf.zeros([2, 16, 16, 16]), step) is COMPILED
    assert grid_kernels.kernels_for(tf.zeros([200, 16, 16, 8]), step) is FUSED
    with tracing.plain_formula():
        assert grid_kernels.kernels_for(tf.zeros([2, 16, 16, 16]), step) is PLAIN


@pytest.fixture
def operations(monkeypatch):
    """As if `tf_fpq.native` had been compiled, whether it was or not."""
    monkeypatch.setattr(library, "operations", lambda: "compiled")


def test_operations_of_our_own_are_for_training_steps(operations, monkeypatch):
    x, step = tf.zeros([2, 3]), tf.constant(0.1)
    assert not tracing.may_use_native() and not grid_kernels.uses_native(x, step)
    with tracing.training_step():
        assert tracing.may_use_native() and grid_kernels.uses_native(x, step)
        with tracing.plain_formula():
            assert not tracing.may_use_native()
        assert tracing.may_use_native()  # an inner context ends without the outer one
        with monkeypatch.context() as changed:
            changed.setattr(library, "operations", lambda: None)
            assert not grid_kernels.uses_native(x, step)
        with monkeypatch.context() as changed:
            changed.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
            assert not grid_kernels.uses_native(x, step)
    assert not tracing.may_use_native()


@pytest.mark.parametrize(
    ("shape", "steps", "native"),
    [
        ((3, 3, 5, 7), (), True),
        ((3, 3, 5, 7), (1, 1, 1, 1), True),
        ((3, 3, 5, 7), (1, 1, 1, 7), True),
        ((3, 3, 5, 1), (1, 1, 5, 1), True),  # a depthwise kernel
        ((3, 3, 5, 7), (1, 1, 5, 1), False),  # a transposed kernel
        ((3, 3, 5, 7), (1, 1, 5, 7), False),
        ((5, 7), (5, 1), False),
    ],
)
def test_neighbours_in_memory_must_have_neighbouring_steps(operations, shape, steps, native):
    with tracing.training_step():
        assert grid_kernels.uses_native(tf.zeros(shape), tf.ones(steps)) is native


def test_a_thread_is_in_no_training_step_of_another():
    found = []
    with tracing.training_step(), tracing.plain_formula():
        thread = threading.Thread(
            target=lambda: found.append(
                grid_kernels.kernels_for(tf.zeros([2]), tf.constant(0.1)) is FUSED
            )
        )
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize("slope_inside", [True, False])
def test_a_quantizer_hands_over_what_it_was_given(operations, monkeypatch, slope_inside):
    calls = []

    def fake_quant(x, step_size, zero_point, grid, transposed):
        calls.append((x.dtype, float(step_size), float(zero_point), grid))
        return x + 1.0

    monkeypatch.setattr(grids_of_native, "fake_quant", fake_quant)
    x, step, zero_point = tf.zeros([3], tf.float16), tf.constant(-0.1), tf.constant(2.0)
    arguments = (x, step, zero_point, -1, 14, 0.25)
    with tracing.training_step():
        y = numerics.fake_quant(*arguments, slope_inside=slope_inside)
        assert y.dtype == tf.float16 and float(y[0]) == 1.0
        # EWGS scales a gradient that no operation of ours has.
        numerics.fake_quant(*arguments, slope_inside=slope_inside, delta=tf.constant(0.1))
    grid = grids_of_native.Grid(-1, 14, 1e-12, 0.25, slope_inside)
    assert calls == [(tf.float32, pytest.approx(-0.1), 2.0, grid)]


def _trained() -> tuple[list[float], list[np.ndarray]]:
    """Losses and weights of eight steps of FPQ, with tensors of all sizes."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((32, 16, 16, 3), np.float32)
    image = tensor = keras.Input(x.shape[1:])
    for name, strides in (("large", 1), ("residual", 1), ("small", 2)):
        before = tensor
        tensor = keras.layers.Conv2D(16, 3, strides, "same", use_bias=False, name=name)(tensor)
        tensor = keras.layers.BatchNormalization()(tensor)
        if name == "residual":  # two readers of a tensor: noise and quantizer within a condition
            tensor = keras.layers.Add()([tensor, before])
        tensor = keras.layers.ReLU()(tensor)
    scores = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(tensor))
    teacher = keras.Model(image, scores)
    rule = tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)
    student = tf_fpq.quantize_model(teacher, [rule])
    tf_fpq.calibrate(student, x, verbose=0)
    methods = [
        tf_fpq.FeaturePerturbation(0.5, seed=1),
        tf_fpq.ChannelStandardizedDistillation(),
    ]
    model = tf_fpq.QatModel(student, teacher, methods, step_size_learning_rate_factor=1.0)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS)
    history = model.fit(x, labels(), batch_size=16, epochs=4, shuffle=False, verbose=0)
    return history.history["loss"], student.get_weights()


def test_a_training_by_kernels_is_the_training_by_the_formula():
    """Until a rounding error moves a code: eight steps at this rate, to 1e-4 of each number."""
    losses, weights = _trained()
    with tracing.plain_formula():
        plain_losses, plain_weights = _trained()
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    for one, other in zip(weights, plain_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def _runs_after(operation, first, seen) -> bool:
    """Whether `operation` needs `first` to have run."""
    if id(operation) not in seen:
        before = [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
        seen[id(operation)] = operation is first or any(
            _runs_after(earlier, first, seen) for earlier in before
        )
    return seen[id(operation)]


def test_the_gradient_keeps_input_and_output_only():
    """And computes nothing of their size before the upstream gradient is there."""
    x = tf.constant(np.linspace(-1, 2, 64), tf.float32)
    for kernels in ("fused", "plain"):
        graph = tf.Graph()
        with graph.as_default():
            symbol = tf.compat.v1.placeholder(tf.float32, [64], "x")
            step = tf.compat.v1.placeholder(tf.float32, [], "step")
            with contextlib.nullcontext() if kernels == "fused" else tracing.plain_formula():
                y = numerics.fake_quant(symbol, step, tf.constant(0.0), 0, 15)
            upstream = tf.compat.v1.placeholder(tf.float32, [64], "upstream")
            forward = set(graph.get_operations())
            tf.gradients(y, [symbol, step], grad_ys=upstream)
            backward = set(graph.get_operations()) - forward
        kept = {
            tensor.name
            for operation in backward
            if operation.type != "ZerosLike"  # of what has no gradient, and left out when it runs
            for tensor in operation.inputs
            if tensor.op in forward and tensor.shape == x.shape
        }
        kept -= {upstream.name}
        assert len(kept) <= 2, kept
        early = [
            operation.name
            for operation in backward
            if operation.type != "ZerosLike" and any(o.shape == x.shape for o in operation.outputs)
            if not _runs_after(operation, upstream.op, {})
        ]
        assert not early
