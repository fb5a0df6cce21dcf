"""What is special about a quantizer; what all have in common is in the test_conformance files."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq import small_student
from tests.tf_fpq.quantizers.conformance import Built
from tests.tf_fpq.quantizers.quantizer_rows import ROWS
import tf_fpq
from tf_fpq import quantizers
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer
from tf_fpq.training import ewgs_hessian

ROW = {row.name: row for row in ROWS}


def _data(shape=(6, 40), seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(
        np.float32
    )


def test_lsq_counts_the_elements_that_share_the_step():
    # A kernel of 3 x 3 x 2 x 4, all upstream gradients 1, every value above the range: d/ds = N *
    # Q_P / sqrt(N * Q_P).
    x = np.full((3, 3, 2, 4), 99.0, np.float32)
    for axis, count in ((None, 72), ((3,), 18), ((2, 3), 9)):
        built = Built.of(ROW["lsq"], "weight", axis, shape=x.shape)
        _, gradients = built.gradients(x, np.ones_like(x))
        np.testing.assert_allclose(gradients["step_size"], np.sqrt(count * 7), rtol=1e-6)
    # Activations: N is the number of features of one image.
    for batch in (1, 5):
        x = np.full((batch, 4, 4, 3), 99.0, np.float32)
        _, gradients = Built.of(ROW["lsq"], "activation", shape=x.shape).gradients(
            x, np.ones_like(x)
        )
        np.testing.assert_allclose(
            gradients["step_size"], batch * 48 * (15 - 8) / np.sqrt(48 * 15), rtol=1e-5
        )


def test_a_fixed_batch_size_is_not_taken_for_a_weight():
    gradients = []
    for batch_size in (None, 4):
        layer = QuantizeActivation(quantizers.LsqQuantizer(4))
        model = keras.Model(*[(i, layer(i)) for i in [keras.Input((5,), batch_size=batch_size)]][0])
        x, g = _data((4, 5))
        with tf.GradientTape() as tape:
            y = model(4 * x)
        gradients.append(tape.gradient(y, model.trainable_variables[0], output_gradients=g).numpy())
    assert gradients[0] == gradients[1] != 0


def test_lsq_plus_is_the_published_quantizer_where_the_offset_is_on_the_grid():
    x, _ = _data()
    s, beta, n, p = np.float32(0.25), np.float32(-1.25), 0, 15
    published = np.rint(np.clip((x - beta) / s, n, p)) * s + beta
    built = Built.of(ROW["lsq_plus"], "activation", shape=x.shape)
    built.variables["step_size"].assign(s)
    for offset in (beta, beta + 0.1, beta - 0.12):  # rounded to -5 steps
        built.variables["offset"].assign(offset)
        np.testing.assert_array_equal(built(x), published)
        assert built.grid()[1] == 5


def test_lsq_plus_keeps_zero_on_the_grid_and_can_come_back():
    x = np.abs(_data()[0]) + 0.5
    built = Built.of(ROW["lsq_plus"], "activation", shape=x.shape)
    built.variables["step_size"].assign(0.1)
    built.variables["offset"].assign(0.7)  # a range of 0.7 .. 2.2 has no 0
    assert built.grid()[1] == 0 and not built(np.zeros_like(x)).numpy().any()
    _, gradients = built.gradients(x, np.ones_like(x))
    assert gradients["offset"] > 0


def test_pact_is_the_published_clip():
    x, g = _data()
    built = Built.of(ROW["pact"], "activation", shape=x.shape)
    alpha = np.float32(1.5)
    built.variables["alpha"].assign(alpha)
    built.variables["zero_point"].assign(0)
    clipped = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)
    np.testing.assert_allclose(built(x), np.rint(clipped * 15 / alpha) * alpha / 15, atol=1e-6)
    _, gradients = built.gradients(x, g)
    np.testing.assert_allclose(gradients["alpha"], g[x >= alpha].sum(), rtol=1e-5)


def test_pact_decays_alpha_in_the_loss_of_the_model():
    def student(l2):
        keras.utils.set_random_seed(0)
        decayed = functools.partial(quantizers.PactQuantizer, l2=l2)
        made = tf_fpq.quantize_model(small_student.network(), [tf_fpq.QuantRule()], decayed)
        tf_fpq.calibrate(made, small_student.images(), verbose=0)
        return made

    assert sum(map(float, student(0.0).losses)) == 0
    decayed = student(0.01)
    alphas = [v.numpy() for v in decayed.variables if "alpha" in v.name]
    assert len(alphas) == 7
    np.testing.assert_allclose(
        sum(map(float, decayed.losses)), 0.01 * np.square(alphas).sum(), rtol=1e-5
    )


def test_dorefa_weights_are_the_published_ones_but_for_the_missing_level():
    w, _ = _data()
    built = Built.of(ROW["dorefa"], "weight", shape=w.shape)
    built.set(1 / 7, 0)  # the published scale
    published = 2 * np.rint(15 * (np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5)) / 15 - 1
    assert np.abs(built(w) - published).max() <= 1 / 7 / 2 + 1 / 15 + 1e-6
    np.testing.assert_allclose(np.abs(built(w)).max(), 1.0, rtol=1e-6)
    x = Built.of(ROW["dorefa"], "activation", shape=w.shape).set(1 / 15, 0)
    np.testing.assert_allclose(x(w), np.rint(15 * np.clip(w, 0, 1)) / 15, atol=1e-6)


def test_dorefa_refuses_a_grid_whose_lowest_code_it_never_uses():
    with pytest.raises(ValueError, match="narrow_range must be True"):
        quantizers.DoReFaQuantizer(4, symmetric=True)


def test_ewgs_without_delta_is_lsq_bit_for_bit():
    x, g = _data()
    for kind in ("weight", "activation"):
        results = []
        for name, zero in (("lsq", False), ("ewgs", True)):
            built = Built.of(ROW[name], kind, shape=x.shape).set(0.2, 0 if kind == "weight" else 4)
            if zero:
                built.variables["delta"].assign(0.0)
            y, gradients = built.gradients(x, g)
            results.append([y, gradients["x"], gradients["step_size"]])
        for lsq, ewgs in zip(*results, strict=True):
            np.testing.assert_array_equal(lsq, ewgs)


def test_ewgs_scales_towards_the_rounded_side():
    # A gradient that pushes a value further towards its code is smaller: x_n - x_q < 0 for 0.26, >
    # 0 for 0.34 (step 0.3).
    built = Built.of(ROW["ewgs"], "weight", shape=(2,)).set(0.3, 0)
    _, gradients = built.gradients(np.array([0.26, 0.34], np.float32), np.ones(2, np.float32))
    assert gradients["x"][0] < 1 < gradients["x"][1]


def test_min_max_follows_the_range():
    quantizer = quantizers.MinMaxQuantizer(8, momentum=0.75)
    built = Built(quantizer, (2, 3), of_weight=False).set(4 / 255, 0)
    x = np.array([[-1.0, 0.5, 8.0], [0, 0, 0]], np.float32)
    built(x)  # inference leaves the range
    assert built.variables["range_max"].numpy() == pytest.approx(4.0)
    built(x, training=True)
    assert built.variables["range_max"].numpy() == pytest.approx(0.75 * 4 + 0.25 * 8)
    assert built.variables["range_min"].numpy() == pytest.approx(-0.25)
    for training, expected in ((tf.constant(False), 5.0), (tf.constant(True), 5.75)):
        tf.function(lambda t: quantizer(tf.constant(x), t, built.variables))(training)
        assert built.variables["range_max"].numpy() == pytest.approx(expected)
    weight = Built(
        quantizers.MinMaxQuantizer(4, symmetric=True, narrow_range=True, axis=(1,)),
        (2, 3),
        of_weight=True,
    )
    y = weight(np.array([[-1.4, 0.5, 0], [0.7, 0.1, 0]], np.float32), training=True)
    np.testing.assert_allclose(
        weight.grid()[0], [[0.2, 0.5 / 7, 0.2]], rtol=1e-6
    )  # zeros: the widest channel's
    np.testing.assert_allclose(y[0, :2], [-1.4, 0.5], rtol=1e-6)


def test_min_max_trains_the_largest_weight():
    w, _ = _data((4, 3))
    built = Built(
        quantizers.MinMaxQuantizer(4, symmetric=True, narrow_range=True, axis=(1,)),
        w.shape,
        of_weight=True,
    )
    _, gradients = built.gradients(w, np.ones_like(w), training=True)
    np.testing.assert_array_equal(gradients["x"], np.ones_like(w))


def _ewgs_student():
    keras.utils.set_random_seed(0)
    student = tf_fpq.quantize_model(small_student.network(), [tf_fpq.QuantRule()], "ewgs")
    tf_fpq.calibrate(student, small_student.images(), verbose=0)
    return student


def _deltas(student):
    return [v for v in student.variables if "delta" in v.name]


def test_ewgs_delta_is_the_trace_of_the_hessian_over_the_gradients_spread():
    # Dense kernel W (quantized) of a squared error: loss = mean over batch and outputs of (x W -
    # t)^2, d2 loss / dW_ij^2 = 2 mean_b x_bi^2 / outputs. In units of the range R = s (qmax -
    # qmin), H * R^2 and g * R.
    image = keras.Input((5,))
    keras.utils.set_random_seed(1)
    model = keras.Model(image, keras.layers.Dense(3, use_bias=False, name="dense")(image))
    student = tf_fpq.quantize_model(
        model, [tf_fpq.QuantRule(weight_bits=4, activation_bits=None)], "ewgs"
    )
    x, t = _data((64, 5))[0], _data((64, 3), 1)[0]
    loss = keras.losses.MeanSquaredError()
    deltas = ewgs_hessian.update_deltas(student, x, t, loss, probes=200)
    layer = next(layer for layer in student.layers if isinstance(layer, QuantizedLayer))
    ((_, weight, quantizer, variables),) = layer.quantized_weights()
    s = quantizer.grid(variables)[0].numpy()
    span = s * 14
    w = quantizer(weight, False, variables).numpy()
    gradient = 2 * x.T @ (x @ w - t) / (64 * 3)
    trace = (2 * np.square(x).mean(axis=0)[:, None] / 3 * span**2).mean()
    expected = trace / (3 * np.std(gradient * span))
    assert list(deltas.values()) == [pytest.approx(expected, rel=0.1)]
    assert variables["delta"].numpy() == pytest.approx(list(deltas.values())[0])


def test_ewgs_deltas_of_a_network_are_set_and_change_the_training():
    student = _ewgs_student()
    weights = small_student.bytes_of(student)
    deltas = ewgs_hessian.update_deltas(
        student, small_student.images(), small_student.labels(), small_student.LOSS, probes=2
    )
    assert len(deltas) == len(_deltas(student)) == 11 and all(
        value >= 0 for value in deltas.values()
    )
    assert sum(value > 0 for value in deltas.values()) > 5
    changed = sum(a != b for a, b in zip(weights, small_student.bytes_of(student), strict=True))
    assert changed == 11, "only the deltas move"
    assert all(
        layer.quantizer.watch is None
        for layer in student.layers
        if isinstance(layer, QuantizeActivation)
    )


def test_ewgs_delta_callback_runs_every_so_many_epochs():
    image = keras.Input((5,))
    model = keras.Model(image, keras.layers.Dense(4, name="dense")(image))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()], "ewgs")
    x, y = _data((16, 5))[0], np.arange(16) % 4
    tf_fpq.calibrate(student, x, verbose=0)
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(_deltas(student)[0].numpy())
    )
    update = ewgs_hessian.EwgsDeltaUpdate(student, x, y, small_student.LOSS, every=2, probes=1)
    student.compile("sgd", small_student.LOSS)
    student.fit(x, y, epochs=4, verbose=0, callbacks=[update, record])
    assert seen[0] == seen[1] == np.float32(1e-3) and seen[2] == seen[3] != seen[0]


def test_ewgs_delta_errors():
    student, loss = _ewgs_student(), small_student.LOSS
    x, y = small_student.images(), small_student.labels()
    with pytest.raises(ValueError, match="probes=0"):
        ewgs_hessian.update_deltas(student, x, y, loss, probes=0)
    with pytest.raises(ValueError, match="is nan; its Hessian"):
        ewgs_hessian.update_deltas(student, x * np.nan, y, loss, probes=1)
    with pytest.raises(ValueError, match="has no EwgsQuantizer"):
        ewgs_hessian.update_deltas(small_student.network(), x, y, loss)
    with pytest.raises(ValueError, match="every=0"):
        ewgs_hessian.EwgsDeltaUpdate(student, x, y, loss, every=0)


def test_round_trip_of_the_uncalibrated_range():
    for row in ROWS:
        for kind in ("weight", "activation"):
            built = Built.of(row, kind)
            assert built.quantizer.uncalibrated(built.variables)
            built.set(0.3, 0)
            assert not built.quantizer.uncalibrated(built.variables)


def test_the_largest_weights_of_each_channel_set_its_scale():
    """Beside equal magnitudes those that rounding may have parted, 5e-7 of them here."""
    quantizer = quantizers.MinMaxQuantizer(4, symmetric=True, narrow_range=True, axis=(1,))
    weights = tf.constant([[3.0, 0.5], [-3.0 * (1 - 5e-7), -0.51], [2.9999, 0.2]])
    expected = [[True, False], [True, True], [False, False]]
    assert quantizer.sets_scale(weights).numpy().tolist() == expected
