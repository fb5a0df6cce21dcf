"""Scales that one operator takes: each limit's last value inside and first outside, and what the
exporter does about the others."""

import numpy as np
import pytest

from tests.integration.exactness import (
    assert_twin_is_interpreter,
    images_for,
    randomize,
    student_lsb,
    student_of,
)
from tests.tflite_export.kernels import kernel_cases as cases
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import deployed
from tflite_export.kernels import xnnpack_limits
from tflite_export.lowering import network

layers = keras.layers


def check(kind, scales, output=1.0, weights=None):
    tensors = {f"x{i}": cases.activation(f"x{i}", (1, 2), scale) for i, scale in enumerate(scales)}
    if weights is not None:
        tensors["k"] = cases.constant(
            "k", np.ones((len(weights), 2), np.int8), np.asarray(weights), axis=0
        )
    tensors["y"] = cases.activation("y", (1, 2), output)
    inputs = tuple(name for name in tensors if name != "y")
    xnnpack_limits.check(deployed.Operator(kind, inputs, ("y",)), tensors)


INSIDE = [
    ("FULLY_CONNECTED", (1.0,), (1e-9, 255.9)),
    ("ADD", (2.0**-10, 255.9), None),
    ("SUB", (2.0**-10, 1.0), None),
    ("MUL", (2.0**-8, 2.0**-8), None),
    ("QUANTIZE", (2.0**-8,), None),
    ("QUANTIZE", (2.0**7,), None),
]
OUTSIDE = [
    ("FULLY_CONNECTED", (1.0,), (1.0, 256.0), "256 in channel 1 of 'k'.*clipped"),
    ("ADD", (256.0, 1.0), None, "256 for 'x0'.*clipped"),
    ("SUB", (1.0, 0.0009), None, "0.0009 for 'x1'.*next to zero"),
    ("MUL", (2.0**-8, 2.0**-9), None, "for 'x0' and 'x1'.*next to zero"),
    ("MUL", (16.0, 16.0), None, "256 for.*clipped"),
    ("QUANTIZE", (0.0039,), None, "0.0039 for 'x0'.*next to zero"),
    ("QUANTIZE", (128.1,), None, "128.1 for 'x0'.*clipped"),
]


@pytest.mark.parametrize(("kind", "scales", "weights"), INSIDE)
def test_ratios_that_xnnpack_takes(kind, scales, weights):
    check(kind, scales, weights=weights)


@pytest.mark.parametrize(("kind", "scales", "weights", "message"), OUTSIDE)
def test_ratios_that_xnnpack_refuses(kind, scales, weights, message):
    with pytest.raises(ValueError, match=f"{kind} -> 'y': .*XNNPACK's limits.*{message}"):
        check(kind, scales, weights=weights)


@pytest.mark.parametrize(
    ("kind", "scales", "weights", "message"),
    [
        (
            "CONV_2D",
            (1.0,),
            (300.0, 256.0, 1000.0, 1.0),
            "input scale * weight scale / output scale must lie in [0, 256) (XNNPACK's limits)."
            " Received: 1000 in channel 2 of 'k'. Nearly all its values are clipped: train longer,"
            " let the output's range grow, or shrink the input (a channel by its batch norm's"
            " gamma).",
        ),
        (
            "ADD",
            (1e-6, 0.0),
            None,
            "input scale / output scale must lie in [0.000976562, 256) (XNNPACK's limits)."
            " Received: 0 for 'x1'. Its values are all next to zero on the output's grid: let the"
            " output's range shrink, or leave the branch out.",
        ),
        (
            "MUL",
            (2.0**-9, 2.0**-8),
            None,
            "scale * scale / output scale must lie in [1.52588e-05, 256) (XNNPACK's limits)."
            " Received: 7.629e-06 for 'x0' and 'x1'. Its values are all next to zero on the"
            " output's grid: let the output's range shrink, or leave the branch out.",
        ),
        (
            "QUANTIZE",
            (129.0,),
            None,
            "input scale / output scale must lie in [0.00390625, 128) (XNNPACK's limits). Received:"
            " 129 for 'x0'. Nearly all its values are clipped: train longer, let the output's range"
            " grow, or shrink the input (a channel by its batch norm's gamma).",
        ),
    ],
)
def test_what_is_refused_is_told_by_its_worst_ratio_and_with_a_way_out(
    kind, scales, weights, message
):
    with pytest.raises(ValueError) as error:
        check(kind, scales, weights=weights)
    assert str(error.value) == f"{kind} -> 'y': {message}"


