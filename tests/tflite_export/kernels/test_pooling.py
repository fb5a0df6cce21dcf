"""MEAN, SUM, REDUCE_MAX, REDUCE_MIN and 2-D poolings of the twin against the interpreter."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import pooling
from tflite_export.twin import integer_twin as twin_lib


def reduction(kind, x_shape, axes, y_shape, scales=(0.05, 0.03), zeros=(-11, 4), **options):
    x = cases.activation("x", x_shape, scales[0], zeros[0])
    y = cases.activation("y", y_shape, scales[1], zeros[1])
    return cases.one_operator(
        kind, [x, cases.constant("axes", np.array(axes, np.int32))], y, **options
    )


SHAPES = [
    ((1, 8, 8, 6), (1, 2), (1, 6), {}),
    ((1, 8, 8, 6), (1, 2), (1, 1, 1, 6), {"keep_dims": True}),
    ((1, 7, 5, 6), (2, 1), (1, 6), {}),
    ((1, 7, 5, 6), (-1,), (1, 7, 5), {}),
    ((1, 7, 5, 6), (1,), (1, 1, 5, 6), {"keep_dims": True}),
    ((1, 33), (1,), (1,), {}),
]


@pytest.mark.parametrize(("x", "axes", "y", "options"), SHAPES)
@pytest.mark.parametrize("kind", ["MEAN", "SUM"])
def test_sums_are_exact(kind, x, axes, y, options):
    rng = np.random.default_rng(0)
    factor = 1.0 if kind == "MEAN" else 12.0
    for scales in [(0.05, 0.05 * factor), (0.05, 0.013 * factor), (0.02, 0.11 * factor)]:
        model = reduction(
            kind, x, axes, y, scales, tuple(int(z) for z in rng.integers(-128, 128, 2)), **options
        )
        cases.assert_exact(
            model,
            cases.random_codes(rng, model, 300),
            ["single"] if kind == "SUM" else ["single", "double"],
        )


def test_the_reference_sum_reads_int8_as_uint8():
    """Why SUM is not exact there: codes 1, 1 sum to 2; -1, -1 are read as 255, 255 and clamp to
    255, stored as -1."""
    model = reduction("SUM", (1, 2), (1,), (1,), (0.5, 0.5), (0, 0))
    codes = {"x": np.array([[1, 1], [-1, -1]], np.int8)}
    assert cases.interpret(model, codes, cases.REFERENCE)["y"].tolist() == [2, -1]
    assert twin_lib.IntegerTwin(model, "double").run_codes(codes)["y"].numpy().tolist() == [2, -2]


def test_mean_is_exact_on_narrow_codes_and_many_scales():
    """The sums of a 4-bit ReLU output: small, often on ties."""
    rng = np.random.default_rng(1)
    for _ in range(15):
        scales = (
            2.0 ** rng.uniform(-4, 4, 2)
            if rng.random() < 0.5
            else (0.5, 2.0 ** rng.integers(-3, 2))
        )
        model = reduction(
            "MEAN", (1, 4, 4, 8), (1, 2), (1, 8), scales, (112, int(rng.integers(-128, 128)))
        )
        cases.assert_exact(model, {"x": rng.integers(112, 128, (500, 4, 4, 8)).astype(np.int8)})


@pytest.mark.parametrize(("x", "axes", "y", "options"), SHAPES)
@pytest.mark.parametrize("kind", ["REDUCE_MAX", "REDUCE_MIN"])
def test_reduced_extrema_are_exact(kind, x, axes, y, options):
    model = reduction(kind, x, axes, y, (0.05, 0.05), (-11, -11), **options)
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(2), model, 50))


@pytest.mark.parametrize("kind", ["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"])
@pytest.mark.parametrize("axes", [[0], [-3], [0, 1], [1, -3], [3], [1, 3], [-4], []])
def test_axes_are_those_of_the_tensor_but_for_the_batch(kind, axes):
    model = reduction(kind, (1, 8, 5), axes, (1, 5), (0.05, 0.05), (3, 3))
    assert cases.refusal(model) == (
        f"{kind} -> 'y': axes must lie in 1..2 (not the batch). Received: axes={axes}."
    )


@pytest.mark.parametrize(
    ("axes", "expected"),
    [(1, [1]), ([2, 1, -1], [1, 2]), ([-2], [1]), ([[2], [1]], [1, 2])],
)
def test_axes_are_sorted_and_each_is_there_once(axes, expected):
    model = reduction("MEAN", (1, 8, 5), axes, (1,))
    assert pooling._axes(model.operators[0], model.tensors, 3) == expected


def test_the_mean_of_a_scale_far_below_the_outputs_is_0():
    """Beyond 2^-31 the reference kernel's multiplier vanishes."""
    for scale in (1e-7, 1e-8, 1e-9, 1e-10, 1e-12):
        model = reduction("MEAN", (1, 64, 8), (1,), (1, 8), (scale, 1.0), (-128, 5))
        cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 20))


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_a_mean_divides_by_the_number_of_codes_and_a_sum_does_not(rounding):
    codes = tf.constant([[[13, 3], [3, 3], [5, 9]]])
    for kind, expected in (("MEAN", [14, 12]), ("SUM", [22, 16])):
        model = reduction(kind, (1, 3, 2), (1,), (1, 2), (0.5, 0.5), (3, 10))
        assert cases.kernel_of(model, rounding)(codes).numpy().tolist() == [expected]
        far = cases.kernel_of(model, rounding)(codes * 1000).numpy()
        assert far.dtype == np.int32 and far.tolist() == [[127, 127]]


