"""The two layers of a student: they save in every format, train, freeze, clone and keep to
float32."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.integration.exactness import images_for, randomize, student_of
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import LsqQuantizeConfig
from tf_fpq.quantizers import LsqQuantizer
from tf_fpq.student_layers import quantized_layers as fpq_layers
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer

layers = keras.layers
TARGETS = np.eye(3, dtype=np.float32)[np.arange(8) % 3]


def _network(**arguments):
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv", **arguments)(image)
    skip = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Add()([layers.DepthwiseConv2D(3, padding="same", name="depthwise")(skip), skip])
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(x)
    x = layers.Dense(3, activation="softmax", name="dense")(layers.GlobalAveragePooling2D()(x))
    return randomize(keras.Model(image, x))


@pytest.fixture(scope="module")
def trained():
    """A student after two steps with Adam."""
    keras.utils.set_random_seed(0)
    student = student_of(_network(), 4, 4)
    student.compile("adam", "categorical_crossentropy")
    student.fit(images_for(student), TARGETS, epochs=2, verbose=0)
    return student


@pytest.mark.parametrize("name", ["student.keras", "student.h5", "student"])
def test_every_format_loads_bit_equal_and_goes_on_training_alike(trained, tmp_path, name):
    trained.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    x = images_for(trained)
    np.testing.assert_array_equal(loaded(x), trained(x))
    for kind in ("weights", "trainable_weights", "non_trainable_weights"):
        ours, theirs = getattr(loaded, kind), getattr(trained, kind)
        assert [w.name for w in ours] == [w.name for w in theirs]
        for left, right in zip(ours, theirs):
            np.testing.assert_array_equal(left, right)
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in trained.layers]
    if name != "student":  # Keras does not restore the optimizer of a SavedModel bit for bit
        ours = keras.models.load_model(tmp_path / name)
        for model in (loaded, ours):
            assert model.optimizer.iterations.numpy() == 2
            model.fit(x, TARGETS, shuffle=False, verbose=0)
        np.testing.assert_array_equal(loaded(x), ours(x))
        assert np.any(loaded(x) != trained(x))


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "checkpoint"])
def test_weights_alone(trained, tmp_path, name):
    trained.save_weights(tmp_path / name)
    other = student_of(_network(), 4, 4)
    x = images_for(trained)
    assert np.any(other(x) != trained(x))
    other.load_weights(tmp_path / name)
    np.testing.assert_array_equal(other(x), trained(x))


def test_one_format_after_another(trained, tmp_path):
    x, student = images_for(trained), trained
    for name in ("a.keras", "b.h5", "c.keras"):
        student.save(tmp_path / name)
        student = keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(student(x), trained(x))


@pytest.mark.parametrize(
    "name", ["a.keras", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a.h5", "saved"))]
)
def test_a_process_that_imports_tf_fpq_alone_loads_it(trained, tmp_path, name):
    np.savez(tmp_path / "data.npz", x=images_for(trained), y=trained(images_for(trained)))
    trained.save(tmp_path / name)
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import numpy as np, tf_fpq, tf_keras\n"
        "data = np.load('data.npz')\n"
        f"assert np.array_equal(tf_keras.models.load_model({name!r})(data['x']), data['y'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_clones_and_configs(trained):
    clone = keras.models.clone_model(trained)
    clone.set_weights(trained.get_weights())
    x = images_for(trained)
    np.testing.assert_array_equal(clone(x), trained(x))
    again = keras.Model.from_config(trained.get_config())
    again.set_weights(trained.get_weights())
    np.testing.assert_array_equal(again(x), trained(x))


def test_freezing_a_layer_or_the_model():
    student = student_of(_network())
    count = len(student.trainable_weights)
    assert not student.get_layer("image_quantize").trainable
    conv = student.get_layer("conv")
    conv.trainable = False
    assert len(student.trainable_weights) == count - 3  # kernel, bias and step size
    before = [np.array(w) for w in conv.weights]  # `numpy()` may be a view
    student.compile("sgd", "categorical_crossentropy")
    student.fit(images_for(student), TARGETS, verbose=0)
    for old, new in zip(before, conv.weights):
        np.testing.assert_array_equal(old, new)
    student.trainable = False
    assert not student.trainable_weights and len(student.non_trainable_weights) == len(
        student.weights
    )
    student.trainable = True
    assert (
        len(student.trainable_weights) == count + 1
    )  # the step size of the 8-bit input too, which starts frozen


def test_a_layer_frozen_before_is_frozen_with_its_steps(tmp_path):
    model = _network()
    model.get_layer("conv").trainable = False
    student = student_of(model)
    student.save(tmp_path / "s.keras")
    for found in (student, keras.models.load_model(tmp_path / "s.keras")):
        assert not [w.name for w in found.trainable_weights if w.name.startswith("conv/")]
    student.get_layer("conv").trainable = True
    assert len([w for w in student.trainable_weights if w.name.startswith("conv/")]) == 3


def test_every_regularizer_counts_once_and_constraints_hold():
    l2 = keras.regularizers.L2
    kinds = {
        "kernel_regularizer": l2(0.1),
        "bias_regularizer": l2(0.2),
        "activity_regularizer": l2(0.3),
    }
    model = _network(**kinds, kernel_constraint=keras.constraints.MaxNorm(0.4, axis=[0, 1, 2]))
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(activation_bits=None, weight_bits=8)])
    x = images_for(model)
    model(x), student(x)
    assert len(student.losses) == len(model.losses) == 3
    np.testing.assert_allclose(
        sorted(map(float, student.losses)), sorted(map(float, model.losses)), rtol=0.02
    )
    student.compile("sgd", "categorical_crossentropy")
    student.fit(x, TARGETS, verbose=0)
    kernel = student.get_layer("conv").layer.kernel.numpy()
    assert np.sqrt((kernel**2).sum((0, 1, 2))).max() <= 0.4 + 1e-6


def test_a_student_is_float32_under_any_policy(tmp_path):
    model = _network()
    x, expected = images_for(model), student_of(model, 4, 4)(images_for(model))
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = _network(kernel_initializer="ones")
        for candidate in (model, half):
            student = student_of(candidate, 4, 4)
            student.save(tmp_path / "s.keras")
            for found in (
                student,
                keras.models.load_model(tmp_path / "s.keras"),
                keras.models.clone_model(student),
            ):
                every = [
                    inner
                    for layer in found.layers
                    for inner in (layer, getattr(layer, "layer", layer))
                ]
                assert {layer.dtype_policy.name for layer in every if layer.weights} == {"float32"}
                assert found(x).dtype == tf.float32
        np.testing.assert_array_equal(student_of(model, 4, 4)(x), expected)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_initializers_that_only_the_user_has(tmp_path):
    class Mine(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None, **kwargs):
            return tf.ones(shape, dtype) * 0.1

    model = _network(
        kernel_initializer=Mine(), bias_initializer=lambda shape, dtype=None: tf.ones(shape, dtype)
    )
    student = student_of(model)
    student.save(tmp_path / "s.keras")
    x = images_for(model)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "s.keras")(x), student(x))
    assert np.all(student.get_layer("conv").layer.kernel.numpy() == np.float32(0.1))


def test_a_student_is_still_itself_after_a_qat_model_was_built_on_it(tmp_path):
    teacher = _network()
    student = student_of(teacher, 4, 4)
    methods = [
        tf_fpq.FeaturePerturbation(probability=0.5),
        tf_fpq.ChannelStandardizedDistillation(),
    ]
    model = tf_fpq.QatModel(student, teacher=teacher, methods=methods)
    model.compile(optimizer="sgd", loss="categorical_crossentropy")
    model.fit(images_for(teacher), TARGETS, verbose=0)
    tf_fpq.calibrate(student, images_for(teacher), verbose=0)
    x = images_for(teacher)
    for name in ("s.keras", "s.h5"):
        student.save(tmp_path / name)
        np.testing.assert_array_equal(keras.models.load_model(tmp_path / name)(x), student(x))
    assert len(keras.models.clone_model(student).layers) == len(student.layers)


def test_quantized_layer_computes_with_codes():
    wrapped = QuantizedLayer(
        layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=1)),
        LsqQuantizeConfig(3, 8),
    )
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    y = wrapped(x)
    ((name, weight, quantizer, variables),) = wrapped.quantized_weights()
    assert name == "kernel" and weight is wrapped.layer.kernel
    codes, (step_size, _) = quantizer.codes(weight, variables).numpy(), quantizer.grid(variables)
    assert set(np.unique(codes)) <= {-3, -2, -1, 0, 1, 2, 3}
    np.testing.assert_allclose(y, x @ (codes * step_size.numpy()), rtol=1e-5, atol=1e-5)
    assert wrapped.layer.kernel is weight  # put back
    with pytest.raises(tf.errors.InvalidArgumentError):
        wrapped(np.zeros((4, 6), np.float32))
    assert wrapped.layer.kernel is weight


def test_observing_is_the_float_model():
    model = _network()
    student = student_of(model, 2, 2)
    x = images_for(model)
    with fpq_layers.observing(student):
        np.testing.assert_allclose(student(x), model(x), atol=1e-6)
    assert np.any(np.abs(student(x) - model(x)) > 1e-3)


def test_a_shared_quantizer_has_one_grid_and_refuses_strangers():
    shared = QuantizeActivation(LsqQuantizer(4))
    a, b = keras.Input((4,)), keras.Input((2, 4))
    shared(a), shared(b)
    assert len(shared.trainable_weights) == 1
    with pytest.raises(TypeError, match="GridQuantizer"):
        QuantizeActivation(keras.layers.ReLU())


def test_quantizer_variables_are_listed_once():
    conv = layers.Conv2D(2, 1, name="conv")
    image = keras.Input((4, 4, 2))
    student = tf_fpq.quantize_model(keras.Model(image, conv(conv(image))), [tf_fpq.QuantRule()])
    names = [variable.name for variable in fpq_layers.quantizer_variables(student)]
    assert (
        len(names) == len(set(names)) == 3
    )  # the kernel and both outputs; the 8-bit input keeps its step
