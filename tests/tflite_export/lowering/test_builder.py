"""From a student to its deployed model: names, grids, biases, clips, and what the walk must not mix
up."""

import numpy as np
import pytest

from tests.integration.exactness import (
    assert_twin_is_interpreter,
    images_for,
    randomize,
    student_lsb,
    student_of,
)
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.lowering import builder
from tflite_export.twin import integer_twin
from tflite_export.verification import parameter_checks

layers = keras.layers


@pytest.fixture(autouse=True)
def _same_weights_every_time():
    keras.utils.set_random_seed(0)


def _model(make, *shape):
    image = keras.Input(shape, name="image")
    return randomize(keras.Model(image, make(image)))


def _assert_exact(model, *bits):
    """File = twin, and at W8A8 the student = twin up to a tie that the bias' grid tips."""
    student = student_of(model, *bits)
    if not bits:
        gaps = student_lsb(student, images_for(model))
        assert max(gap.max() for gap in gaps.values()) <= 3, {
            name: gap.max() for name, gap in gaps.items()
        }
    return student, assert_twin_is_interpreter(student, images_for(model))


def test_a_bias_is_on_the_grid_of_its_input_and_weights():
    student, deployed = _assert_exact(
        _model(lambda x: layers.BatchNormalization()(layers.Conv2D(3, 3, name="c")(x)), 6, 6, 2)
    )
    weights, bias = deployed.tensors["c_kernel"], deployed.tensors["c_kernel_bias"]
    source = deployed.tensors["image_quantize"]
    assert (bias.dtype, bias.axis, weights.axis) == ("int32", 0, 0)
    np.testing.assert_array_equal(bias.scale, source.scale * weights.scale)
    norm, conv = student.layers[3], student.get_layer("c").layer
    factor = norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)
    expected = (conv.bias - norm.moving_mean) * factor + norm.beta
    assert np.all(np.abs(bias.data * bias.scale - expected) <= bias.scale * 0.51)


@pytest.mark.parametrize("bits", [(), (4, 4), (2, 2)])
def test_calls_of_a_shared_layer_have_biases_and_scales_of_their_own(bits):
    conv, other = (
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.Conv2D(3, 1, name="conv_1"),
    )

    def make(x):
        first = layers.ReLU()(layers.BatchNormalization(name="norm_a")(conv(x)))
        second = layers.ReLU()(layers.BatchNormalization(name="norm_b")(conv(other(first))))
        return layers.Add()([first, second])

    _, deployed = _assert_exact(_model(make, 6, 6, 3), *bits)
    kernels = [o.inputs[1] for o in deployed.operators if o.kind == "CONV_2D"]
    assert kernels == ["conv_kernel", "conv_1_kernel", "conv_2_kernel"]
    a, b = deployed.tensors["conv_kernel"], deployed.tensors["conv_2_kernel"]
    assert a.scale.tolist() != b.scale.tolist()
    np.testing.assert_array_equal(np.abs(a.data), np.abs(b.data))


@pytest.mark.parametrize("bits", [(), (4, 4)])
def test_shared_dense_and_batch_norm(bits):
    dense, norm = layers.Dense(5), layers.BatchNormalization()
    _assert_exact(_model(lambda x: norm(dense(layers.ReLU()(norm(dense(x))))), 5), *bits)


def test_names_never_collide():
    def make(x):
        x = layers.Flatten(name="conv_kernel")(layers.Conv2D(2, 3, name="conv")(x))
        x = layers.Reshape((4, 4, 2), name="conv_kernel_bias")(x)
        x = layers.Conv2D(2, 1, name="image_quantize_unbounded")(x)
        return layers.Conv2D(2, 1, name="scope/conv")(
            layers.ReLU(1.0, name="conv_quantize_unbounded")(x)
        )

    _, deployed = _assert_exact(_model(make, 6, 6, 2), 4, 4)
    assert all(name == tensor.name for name, tensor in deployed.tensors.items())
    written = [name for operator in deployed.operators for name in operator.outputs]
    assert len(written) == len(set(written))