def test_the_ratios_of_each_kind_in_float32():
    for kind, scales, expected in (
        ("ADD", (0.1, 0.3), [0.2, 0.6]),
        ("SUB", (0.1, 0.3), [0.2, 0.6]),
        ("MUL", (0.1, 0.3), [0.06]),
        ("QUANTIZE", (0.1,), [0.2]),
        ("CONV_2D", (0.1, (0.3, 0.5), None), [0.06, 0.1]),
        ("FULLY_CONNECTED", (0.1, 0.3, None), [0.06]),
        ("RELU", (0.1,), []),
        ("QUANTIZE", (None,), []),
    ):
        tensors = {
            f"x{i}": deployed.Tensor(
                f"x{i}", (1, 2), "int8", None if scale is None else np.float32(scale)
            )
            for i, scale in enumerate(scales)
        }
        inputs = tuple(tensors)
        tensors["y"] = cases.activation("y", (1, 2), 0.5)
        found = xnnpack_limits.of(deployed.Operator(kind, inputs, ("y",)), tensors)
        assert found.dtype == np.float32 and found.shape == (len(expected),)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    tensors["y"] = deployed.Tensor("y", (1, 2), "float32")
    assert xnnpack_limits.of(deployed.Operator("ADD", ("y", "y"), ("y",)), tensors).size == 0


def test_constants_that_the_exporter_takes_instead_of_scales_outside():
    assert xnnpack_limits.SATURATES == 255.5 < xnnpack_limits.LIMITS["CONV_2D"].end
    assert xnnpack_limits.LOWEST_OF_SOFTMAX == 2.0**-25
    below, above = np.nextafter(np.float32(128), np.float32([0, 256]))
    for ratio in (below, 128.0):
        check("QUANTIZE", (ratio,))
    with pytest.raises(ValueError, match="128 for 'x0'"):
        check("QUANTIZE", (above,))


def test_operators_without_limits():
    check("RELU", (1e9,))
    check("MAXIMUM", (1e-9, 1e9))


def model_of(make, *shape):
    keras.utils.set_random_seed(0)
    image = keras.Input(shape, name="image")
    return randomize(keras.Model(image, make(image)))


def set_step(student, name, step_size):
    layer = student.get_layer(name)
    zero_point = layer.quantizer.grid(layer.variables_of_quantizer)[1]
    layer.quantizer.set_grid(
        layer.variables_of_quantizer, np.float32(step_size), np.asarray(zero_point)
    )


def kinds(model):
    return [operator.kind for operator in model.operators]


@pytest.mark.parametrize("factor", [1e-5, 1e-3, 1e3, 1e5])
def test_codes_go_to_a_grid_far_away_in_several_steps(factor):
    walk, step = network.Network(set()), 0.05
    grids = [
        deployed.Tensor(name, (1, 4), "int8", np.float32(s), z)
        for name, s, z in (("a", step, 5), ("b", step / factor, -9))
    ]
    walk.tensors = {grid.name: grid for grid in grids}
    last = walk._towards("a", grids[1])
    operators = (*walk.operators, deployed.Operator("QUANTIZE", (last,), ("b",)))
    assert len(operators) > 1
    model = deployed.DeployedModel(walk.tensors, operators, ("a",), ("b",))
    codes = np.arange(-128, 128, dtype=np.int8).reshape(-1, 4)
    cases.assert_exact(model, {"a": codes})
    exact = np.clip(np.rint((codes.astype(float) - 5) * factor) - 9, -128, 127)
    found = cases.interpret(model, {"a": codes}, cases.XNNPACK)["b"]
    assert np.abs(found - exact).max() <= 1


