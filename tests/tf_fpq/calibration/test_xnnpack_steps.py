"""Steps that are too small beside others are raised, and only those."""

import numpy as np
import pytest

import tf_fpq
from tf_fpq.calibration import xnnpack_steps
from tf_fpq.keras_compat import keras

layers = keras.layers


def calibrated(branch: float):
    image = keras.Input((4, 4, 2), name="image")
    x = layers.Conv2D(2, 1, name="conv", kernel_initializer="ones")(image)
    small = layers.Rescaling(branch, name="small")(x)
    model = keras.Model(image, layers.Add(name="sum")([layers.ReLU(name="relu")(x), small]))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    tf_fpq.calibrate(
        student, np.random.default_rng(0).normal(0, 1, (16, 4, 4, 2)).astype(np.float32), verbose=0
    )
    return student


def step(student, name):
    layer = student.get_layer(f"{name}_quantize")
    return float(layer.quantizer.grid(layer.variables_of_quantizer)[0])


def test_an_operand_far_below_the_sums_step_gets_a_step_that_xnnpack_takes():
    student = calibrated(1e-8)
    ratio = step(student, "small") / step(student, "sum")
    assert ratio == pytest.approx(xnnpack_steps.LOWEST_OF_SUM, rel=0.01)
    assert ratio >= xnnpack_steps.LOWEST_OF_SUM
    assert xnnpack_steps.raise_small_steps(student) == []


def test_usual_steps_stay(monkeypatch):
    student = calibrated(0.5)
    before = student.get_weights()
    assert xnnpack_steps.raise_small_steps(student) == []
    assert all(
        np.array_equal(old, new) for old, new in zip(before, student.get_weights(), strict=True)
    )


def set_step(student, name, value):
    layer = student.get_layer(f"{name}_quantize")
    zero_point = layer.quantizer.grid(layer.variables_of_quantizer)[1]
    layer.quantizer.set_grid(
        layer.variables_of_quantizer, np.float32(value), np.asarray(zero_point)
    )


def test_an_output_finer_than_its_operands_allow_is_raised():
    student = calibrated(0.5)
    set_step(student, "sum", 1e-9)
    assert xnnpack_steps.raise_small_steps(student) == ["sum_quantize"]
    assert step(student, "small") / step(student, "sum") <= xnnpack_steps.HIGHEST


@pytest.mark.parametrize(("steps", "output"), [((1.0, 1e-9), 1.0), ((1.0, 1.0), 1e-9)])
def test_products(steps, output):
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    product = layers.Multiply(name="product")([a, b])
    model = keras.Model([a, b], layers.Dense(1, name="dense")(product))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    for name, value in (("a", steps[0]), ("b", steps[1]), ("product", output)):
        set_step(student, name, value)
    assert len(xnnpack_steps.raise_small_steps(student)) == 1
    ratio = step(student, "a") * step(student, "b") / step(student, "product")
    assert xnnpack_steps.LOWEST_OF_PRODUCT <= ratio <= xnnpack_steps.HIGHEST


def product_and_its_operand_on_one_grid():
    a = keras.Input((2,), name="a")
    product = layers.Multiply(name="product")([a, a])
    doubled = layers.Add(name="doubled")([product, product])
    joined = layers.Concatenate(name="joined")([a, doubled])
    model = keras.Model(a, layers.Dense(1, name="dense")(joined))
    return tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])


def test_grids_that_raise_each_other_in_a_circle_are_left_alone():
    student = product_and_its_operand_on_one_grid()
    (shared,) = [
        name
        for name in ("a", "joined", "doubled")
        if f"{name}_quantize" in {x.name for x in student.layers}
    ]
    set_step(student, shared, 1e6)
    before = student.get_weights()
    assert xnnpack_steps.raise_small_steps(student) == []
    assert all(
        np.array_equal(old, new) for old, new in zip(before, student.get_weights(), strict=True)
    )


def test_a_product_on_the_grid_of_its_own_operand_is_left_alone():
    a = keras.Input((2,), name="a")
    square = layers.Multiply(name="square")([a, a])
    model = keras.Model(
        a, layers.Dense(1, name="dense")(layers.Concatenate(name="joined")([a, square]))
    )
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    tf_fpq.calibrate(
        student, np.random.default_rng(0).normal(0, 1e5, (16, 2)).astype(np.float32), verbose=0
    )
    assert all(np.isfinite(value).all() for value in student.get_weights())
    assert xnnpack_steps.raise_small_steps(student) == []