def test_inputs_and_outputs_in_structures():
    a, b = keras.Input((6, 6, 3), name="z"), keras.Input((6, 6, 2), name="y")
    x = layers.ReLU()(
        layers.Add()(
            [layers.Conv2D(4, 3, padding="same")(a), layers.Conv2D(4, 3, padding="same")(b)]
        )
    )
    model = randomize(
        keras.Model({"z": a, "y": b}, {"q": layers.Conv2D(2, 1, name="c")(x), "p": x, "o": [b, x]})
    )
    student, deployed = _assert_exact(model)
    assert deployed.inputs == tuple(f"{name}_quantize" for name in student.input_names)
    assert len(deployed.outputs) == 4 and deployed.outputs[0] == "y_quantize"
    # What Keras takes by name, the twin takes in the order of the student's inputs.
    data = images_for(model)
    by_name = dict(zip(student.input_names, data, strict=True))
    found, outputs = student(by_name), integer_twin.IntegerTwin(deployed)(data)
    np.testing.assert_allclose(
        found["q"], outputs[-1], atol=3 * float(deployed.tensors["c_quantize"].scale)
    )


@pytest.mark.parametrize("bits", [(), (4, 4), (2, 8)])
def test_an_output_that_is_read_and_an_input_that_is_an_output(bits):
    def make(x):
        conv = layers.Conv2D(4, 3, padding="same")(x)
        norm = layers.BatchNormalization()(conv)
        moved = layers.Flatten()(layers.Dropout(0.5)(norm))
        return [conv, norm, layers.Conv2D(2, 1)(layers.ReLU()(norm)), x, moved, conv]

    _, deployed = _assert_exact(_model(make, 6, 6, 2), *bits)
    assert len(deployed.outputs) == 6 and len(deployed.inputs) == 1


@pytest.mark.parametrize("bits", [(), (4, 4), (3, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.BatchNormalization()(layers.ReLU()(layers.Conv2D(3, 1)(x))),
        lambda x: layers.Conv2D(3, 1)(layers.BatchNormalization()(x)),
        lambda x: layers.Conv2D(3, 1)(
            layers.BatchNormalization()(layers.Concatenate()([layers.Conv2D(2, 1)(x), x]))
        ),
        lambda x: layers.BatchNormalization()(
            layers.Dense(3)(layers.BatchNormalization()(layers.ReLU()(layers.Dense(4)(x))))
        ),
        lambda x: layers.BatchNormalization(scale=False)(
            layers.BatchNormalization(center=False)(layers.Conv2D(3, 1)(x))
        ),
        lambda x: layers.Dense(3, activation="softmax")(layers.Reshape((4, 8))(x)),
    ],
    ids=["after relu", "before conv", "after concat", "around dense", "twice", "dense rank 3"],
)
def test_batch_norm_everywhere(make, bits):
    _assert_exact(_model(make, 4, 4, 2), *bits)


def test_an_all_zero_channel_and_a_zero_gamma():
    model = _model(
        lambda x: layers.ReLU()(
            layers.BatchNormalization(name="bn")(layers.Conv2D(3, 3, name="c")(x))
        ),
        6,
        6,
        2,
    )
    kernel, bias = model.get_layer("c").get_weights()
    kernel[..., 1] = 0.0
    model.get_layer("c").set_weights([kernel, bias])
    gamma = np.array([1.0, -1.0, 0.0], np.float32)
    model.get_layer("bn").set_weights([gamma, *model.get_layer("bn").get_weights()[1:]])
    for bits in ((), (4, 4)):
        _, deployed = _assert_exact(model, *bits)
        codes = deployed.tensors["c_kernel"]
        assert not codes.data[1:].any() and codes.data[0].any()
        assert np.all(codes.scale > 0)


def test_a_model_of_zeros_alone():
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Conv2D(2, 1, kernel_initializer="zeros"), layers.ReLU()]
    )
    student = student_of(model, 4, 4)
    deployed = assert_twin_is_interpreter(student, images_for(model))
    assert not integer_twin.IntegerTwin(deployed)(images_for(model)).numpy().any()


def _with_a_tiny_gamma(gamma=1e-12, beta=1.0):
    model = _model(
        lambda x: layers.BatchNormalization(name="bn")(layers.Conv2D(2, 1, name="c")(x)), 4, 4, 2
    )
    norm = model.get_layer("bn")
    norm.set_weights(
        [
            np.array([1.0, gamma], np.float32),
            np.array([1.0, beta], np.float32),
            *norm.get_weights()[2:],
        ]
    )
    return model


@pytest.mark.parametrize(
    ("gamma", "beta"), [(1e-12, 1.0), (1e-45, 1.0), (1e-38, 0.0), (1e-45, 0.0)]
)
@pytest.mark.parametrize("bits", [(), (4, 4)])
def test_a_channel_that_weight_decay_killed_is_a_constant(gamma, beta, bits):
    student, deployed = _assert_exact(_with_a_tiny_gamma(gamma, beta), *bits)
    codes, bias = (deployed.tensors[name] for name in ("c_kernel", "c_kernel_bias"))
    assert not codes.data[1].any() and codes.data[0].any()
    assert min(codes.scale[1], bias.scale[1]) >= np.finfo(np.float32).tiny
    output = student(images_for(student)).numpy()[..., 1]
    assert np.unique(output).size == 1 and abs(output.flat[0] - beta) < 0.5


