"""MEAN, SUM, REDUCE_MAX, REDUCE_MIN and 2-D poolings of the twin against the interpreter."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases
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


def test_refuses_to_reduce_the_batch():
    with pytest.raises(ValueError, match="not the batch"):
        twin_lib.IntegerTwin(reduction("MEAN", (1, 8), (0,), (8,)))


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


def test_average_pool_needs_one_grid():
    model = cases.one_operator(
        "AVERAGE_POOL_2D",
        [cases.activation("x", (1, 2, 2, 1))],
        cases.activation("y", (1, 1, 1, 1), 0.06),
    )
    with pytest.raises(ValueError, match="requantize first"):
        twin_lib.IntegerTwin(model)