@pytest.mark.parametrize(
    ("layer", "factor"),
    [(layers.Add, 2.0**-14), (layers.Subtract, 2.0**-14), (layers.Multiply, 2.0**-20)],
)
def test_an_operand_next_to_nothing_gets_larger_steps(layer, factor):
    """Trained steps, or grids that TFLite prescribes such as a tanh's, can be so small beside the
    output's."""

    def make(x):
        x = layers.Conv2D(2, 1)(x)
        return layer(name="join")(
            [layers.ReLU(name="big")(x), layers.Activation("tanh", name="small")(x)]
        )

    student = student_of(model_of(make, 4, 4, 2))
    set_step(student, "join_quantize", 0.0078125 / factor)
    found = assert_twin_is_interpreter(student, images_for(student))
    assert "QUANTIZE" in kinds(found)


def test_an_operand_far_above_is_refused_before_anything_is_written(tmp_path):
    student = student_of(
        model_of(lambda x: layers.Add(name="join")([x, layers.Conv2D(2, 1)(x)]), 4, 4, 2)
    )
    set_step(student, "join_quantize", 1e-9)
    with pytest.raises(ValueError, match="ADD -> 'join_quantize.*clipped"):
        tflite_export.export(student, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step_size", [1e-9, 1e-18])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_channel_of_which_every_sum_saturates_gets_a_scale_that_xnnpack_takes(
    activation, step_size
):
    student = student_of(
        model_of(lambda x: layers.Conv2D(3, 1, activation=activation, name="conv")(x), 4, 4, 2)
    )
    set_step(student, "conv_quantize", step_size)
    found = assert_twin_is_interpreter(student, images_for(student))
    (operator,) = [operator for operator in found.operators if operator.kind == "CONV_2D"]
    np.testing.assert_allclose(
        xnnpack_limits.of(operator, found.tensors), xnnpack_limits.SATURATES, rtol=1e-6
    )
    gaps = student_lsb(student, images_for(student))
    assert max(gap.max() for gap in gaps.values()) <= 1


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), [(1, 2), ((1, 3), (2, 2)), (2, 3)])
def test_a_transposed_kernel_below_its_strides_is_padded(size, strides, padding):
    def make(x):
        return layers.Conv2DTranspose(5, size, strides, padding=padding, name="up")(x)

    student = student_of(model_of(make, 4, 5, 3), 4, 4)
    found = assert_twin_is_interpreter(student, images_for(student))
    stored = found.tensors["up_kernel"].shape[1:3]
    assert stored == tuple(np.maximum(np.broadcast_to(size, 2), strides))


def test_a_normalizations_epsilon_counts_where_variances_are_small():
    """Variances near epsilon: without it the factor, and all behind it, is off by tens of codes."""

    def make(x):
        return layers.LayerNormalization(name="norm")(
            layers.Rescaling(0.02)(layers.Conv2D(4, 1)(x))
        )

    student = student_of(model_of(make, 4, 4, 3))
    assert "RSQRT" in kinds(assert_twin_is_interpreter(student, images_for(student)))
    gaps = {name: gap.mean() for name, gap in student_lsb(student, images_for(student)).items()}
    assert gaps["norm_factor_quantize"] < 3, gaps


@pytest.mark.parametrize("alone", [False, True])
def test_a_clamp_at_6_that_a_fine_grid_never_reaches_is_left_out(alone):
    def make(x):
        x = layers.Conv2D(3, 1, name="conv")(x)
        x = layers.MaxPooling2D(1)(x) if alone else x
        return layers.ReLU(6.0, name="relu")(x)

    student = student_of(model_of(make, 4, 4, 2))
    for layer in student.layers:
        if layer.name.endswith("_quantize"):
            set_step(student, layer.name, 1e-12)
    found = assert_twin_is_interpreter(student, images_for(student))
    last = found.operators[-1]
    assert (last.kind, last.options.get("activation")) == (
        ("RELU", None) if alone else ("CONV_2D", "RELU")
    )


def test_the_input_of_a_softmax_gets_a_scale_that_litert_takes():
    student = student_of(
        model_of(lambda x: layers.Dense(5, activation="softmax", name="dense")(x), 6)
    )
    set_step(student, "image_quantize", 1e-9)
    set_step(student, "dense_quantize", 1e-9)
    found = assert_twin_is_interpreter(student, images_for(student))
    assert kinds(found)[-2:] == ["QUANTIZE", "SOFTMAX"]
    assert found.tensors[found.operators[-1].inputs[0]].scale == xnnpack_limits.LOWEST_OF_SOFTMAX