@pytest.mark.parametrize("gamma", [3e-5, 1e-7, 0.0])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_channel_whose_code_no_image_changes_is_a_constant(gamma, weights):
    """Of these gammas 3e-5 was refused: too large for a rule of thumb, too small for int32."""
    image = keras.Input((6, 6, 16), name="image")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, name="c")(image))
    model = randomize(keras.Model(image, layers.Dense(2)(layers.ReLU(name="relu")(x))))
    values = model.get_layer("bn").get_weights()
    values[0][3], values[1][3] = gamma, -1.3
    model.get_layer("bn").set_weights(values)
    student = student_of(model, 4, 8)
    deployed = builder.deploy(student, weights)
    assert not deployed.tensors["c_kernel"].data[3].any()
    assert deployed.tensors["c_kernel"].dtype == weights
    if weights == "int8":
        assert_twin_is_interpreter(student, images_for(model))
    builder.round_biases(student, weights)
    twin = integer_twin.IntegerTwin(deployed).codes(images_for(model))["relu_quantize"].numpy()
    codes = builder.student_codes(student)(images_for(model))["relu_quantize"].numpy()
    np.testing.assert_array_equal(codes[..., 3], twin[..., 3])
    # Packed convolutions run on kernels that round twice.
    assert np.mean(codes != twin) < (1e-3 if weights == "int8" else 0.05)


def test_a_bias_next_to_a_tie_and_beyond_int32_gets_coarser_weights():
    student = student_of(_with_a_tiny_gamma(gamma=2e-7, beta=1.0))
    output = student.get_layer("bn_quantize")
    values = student.get_layer("bn")(student.get_layer("c")(images_for(student))).numpy()[..., 1]
    step_size = np.float32(np.median(values) / 60.5)
    output.quantizer.set_grid(output.variables_of_quantizer, step_size, np.float32(128.0))
    deployed = assert_twin_is_interpreter(student, images_for(student))
    codes, bias = (deployed.tensors[name] for name in ("c_kernel", "c_kernel_bias"))
    assert 0 < np.abs(codes.data[1]).max() < 64 and np.abs(codes.data[0]).max() == 127
    assert 2**30 <= abs(int(bias.data[1])) < 2**31
    assert parameter_checks.student_weights(student, deployed) == ((), ())
    gaps = student_lsb(student, images_for(student))
    assert max(gap.max() for gap in gaps.values()) <= 1


def test_one_step_for_all_channels_of_a_dense_is_one_scale():
    model = _model(lambda x: layers.Dense(5, name="d")(layers.Flatten()(x)), 4, 4, 2)
    scales = {}
    for per_channel in (True, False):
        rule = tf_fpq.QuantRule(".*", per_channel=per_channel)
        student = tf_fpq.quantize_model(model, [rule])
        tf_fpq.calibrate(student, images_for(model), verbose=0)
        tensors = assert_twin_is_interpreter(student, images_for(model)).tensors
        scales[per_channel] = [tensors[name] for name in ("d_kernel", "d_kernel_bias")]
    assert [tensor.scale.shape for tensor in scales[True]] == [(5,), (5,)]
    assert [(tensor.scale.shape, tensor.axis) for tensor in scales[False]] == [((), None)] * 2


def test_low_bit_grids_end_where_the_container_ends():
    student, deployed = _assert_exact(
        _model(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(3, 1, name="c")(x)), 4, 4, 2), 4, 4
    )
    grid = deployed.tensors["c_quantize"]
    quantizer = student.get_layer("c_quantize")
    step_size, zero_point = quantizer.quantizer.grid(quantizer.variables_of_quantizer)
    assert float(grid.scale) == float(step_size)
    assert grid.zero_point == 127 - 15 + int(zero_point)
    clip = next(operator for operator in deployed.operators if operator.outputs == ("c_quantize",))
    assert (clip.kind, deployed.tensors[clip.inputs[1]].data.tolist()) == ("MAXIMUM", [127 - 15])
    quantizer.variables_of_quantizer["step_size"].assign(
        step_size / 2
    )  # half the range: values below it are sure
    codes = integer_twin.IntegerTwin(builder.deploy(student)).codes(images_for(student))
    assert codes["c_quantize"].numpy().min() >= 112 > codes["c_quantize_unbounded"].numpy().min()
    assert deployed.inputs == ("image_quantize_unbounded",)


