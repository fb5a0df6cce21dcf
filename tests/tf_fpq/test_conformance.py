"""Every quantizer keeps every promise: the rows of `quantizer_rows.py` against the properties below."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import tf_fpq
from tests.tf_fpq import small_student
from tests.tf_fpq.quantizer_rows import ROWS, Case, Row, nothing_moves, reach
from tf_fpq import calibration, quantize_config
from tf_fpq.estimators import Samples
from tf_fpq.keras_compat import keras
from tf_fpq.layers import QuantizeActivation, QuantizedLayer, quantizer_variables
from tflite_export.deploy import deploy

SHAPES = {"weight": (3, 3, 2, 4), "activation": (5, 4, 4, 3)}
# Granularities: per tensor, a convolution's, a depthwise convolution's, a Dense layer's; activations per tensor or channel.
GRIDS = [("weight", None), ("weight", (3,)), ("weight", (2, 3)), ("activation", None), ("activation", (-1,))]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request) -> Row:
    return request.param


class Built:
    """A quantizer with its variables."""

    def __init__(self, quantizer, shape, of_weight):
        self.quantizer, self.layer, self.of_weight = quantizer, keras.layers.Layer(), of_weight
        build_shape = shape if of_weight else (None, *shape[1:])
        self.variables = quantizer.build(tf.TensorShape(build_shape), "x", self.layer)

    @classmethod
    def of(cls, row, kind, axis=None, num_bits=4, shape=None):
        of_weight = kind == "weight"
        quantizer = row.weight(num_bits, axis) if of_weight else row.activation(num_bits, axis)
        return cls(quantizer, shape or SHAPES[kind], of_weight)

    def set(self, s, z):
        self.quantizer.set_grid(self.variables, np.asarray(s, np.float32), np.asarray(z, np.float32))
        return self

    def __call__(self, x, training=False):
        return self.quantizer(tf.convert_to_tensor(x), training, self.variables)

    def codes(self, x):
        return self.quantizer.codes(tf.convert_to_tensor(x), self.variables).numpy()

    def grid(self):
        return tuple(np.asarray(part) for part in self.quantizer.grid(self.variables))

    def gradients(self, x, g, training=False):
        """Value, and gradients of `sum(g * quantizer(x))` by name."""
        x = tf.convert_to_tensor(x)
        learned = {name: v for name, v in self.variables.items() if v.trainable}
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self(x, training)
        found = tape.gradient(y, {"x": x, **learned}, output_gradients=tf.cast(g, y.dtype))
        return y.numpy(), {name: value.numpy() for name, value in found.items()}


def _data(kind, seed=0, shape=None):
    random = np.random.default_rng(seed)
    shape = shape or SHAPES[kind]
    return random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(np.float32)


def _case(row, kind, axis, num_bits=4, shape=None):
    """A quantizer on a grid of its own for every channel that clips some values on both sides, and its data."""
    x, g = _data(kind, shape=shape)
    built = Built.of(row, kind, axis, num_bits, x.shape)
    spec = built.quantizer.spec
    places = spec.step_shape(x.shape)
    s = (
        np.random.default_rng(1).uniform(1.0, 1.5, places).astype(np.float32)
        / spec.qmax
        * (1 if kind == "weight" else 2)
    )
    z = np.zeros(places) if kind == "weight" else np.random.default_rng(2).integers(1, spec.qmax, places)
    built.set(s, z)
    return built, x, g


# ---- values ----


def test_golden_activation_codes(row):
    # s = 1/2, z = 3, 4 bits: the range is -1.5 .. 6.
    values = [-9.0, -1.5, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 5.75, 6.0, 99.0]
    # Saturated; the lowest; ties at -1.5, -0.5, 0.5, 1.5, 2.5 and 11.5 steps go to the even step; the highest; saturated.
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
        # -3.5 would go to -4, which a narrow range does not have; -2.5, -1.5, 0.5, 1.5 and 2.5 go to the even step.
        expected = [-3, -3, -2, -2, 0, 0, 2, 2, 3]
        second = first * 4
    else:
        # tanh: 3 * 0.9, 0.3, 0.5, -0.9 of the largest.
        first = np.arctanh([0.8, -0.8, 0.72, 0.24, 0.0, 0.4001, -0.72, -0.24, 0.1]).astype(np.float32)
        expected = [3, -3, 3, 1, 0, 2, -3, -1, 0]
        second = first
    built_codes = built.codes(np.stack([first, second], axis=1))
    np.testing.assert_array_equal(built_codes, np.stack([expected, expected], axis=1))


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("kind, axis", GRIDS)
def test_output_is_exactly_on_the_exported_grid(row, kind, axis, num_bits):
    built, x, _ = _case(row, kind, axis, num_bits)
    codes, (s, z), spec = built.codes(x * 3), built.grid(), built.quantizer.spec
    np.testing.assert_array_equal(built(x * 3).numpy(), s * (codes - z))
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert codes.min() == spec.qmin and codes.max() == spec.qmax
    if kind == "weight":
        assert not z.any() and (codes.min(), codes.max()) == (-(2 ** (num_bits - 1) - 1), 2 ** (num_bits - 1) - 1)
    else:
        assert (spec.qmin, spec.qmax) == (0, 2**num_bits - 1)


@pytest.mark.parametrize("axis", [None, (3,), (2, 3)])
def test_each_channel_has_its_own_grid(row, axis):
    built, x, _ = _case(row, "weight", axis)
    s, _ = built.grid()
    places = np.ndindex(*(x.shape[a] for a in axis or ()))
    codes = built.codes(x)
    for place in places:
        elements = [slice(None)] * 4
        step = [0] * 4
        for a, index in zip(axis or (), place):
            elements[a], step[a] = index, index
        step_size = s[tuple(step)] if axis else s
        np.testing.assert_array_equal(codes[tuple(elements)], row.weight_codes(x[tuple(elements)], step_size, 7))


def test_set_grid_is_read_back_by_grid(row):
    for kind, axis in GRIDS:
        built, x, _ = _case(row, kind, axis)
        places = built.quantizer.spec.step_shape(x.shape)
        s = np.linspace(0.1, 0.9, int(np.prod(places))).reshape(places)
        z = np.zeros(places) if kind == "weight" else np.arange(np.prod(places)).reshape(places) + 2
        built.set(s, z)
        got_s, got_z = built.grid()
        np.testing.assert_allclose(got_s, s, rtol=1e-6)
        np.testing.assert_array_equal(got_z, z)


def test_grid_is_deployable_whatever_training_did(row):
    for kind, axis in GRIDS:
        built, x, _ = _case(row, kind, axis)
        for seed, variable in enumerate(built.variables.values()):
            if variable.trainable:
                variable.assign(variable * np.random.default_rng(seed).uniform(0.6, 1.4, variable.shape))
        (s, z), spec = built.grid(), built.quantizer.spec
        assert (s > 0).all() and (z == np.rint(z)).all() and (z >= spec.qmin).all() and (z <= spec.qmax).all()
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))


def test_moving_ranges_give_deployable_grids(row):
    for kind, axis in GRIDS:
        built, x, _ = _case(row, kind, axis)
        for seed in range(3):
            built(1.7 * _data(kind, seed)[0], training=True)
        (s, z), spec = built.grid(), built.quantizer.spec
        assert (s > 0).all() and (z == np.rint(z)).all() and (z >= spec.qmin).all() and (z <= spec.qmax).all()
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))


def test_an_observed_weight_range_reaches_the_largest_weight_of_either_sign(row):
    if row.observes is nothing_moves:
        return  # its steps are learned
    for axis in (None, (3,), (2, 3)):
        for sign in (1, -1):
            built, x, g = _case(row, "weight", axis)
            x = np.where(sign * x > 0, x, 0.5 * x)
            built(x, training=True)
            np.testing.assert_allclose(built.grid()[0] * 7, reach(_reference_case(row, built, x, g)), rtol=1e-5)


def test_zero_is_exact(row):
    for kind, axis in GRIDS:
        built, x, _ = _case(row, kind, axis)
        assert not built(np.zeros_like(x)).numpy().any()


def test_one_element_channels(row):
    built, x, g = _case(row, "weight", (3,), shape=(1, 1, 1, 6))
    y, gradients = built.gradients(x, g)
    s, _ = built.grid()
    expected = [row.weight_codes(w.reshape(1), s[0, 0, 0, i], 7)[0] for i, w in enumerate(x.ravel())]
    np.testing.assert_array_equal(built.codes(x).ravel(), expected)
    _assert_gradients(row, built, x, g, gradients)
    assert np.isfinite(y).all()


def test_infinity_saturates_and_leaves_gradients_finite(row):
    built = Built.of(row, "activation", shape=(2, 2)).set(0.5, 3)
    y, gradients = built.gradients(np.array([[np.inf, -np.inf], [1, 2]], np.float32), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(y, [[6, -1.5], [1, 2]])
    assert all(np.isfinite(value).all() for value in gradients.values())


# ---- gradients ----


def _reference_case(row, built, x, g):
    s, z = (part.astype(np.float64) for part in built.grid())
    variables = {name: v.numpy().astype(np.float64) for name, v in built.variables.items()}
    x, g, z = x.astype(np.float64), g.astype(np.float64), np.broadcast_to(z, s.shape)
    return Case(x, g, s, z, built.quantizer.spec, built.of_weight, variables, row.options)


def _assert_gradients(row, built, x, g, gradients):
    expected = row.gradients(_reference_case(row, built, x, g))
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_a_training_call_updates_what_it_observes_and_an_inference_call_nothing(row):
    for kind, axis in GRIDS:
        built, x, g = _case(row, kind, axis)
        case = _reference_case(row, built, x, g)
        for training, expected in ((False, case.variables), (None, case.variables), (True, row.observes(case))):
            built(x, training=training)
            assert set(expected) == set(built.variables)
            for name, value in expected.items():
                np.testing.assert_allclose(built.variables[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("kind, axis", GRIDS)
def test_gradients_are_the_papers(row, kind, axis, num_bits):
    built, x, g = _case(row, kind, axis, num_bits)
    _, gradients = built.gradients(x, g)
    learns = row.learns[0] if kind == "weight" else row.learns[1]
    assert set(gradients) == {"x", *learns}
    assert all(np.any(value) for value in gradients.values())
    _assert_gradients(row, built, x, g, gradients)


def test_gradients_do_not_depend_on_the_batch_size_beyond_the_sum(row):
    built, x, g = _case(row, "activation", None)
    once, twice = built.gradients(x, g)[1], built.gradients(np.tile(x, (2, 1, 1, 1)), np.tile(g, (2, 1, 1, 1)))[1]
    for name in set(once) - {"x"}:
        np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-4)


def test_unknown_sizes_have_the_same_gradients(row):
    built, x, g = _case(row, "activation", (-1,))
    _, known = built.gradients(x, g)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 3))])
    def unknown(x, g):
        learned = [v for v in built.variables.values() if v.trainable]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = built.quantizer(x, False, built.variables)
        return tape.gradient(y, [x, *learned], output_gradients=g)

    for got, expected in zip(unknown(x, g), known.values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_second_derivatives_exist(row):
    built, x, _ = _case(row, "weight", (3,))
    x, vector = tf.constant(x), tf.constant(_data("weight", 5)[0])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tf.exp(0.3 * built(x)))
        product = tf.reduce_sum(inner.gradient(loss, x) * vector)
    curved = outer.gradient(product, x)
    assert curved is not None and np.isfinite(curved).all() and np.any(curved)


def test_an_all_zero_channel_neither_divides_by_zero_nor_trains_to_nan(row):
    x, g = _data("weight")
    x[..., 1] = 0.0
    for axis in (None, (3,), (2, 3)):
        built = Built.of(row, "weight", axis)
        _start(built, x)
        s, _ = built.grid()
        assert (s > 0).all()
        if axis == (3,):
            assert s[0, 0, 0, 1] == pytest.approx(s.max(), rel=1e-5)
        values = tf.Variable(x)
        for _ in range(5):
            learned = {name: v for name, v in built.variables.items() if v.trainable}
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(built.quantizer(values, True, built.variables) - 0.1 * g))
            gradients = tape.gradient(loss, {"x": values, **learned})
            for variable, gradient in zip([values, *learned.values()], gradients.values(), strict=True):
                variable.assign_sub(0.05 * gradient)
        assert np.isfinite(values).all() and np.any(values.numpy()[..., 1])
        assert all(np.isfinite(v).all() for v in built.variables.values())
        zeros = Built.of(row, "weight", axis)
        _start(zeros, np.zeros_like(x))
        y, gradients = zeros.gradients(np.zeros_like(x), g, training=True)
        assert not y.any() and all(np.isfinite(value).all() for value in gradients.values())
        assert np.all(zeros.grid()[0] > 1e-6)


def _start(built, x, estimator="mse"):
    spec = built.quantizer.spec
    samples = Samples.of(calibration._by_grid(x, spec))
    s, z = calibration.estimate(samples, built.quantizer, estimator)
    built.quantizer.set_grid(built.variables, s.reshape(spec.step_shape(x.shape)), z.reshape(spec.step_shape(x.shape)))


def test_learned_steps_are_reflected_where_they_cross_zero(row):
    for kind in ("weight", "activation"):
        built, x, _ = _case(row, kind, None)
        before, _ = built.grid()
        for variable in built.variables.values():
            if variable.trainable:
                variable.assign(-variable)
        s, z = built.grid()
        assert s == before > 0
        np.testing.assert_array_equal(built(x).numpy(), s * (built.codes(x) - z))


# ---- null cases and arguments ----


def test_a_value_on_the_grid_stays_there(row):
    for kind, axis in GRIDS:
        if kind == "weight" and row.weight_codes.__name__ == "tanh_codes":
            continue  # tanh moves every value but 0 and the largest
        built, x, _ = _case(row, kind, axis)
        once = built(x)
        np.testing.assert_array_equal(built(once), once)


def _fingerprint(row, arguments, of_weight):
    """All that a quantizer does: values, gradients, losses and moved variables, as bytes."""
    kind = "weight" if of_weight else "activation"
    x, g = _data(kind)
    built = Built(row.quantizer(**arguments), x.shape, of_weight)
    _start(built, x * 0.5)
    parts = []
    for training in (False, True):
        y, gradients = built.gradients(x, g, training)
        parts += [y, *gradients.values(), *(v.numpy() for v in built.variables.values())]
    parts += [np.asarray(loss) for loss in built.layer.losses]
    return [part.tobytes() for part in parts]


def test_every_argument_is_alive(row):
    changes = {"num_bits": 3, "symmetric": False, "narrow_range": False, "axis": [2, 3], **row.others}
    weight = row.weight(4, (3,)).get_config()
    activation = row.activation(4).get_config()
    assert set(changes) == set(weight) == set(activation)
    for name, value in changes.items():
        alive = []
        for start, of_weight in ((weight, True), (activation, False)):
            changed = {**start, name: value}
            if changed == start:
                continue
            try:
                alive.append(_fingerprint(row, changed, of_weight) != _fingerprint(row, start, of_weight))
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
        again = type(quantizer).from_config(quantizer.get_config())
        assert again == quantizer and hash(again) == hash(quantizer)
        assert quantizer.replace(num_bits=2) != quantizer


# ---- precision and execution ----


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(row, dtype):
    for kind, axis in GRIDS:
        built, x, g = _case(row, kind, axis)
        half = tf.cast(x, dtype)
        y = built(half)
        assert y.dtype == dtype
        single = built(tf.cast(half, tf.float32))
        np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(tf.cast(single, dtype), tf.float32))
        _, gradients = built.gradients(half, g)
        assert gradients.pop("x").dtype == tf.as_dtype(dtype).as_numpy_dtype
        assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in gradients.values())


@pytest.mark.parametrize("kind, axis", [("weight", (3,)), ("activation", None)])
def test_graph_eager_and_xla_agree(row, kind, axis):
    built, x, g = _case(row, kind, axis)

    def step(x, g):
        learned = [v for v in built.variables.values() if v.trainable]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = built.quantizer(x, True, built.variables)
        return [y, *tape.gradient(y, [x, *learned], output_gradients=g), *map(tf.identity, built.variables.values())]

    start = [v.numpy() for v in built.variables.values()]
    results = []
    for run in (step, tf.function(step), tf.function(step, jit_compile=True)):
        for variable, value in zip(built.variables.values(), start, strict=True):
            variable.assign(value)
        results.append([np.asarray(part) for part in run(tf.constant(x), tf.constant(g))])
    for eager, other in itertools.product(results[:1], results[1:]):
        for a, b in zip(eager, other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


# ---- in a network ----


def _network():
    """A convolution with batch norm and ReLU, and a Dense layer."""
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv")(image)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(image, keras.layers.Dense(4, name="logits")(x))


def _student(row, bits=4, calibrated=True, network=_network):
    keras.utils.set_random_seed(0)
    student = tf_fpq.quantize_model(network(), [tf_fpq.QuantRule(weight_bits=bits, activation_bits=bits)], row.name)
    if calibrated:
        tf_fpq.calibrate(student, small_student.images(), verbose=0)
    return student


def _activations(student):
    return [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]


def test_one_training_step_moves_every_variable(row):
    student = _student(row)
    for layer in _activations(student):  # tighter, so that every range clips
        s, z = (np.asarray(part) for part in layer.quantizer.grid(layer.variables_of_quantizer))
        layer.quantizer.set_grid(layer.variables_of_quantizer, s * 0.1, z)
    # A second step on other weights, as a range that was measured on the same ones stays.
    before = {id(v): v.numpy() for v in student.weights}
    small_student.fit(student, epochs=1, learning_rate=0.02)
    still = [v.name for v in student.weights if np.array_equal(v, before[id(v)])]
    frozen = ("zero_point", "delta")
    if row.name in ("dorefa", "pact"):
        frozen = (*frozen, "step_size")
    assert [name for name in still if not any(part in name for part in frozen)] in ([], _never_negative(row, still))
    assert {v.name for v in quantizer_variables(student)} == {
        v.name for v in student.trainable_variables if any(f"_{n}:" in v.name for n in row.learns[0] | row.learns[1])
    }


def _never_negative(row, still):
    """Ranges of tensors that have no negative value, whose lower end stays 0."""
    return [name for name in still if "range_min" in name] if row.name == "min_max" else []


@pytest.mark.parametrize(
    "file_format", ["keras", "h5_weights", pytest.param("saved_model", marks=pytest.mark.slow), "checkpoint"]
)
def test_serialization(row, file_format, tmp_path):
    student = _student(row)
    for index, variable in enumerate(student.weights):  # nothing has the value that it would start with
        variable.assign(variable * (1 + 0.01 * (index % 7)))
    x = small_student.images()
    expected = student(x).numpy()
    if file_format == "keras":
        student.save(tmp_path / "s.keras")
        restored = keras.models.load_model(tmp_path / "s.keras")
    elif file_format == "saved_model":
        student.save(tmp_path / "s", save_format="tf")
        restored = keras.models.load_model(tmp_path / "s")
    else:
        restored = _student(row, calibrated=False)
        assert not np.array_equal(restored(x), expected)
        if file_format == "h5_weights":
            student.save_weights(tmp_path / "w.h5")
            restored.load_weights(tmp_path / "w.h5")
        else:
            path = tf.train.Checkpoint(student).write(str(tmp_path / "c"))
            tf.train.Checkpoint(restored).read(path).assert_consumed()
    np.testing.assert_array_equal(restored(x), expected)
    assert [v.shape for v in restored.weights] == [v.shape for v in student.weights]
    for ours, theirs in zip(_activations(student), _activations(restored), strict=True):
        assert ours.quantizer == theirs.quantizer


def test_export_keeps_the_codes(row):
    student = _student(row, 4, network=small_student.network)
    for seed, variable in enumerate(student.trainable_variables):  # as if trained: on no grid, gammas of both signs
        variable.assign(variable + np.random.default_rng(seed).normal(0.0, 0.1, variable.shape))
    gamma = student.get_layer("stem_bn").gamma
    gamma.assign(gamma * np.tile([1.0, -1.0], 4))
    tensors = deploy(student).tensors
    kernels = [layer for layer in student.layers if isinstance(layer, QuantizedLayer)]
    assert [layer.name for layer in kernels] == ["stem", "depthwise", "pointwise", "logits"]
    for layer in kernels:
        ((_, weight, quantizer, variables),) = layer.quantized_weights()
        codes = quantizer.codes(weight, variables).numpy()
        exported = tensors[f"{layer.name}_kernel"].data
        back = {"depthwise": (1, 2, 3, 0), "logits": (1, 0)}.get(layer.name, (1, 2, 3, 0))
        signs = np.tile([1, -1], 4) if layer.name == "stem" else 1
        np.testing.assert_array_equal(exported.transpose(back), codes * signs)
        assert 0 < np.abs(codes).max() <= 7
    for layer in _activations(student):
        s, z = layer.quantizer.grid(layer.variables_of_quantizer)
        tensor = next(t for name, t in tensors.items() if name.startswith(layer.name))
        assert tensor.scale == np.float32(s)
        assert tensor.zero_point == 127 - layer.quantizer.spec.qmax + int(z)


# ---- tfmot ----


def test_quantize_config_in_plain_tfmot_code(row, tmp_path):
    config_class = quantize_config.QUANTIZE_CONFIGS[row.name]
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = annotate(keras.layers.Conv2D(4, 3, activation="relu"), config_class(weight_bits=4, activation_bits=4))(inputs)
    x = keras.layers.Flatten()(x)
    outputs = annotate(keras.layers.Dense(4), config_class(weight_bits=8, activation_bits=8))(x)
    with tfmot.quantization.keras.quantize_scope({config_class.__name__: config_class}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(inputs, outputs))
    calibration.start_weights(model)
    learned = [v for v in model.trainable_variables if "step_size" in v.name or "alpha" in v.name or "offset" in v.name]
    assert bool(learned) == bool(row.learns[0] | row.learns[1])
    before = [v.numpy() for v in model.trainable_variables]
    small_student.fit(model, epochs=1)
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True))
    weight, quantizer, variables = next(layer for layer in model.layers if "conv" in layer.name)._weight_vars[0]
    codes = quantizer.codes(weight, variables).numpy()
    assert np.abs(codes).max() <= 7 and len(np.unique(codes)) > 6
    model.save_weights(tmp_path / "w.h5")


def test_quantize_config_with_the_fpq_scheme(row):
    config_class = quantize_config.QUANTIZE_CONFIGS[row.name]
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = annotate(keras.layers.Conv2D(4, 3, name="conv"), config_class(weight_bits=4, activation_bits=4))(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = annotate(keras.layers.Dense(4, name="dense"), config_class(weight_bits=8, activation_bits=8))(x)
    with tfmot.quantization.keras.quantize_scope({config_class.__name__: config_class}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(inputs, outputs), scheme=tf_fpq.FpqQuantizeScheme())
    tf_fpq.calibrate(model, small_student.images(), weight_estimator="mse", verbose=0)
    assert {type(layer.quantizer) for layer in _activations(model)} == {row.quantizer}
    assert deploy(model).operators
