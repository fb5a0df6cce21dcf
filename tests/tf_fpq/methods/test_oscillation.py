"""Oscillation: its frequency, dampening and freezing."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import bytes_of, fit, pair
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.methods.oscillation import (
    OscillationDampening,
    OscillationFreezing,
    OscillationState,
    weights_of_student,
)
from tf_fpq.training.qat_model import QatModel


def a_weight(student):
    """The pointwise kernel, its step sizes set to 1 so that a latent weight is its code."""
    weight = next(w for w in weights_of_student(student) if w.name == "pointwise/kernel")
    weight.variables["step_size"].assign(tf.ones_like(weight.variables["step_size"]))
    weight.variable.assign(tf.zeros_like(weight.variable))
    return weight


def test_all_kernels_are_found_by_name():
    _, student = pair()
    names = [weight.name for weight in weights_of_student(student)]
    assert names == [
        "stem/kernel",
        "depthwise/depthwise_kernel",
        "pointwise/kernel",
        "logits/kernel",
    ]


def test_frequency_counts_moves_against_the_previous_move():
    _, student = pair()
    weight = a_weight(student)
    state = OscillationState(weight, momentum=0.5)
    frequencies = []
    # Up, up, down, stay, up, stay, up: against the previous move at the third and the fifth.
    for code in (1.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0):
        weight.variable.assign(tf.fill(weight.variable.shape, code))
        codes, _ = state.update()
        assert (codes.numpy() == code).all()
        frequencies.append(float(state.frequency.numpy().ravel()[0]))
    # f <- 0.5 o + 0.5 f
    np.testing.assert_allclose(frequencies, [0, 0, 0.5, 0.25, 0.625, 0.3125, 0.15625])


def test_dampening_loss_equals_its_formula():
    _, student = pair()
    weight = a_weight(student)
    # Codes of 4 bits in narrow range are -7 to 7: 9 clips and costs (7 - 7)^2, 1.25 costs 0.25^2.
    weight.variable.assign(tf.fill(weight.variable.shape, 1.25))
    method = OscillationDampening(weight=2.0)
    with tf.GradientTape() as tape:
        loss = method([weight])
    np.testing.assert_allclose(loss, 2.0 * 64 * 0.0625, rtol=1e-6)
    gradients = tape.gradient(loss, [weight.variable, weight.variables["step_size"]])
    np.testing.assert_allclose(gradients[0], np.full([1, 1, 8, 8], 2.0 * 2 * 0.25), rtol=1e-6)
    assert gradients[1] is None
    weight.variable.assign(tf.fill(weight.variable.shape, 9.0))
    assert float(method([weight])) == 0.0


def test_dampening_pulls_weights_into_their_bins():
    distances = {}
    for strength in (0.0, 0.5):
        _, student = pair()
        fit(QatModel(student, methods=[OscillationDampening(strength)]), epochs=10)
        weights = weights_of_student(student)
        parts = []
        for weight in weights:
            step_size, _ = weight.quantizer.grid(weight.variables)
            parts.append(np.abs(weight.variable / step_size - weight.codes()).ravel())
        distances[strength] = np.concatenate(parts).mean()
    assert distances[0.5] < 0.7 * distances[0.0]


@pytest.mark.parametrize("method", [OscillationDampening(0.0), OscillationFreezing(1.0)])
def test_switched_off_is_plain_training_bit_for_bit(method):
    _, student = pair()
    fit(QatModel(student))
    _, other = pair()
    fit(QatModel(other, methods=[method]))
    assert bytes_of(student) == bytes_of(other)


def test_an_oscillating_weight_freezes_at_its_mean_integer():
    _, student = pair()
    method = OscillationFreezing(threshold=0.3, momentum=0.5)
    a_weight(student)
    QatModel(student, methods=[method])
    index = next(i for i, w in enumerate(method._weights) if w.name == "pointwise/kernel")
    weight = method._weights[index]
    for code in (2.0, 1.0, 2.0, 1.0):
        weight.variable[0, 0, 0, 0].assign(code)
        method.after_update()
        frozen = method.frozen[index].numpy()
        assert not frozen.ravel()[1:].any()
    assert frozen[0, 0, 0, 0]
    # f is 0, 0, 0.5: frozen at the second move, when the mean of 0, 2, 1 is 0.5 * 1 + 0.5 * (0.5 *
    # 2 + 0.5 * 0) = 1.
    np.testing.assert_array_equal(weight.variable[0, 0, 0, 0], 1.0)
    # Whatever the optimizer wants, the integer stays; the step size is free.
    weight.variable.assign(tf.fill(weight.variable.shape, 5.0))
    weight.variables["step_size"].assign(tf.fill(weight.variables["step_size"].shape, 2.0))
    method.after_update()
    np.testing.assert_array_equal(weight.variable[0, 0, 0, 0], 2.0)
    np.testing.assert_array_equal(weight.variable[0, 0, 1:], np.full([7, 8], 5.0))


def test_freezing_in_training_holds_integers():
    _, student = pair(bits=2)
    method = OscillationFreezing(threshold=0.01, momentum=0.1)
    model = QatModel(student, methods=[method])
    fit(model, epochs=10, learning_rate=0.3)
    frozen = [mask.numpy() for mask in method.frozen]
    assert 0 < sum(mask.sum() for mask in frozen)
    before = [weight.codes().numpy() for weight in method._weights]
    fit(model, epochs=5, learning_rate=0.3)
    for mask, old, weight in zip(frozen, before, method._weights):
        np.testing.assert_array_equal(weight.codes().numpy()[mask], old[mask])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OscillationDampening(-1.0), "weight must not be negative. Received: weight=-1.0"),
        (lambda: OscillationFreezing(-0.1), "threshold must not be negative"),
        (
            lambda: OscillationFreezing(momentum=0.0),
            "momentum must be above 0 and at most 1. Received: momentum=0.0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_float_student_has_nothing_to_dampen():
    teacher, _ = pair()
    for method in (OscillationDampening(), OscillationFreezing()):
        with pytest.raises(ValueError, match=f"{method.name} needs quantized weights"):
            QatModel(teacher, methods=[method])


def test_configs_make_equal_methods():
    assert OscillationDampening.from_config(OscillationDampening(0.3).get_config()).weight == 0.3
    again = OscillationFreezing.from_config(OscillationFreezing(0.3, 0.2).get_config())
    assert (again.threshold, again.momentum) == (0.3, 0.2)


def dense_student(quantizer, bits=4):
    """Eight inputs, four channels, with large weights: 1.7 to 5, where a tanh saturates."""
    image = keras.Input((8,), name="image")
    model = keras.Model(image, keras.layers.Dense(4, name="logits")(image))
    generator = np.random.default_rng(0)
    kernel = generator.uniform(1.7, 5.0, (8, 4)) * generator.choice([-1, 1], (8, 4))
    model.set_weights([kernel, np.zeros(4)])
    rule = tf_fpq.QuantRule(".*", weight_bits=bits, activation_bits=8)
    student = tf_fpq.quantize_model(model, [rule], quantizer=quantizer)
    tf_fpq.calibrate(student, generator.normal(size=(32, 8)).astype("float32"), verbose=0)
    return student, kernel


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("quantizer", ["lsq", "dorefa", "pact"])
def test_frozen_integers_never_change_whatever_the_quantizer(quantizer, bits):
    student, kernel = dense_student(quantizer, bits)
    method = OscillationFreezing(threshold=0.05, momentum=0.1)
    QatModel(student, methods=[method])
    weight = method._weights[0]
    if quantizer in ("dorefa", "pact"):
        weight.variable.assign(kernel)
    generator = np.random.default_rng(1)
    held = {}
    for step in range(40):
        # An optimizer that throws all weights about, frozen ones too; later all smaller.
        noise = generator.normal(size=kernel.shape) * (0.5 if step < 20 else 0.1)
        weight.variable.assign_add(noise - (0.02 * weight.variable.numpy() if step > 20 else 0))
        method.after_update()
        codes = weight.codes().numpy()
        for index, code in held.items():
            assert codes[index] == code, (step, index)
        for index in zip(*np.nonzero(method.frozen[0].numpy()), strict=True):
            held.setdefault(index, codes[index])
    assert len(held) > 4 and len(set(held.values())) > 1
    assert len(held) > 8 or bits == 2
    assert np.isfinite(weight.variable.numpy()).all()
    if quantizer != "lsq":
        assert not method.frozen[0].numpy().all(axis=0).any()  # each channel's largest is free


def test_frozen_integers_stay_where_the_range_is_observed():
    student, kernel = dense_student("min_max")
    method = OscillationFreezing(threshold=0.0, momentum=0.5)
    QatModel(student, methods=[method])
    weight = method._weights[0]
    generator = np.random.default_rng(1)
    # Weights between two integers, so that small steps make them oscillate; one of each channel is
    # larger than all and stays.
    step = np.abs(kernel).max(axis=0) / 7
    start = np.where(np.abs(kernel) < np.abs(kernel).max(axis=0), 2.5 * step, kernel)
    held = {}
    for _ in range(30):
        noise = 0.05 * step * generator.normal(size=kernel.shape)
        weight.variable.assign(np.where(method.frozen[0], weight.variable, start) + noise)
        method.after_update()
        held.update({i: 0.0 for i in zip(*np.nonzero(method.frozen[0].numpy())) if i not in held})
        # The forward pass of the next step observes the range.
        weight.quantizer(tf.convert_to_tensor(weight.variable), True, weight.variables)
        codes = weight.codes().numpy()
        held = {index: code or codes[index] for index, code in held.items()}
        assert all(codes[index] == code for index, code in held.items())
    assert len(held) == 28 and not method.frozen[0].numpy().all(axis=0).any()


@pytest.mark.parametrize("quantizer", ["lsq", "dorefa", "pact"])
def test_dampening_pulls_what_is_rounded_to_the_middle_of_its_bin(quantizer):
    student, kernel = dense_student(quantizer)
    weight = weights_of_student(student)[0]
    if quantizer != "lsq":
        weight.variable.assign(kernel)
    method = OscillationDampening(1.0)
    codes = weight.codes().numpy()
    step = weight.quantizer.grid(weight.variables)[0].numpy()

    def distances():
        values = weight.quantizer.unrounded(tf.convert_to_tensor(weight.variable), weight.variables)
        return np.abs(np.clip(values / step, -7, 7) - codes)

    before = distances()
    for _ in range(50):
        with tf.GradientTape() as tape:
            loss = method([weight])
        if _ == 0:
            np.testing.assert_allclose(loss, np.sum((before * step) ** 2), rtol=1e-4)
        gradient = tape.gradient(loss, weight.variable)
        weight.variable.assign_sub(0.2 * gradient)
    assert distances().mean() < before.mean()
    np.testing.assert_array_equal(weight.codes().numpy(), codes)