def test_relus_need_no_clip():
    _, deployed = _assert_exact(
        _model(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(3, 1, activation="relu")(x)), 4, 4, 2),
        8,
        4,
    )
    assert [operator.kind for operator in deployed.operators] == ["MAXIMUM", "CONV_2D", "CONV_2D"]


def test_the_students_codes_are_of_the_deployed_tensors():
    model = _model(
        lambda x: layers.AveragePooling2D()(layers.ReLU()(layers.Conv2D(3, 1, name="c")(x))),
        4,
        4,
        2,
    )
    student, deployed = _assert_exact(model)
    codes = builder.student_codes(student)(images_for(model))
    assert set(codes) <= set(deployed.tensors) and set(deployed.outputs) <= set(codes)
    grid = deployed.tensors[deployed.outputs[0]]
    values = (codes[deployed.outputs[0]] - grid.zero_point) * grid.scale
    np.testing.assert_allclose(values, student(images_for(model)), rtol=1e-5)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_rounded_biases_change_the_student_and_not_the_file(bits):
    def make(x):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(x)))
        return layers.Dense(3)(layers.Flatten()(x))

    model = _model(make, 6, 6, 2)
    student = student_of(model, *bits)
    before = builder.deploy(student)
    moved = builder.round_biases(student)
    after = builder.deploy(student)
    assert 0 < moved < 0.1
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(tensor.data, after.tensors[name].data)
    assert builder.round_biases(student) < moved / 100
    gaps = student_lsb(student, images_for(model))
    assert np.mean([(gap > 0).mean() for gap in gaps.values()]) < 0.01


def test_kernels_that_round_twice_compute_nearly_the_same_at_low_widths():
    """Because codes fill their container: sums of 2-bit codes would be requantized by a bit or two,
    and rounding twice biased."""

    def make(x):
        for index in range(3):
            x = layers.ReLU(name=f"relu{index}")(
                layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
            )
        return x

    model = _model(make, 8, 8, 4)
    student = student_of(model, 2, 2)
    images = images_for(model)
    wide, narrow = builder.deploy(student), builder.deploy(student, "int4")
    once = integer_twin.IntegerTwin(wide).codes(images)["relu1_quantize"]
    differing = {
        name: np.mean(
            once != integer_twin.IntegerTwin(deployed, "double").codes(images)["relu1_quantize"]
        )
        for name, deployed in (("wide", wide), ("narrow", narrow))
    }
    assert differing["wide"] < 0.03 and differing["narrow"] > 4 * differing["wide"], differing


def test_a_shared_layers_bias_is_left_alone():
    conv = layers.Conv2D(2, 1, name="conv")
    student = student_of(_model(lambda x: conv(layers.ReLU()(conv(x))), 4, 4, 2))
    bias = np.array(student.get_layer("conv").layer.bias)  # `numpy()` may be a view
    builder.round_biases(student)
    np.testing.assert_array_equal(student.get_layer("conv").layer.bias, bias)


def test_what_cannot_be_deployed():
    model = _model(
        lambda x: layers.Conv2D(2, 1, name="b")(layers.Conv2D(2, 1, name="a")(x)), 4, 4, 2
    )
    with pytest.raises(ValueError, match="reads a float input"):
        builder.deploy(model)
    with pytest.raises(ValueError, match="'b' has a float kernel"):
        builder.deploy(tf_fpq.quantize_model(model, [tf_fpq.QuantRule("a")]))
    image = keras.Input((None, None, 2))
    student = tf_fpq.quantize_model(
        keras.Model(image, layers.Conv2D(2, 1)(image)), [tf_fpq.QuantRule()]
    )
    with pytest.raises(ValueError, match="no static shape"):
        builder.deploy(student)


def test_a_student_is_not_changed_by_its_deployment():
    student = student_of(_model(lambda x: layers.Conv2D(2, 1)(x), 4, 4, 2))
    before, nodes = (
        [np.array(w) for w in student.weights],
        [len(layer._inbound_nodes) for layer in student.layers],
    )
    builder.deploy(student)
    builder.student_codes(student)
    for old, new in zip(before, student.weights):
        np.testing.assert_array_equal(old, new)
    assert nodes == [len(layer._inbound_nodes) for layer in student.layers]
    assert sum(isinstance(layer, QuantizeActivation) for layer in student.layers) == 2
