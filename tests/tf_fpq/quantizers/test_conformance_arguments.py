"""No argument of a quantizer is dead or unchecked, and neither precision nor execution mode changes
what it computes."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.quantizers.conformance import GRIDS, Built, case, data, start
from tf_fpq.keras_compat import deserialize, serialize


def test_a_value_on_the_grid_stays_there(row):
    for kind, axis in GRIDS:
        if kind == "weight" and row.weight_codes.__name__ == "tanh_codes":
            continue  # tanh moves every value but 0 and the largest
        built, x, _ = case(row, kind, axis)
        once = built(x)
        np.testing.assert_array_equal(built(once), once)


def _fingerprint(row, arguments, of_weight):
    """All that a quantizer does: values, gradients, losses and moved variables, as bytes."""
    kind = "weight" if of_weight else "activation"
    x, g = data(kind)
    built = Built(row.quantizer(**arguments), x.shape, of_weight)
    start(built, x * 0.5)
    parts = []
    for training in (False, True):
        y, gradients = built.gradients(x, g, training)
        parts += [y, *gradients.values(), *(v.numpy() for v in built.variables.values())]
    parts += [np.asarray(loss) for loss in built.layer.losses]
    return [part.tobytes() for part in parts]


def test_every_argument_is_alive(row):
    changes = {
        "num_bits": 3,
        "symmetric": False,
        "narrow_range": False,
        "axis": [2, 3],
        **row.others,
    }
    weight = row.weight(4, (3,)).get_config()
    activation = row.activation(4).get_config()
    assert set(changes) == set(weight) == set(activation)
    for name, value in changes.items():
        alive = []
        for usual, of_weight in ((weight, True), (activation, False)):
            changed = {**usual, name: value}
            if changed == usual:
                continue
            try:
                alive.append(
                    _fingerprint(row, changed, of_weight) != _fingerprint(row, usual, of_weight)
                )
            except ValueError as error:
                assert f"{name}=" in str(error)  # refused: alive as well
                alive.append(True)
        assert any(alive), name


def test_arguments_are_validated_and_attributes_of_the_same_name(row):
    for name, value in row.others.items():
        quantizer = row.quantizer(4, **{name: value})
        assert getattr(quantizer, name) == value
        with pytest.raises(ValueError, match=f"Received: {name}=-1"):
            row.quantizer(4, **{name: -1})
    for num_bits in (1, 9, 4.0, True, None):
        with pytest.raises(ValueError, match=f"Received: num_bits={num_bits}"):
            row.quantizer(num_bits)


def test_config_makes_an_equal_quantizer(row):
    for quantizer in (row.weight(3, (3,)), row.activation(5)):
        again = deserialize(serialize(quantizer))
        assert again == quantizer and hash(again) == hash(quantizer)
        assert quantizer.replace(num_bits=2) != quantizer


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(row, dtype):
    for kind, axis in GRIDS:
        built, x, g = case(row, kind, axis)
        half = tf.cast(x, dtype)
        y = built(half)
        assert y.dtype == dtype
        single = built(tf.cast(half, tf.float32))
        np.testing.assert_array_equal(
            tf.cast(y, tf.float32), tf.cast(tf.cast(single, dtype), tf.float32)
        )
        _, gradients = built.gradients(half, g)
        assert gradients.pop("x").dtype == tf.as_dtype(dtype).as_numpy_dtype
        assert all(
            value.dtype == np.float32 and np.isfinite(value).all() for value in gradients.values()
        )


@pytest.mark.parametrize("kind, axis", [("weight", (3,)), ("activation", None)])
def test_graph_eager_and_xla_agree(row, kind, axis):
    built, x, g = case(row, kind, axis)

    def step(x, g):
        learned = [v for v in built.variables.values() if v.trainable]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = built.quantizer(x, True, built.variables)
        return [
            y,
            *tape.gradient(y, [x, *learned], output_gradients=g),
            *map(tf.identity, built.variables.values()),
        ]

    start = [v.numpy() for v in built.variables.values()]
    results = []
    for run in (step, tf.function(step), tf.function(step, jit_compile=True)):
        for variable, value in zip(built.variables.values(), start, strict=True):
            variable.assign(value)
        results.append([np.asarray(part) for part in run(tf.constant(x), tf.constant(g))])
    for eager, other in itertools.product(results[:1], results[1:]):
        for a, b in zip(eager, other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