@pytest.mark.parametrize("kind", ["REDUCE_MAX", "REDUCE_MIN", "AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_what_compares_or_averages_codes_needs_one_grid(kind):
    x = cases.activation("x", (1, 2, 2, 1))
    y = cases.activation("y", (1, 1, 1, 1), 0.06)
    axes = cases.constant("axes", np.array([1], np.int32))
    model = cases.one_operator(kind, [x, axes] if kind.startswith("REDUCE") else [x], y)
    assert cases.refusal(model).startswith(f"{kind} -> 'y': needs one scale and zero point")


def test_an_average_is_of_the_codes_inside_the_image_with_ties_away_from_zero():
    x, y = (cases.activation(name, (1, 2, 3, 1), 0.5, -4) for name in "xy")
    model = cases.one_operator(
        "AVERAGE_POOL_2D", [x], y, filter=(2, 2), strides=(1, 1), padding="SAME"
    )
    codes = tf.constant([[1, 2, 4], [3, 4, 3]]) * tf.constant([1, -1])[:, None, None]
    found = cases.kernel_of(model)(codes[..., None]).numpy().reshape(2, -1).tolist()
    # 10 / 4, 13 / 4, 7 / 2, and below 7 / 2, 7 / 2, 3.
    assert found == [[3, 3, 4, 4, 4, 3], [-3, -3, -4, -4, -4, -3]]


@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_a_pooling_ends_at_the_bounds_of_its_activation(kind):
    x, y = (
        cases.activation("x", (1, 1, 1, 4), 0.5, -4),
        cases.activation("y", (1, 1, 1, 4), 0.5, -4),
    )
    codes = tf.constant([[[[-9, -4, 8, 9]]]])
    for activation, expected in (
        ("NONE", [-9, -4, 8, 9]),
        ("RELU", [-4, -4, 8, 9]),
        ("RELU6", [-4, -4, 8, 8]),
        ("RELU_N1_TO_1", [-6, -4, -2, -2]),
    ):
        model = cases.one_operator(
            kind, [x], y, filter=(1, 1), strides=(1, 1), activation=activation
        )
        assert cases.kernel_of(model)(codes).numpy().ravel().tolist() == expected


POOLS = [
    ((1, 8, 8, 6), (1, 4, 4, 6), {}),
    ((1, 9, 7, 6), (1, 5, 4, 6), {"padding": "SAME"}),
    ((1, 9, 7, 6), (1, 9, 7, 6), {"filter": (3, 3), "strides": (1, 1), "padding": "SAME"}),
    ((1, 9, 7, 6), (1, 3, 5, 6), {"filter": (3, 2), "strides": (3, 1), "padding": "SAME"}),
    ((1, 9, 7, 6), (1, 7, 3, 6), {"filter": (3, 3), "strides": (1, 2), "activation": "RELU6"}),
    ((1, 8, 8, 6), (1, 1, 1, 6), {"filter": (8, 8), "strides": (8, 8), "activation": "RELU"}),
]


@pytest.mark.parametrize(("x", "y", "options"), POOLS)
@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pools_are_exact(kind, x, y, options):
    rng = np.random.default_rng(3)
    y = (1, 3, 7, 6) if options.get("strides") == (3, 1) else y
    model = cases.one_operator(
        kind, [cases.activation("x", x, 0.05, -11)], cases.activation("y", y, 0.05, -11), **options
    )
    cases.assert_exact(model, cases.random_codes(rng, model, 64))
