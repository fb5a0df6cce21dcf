"""RSQRT and GELU of the twin against the interpreter, on every code, in all kernel sets."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.kernels import elementary

KERNELS = (("single", cases.XNNPACK), ("double", cases.REFERENCE), ("single", cases.BUILTIN))


def assert_exact_everywhere(kind, scales, zeros, codes, **options):
    x = cases.activation("x", (1, codes.shape[1]), scales[0], zeros[0])
    y = cases.activation("y", (1, codes.shape[1]), scales[1], zeros[1])
    model = cases.one_operator(kind, [x], y, **options)
    for rounding, kernels in KERNELS:
        differing, total, worst = cases.mismatches(model, {"x": codes}, rounding, kernels)
        assert (differing, total) == (
            0,
            codes.size,
        ), f"{rounding}: {differing} differ, by up to {worst}"


@pytest.mark.parametrize("zero", [-128, -100, 0, 100])
def test_rsqrt_is_exact_on_every_code_that_is_not_negative(zero):
    rng = np.random.default_rng(0)
    codes = np.arange(zero, 128, dtype=np.int8).reshape(1, -1)
    for _ in range(10):
        scales = 2.0 ** rng.uniform(-14, 2), 2.0 ** rng.uniform(-8, 0)
        assert_exact_everywhere("RSQRT", scales, (zero, int(rng.integers(-128, 128))), codes)


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_the_root_of_0_is_the_highest_code_and_that_of_a_quarter_is_2(rounding):
    x, y = cases.activation("x", (1, 6), 0.25, -100), cases.activation("y", (1, 6), 0.125, -20)
    kernel = cases.kernel_of(cases.one_operator("RSQRT", [x], y), rounding)
    found = kernel(tf.constant([[-128, -100, -99, -96, -84, 44]]))
    assert found.numpy().tolist() == [[127, 127, -4, -12, -16, -20 + 1]]


def test_gelu_is_of_the_error_function_unless_it_says_otherwise():
    x, y = cases.activation("x", (1, 5), 0.02, 0), cases.activation("y", (1, 5), 0.0005, 0)
    codes = tf.constant([[-128, -100, -5, 0, 3]])
    found = {
        str(options): cases.kernel_of(cases.one_operator("GELU", [x], y, **options))(codes)
        for options in ({}, {"approximate": False}, {"approximate": True})
    }
    values = codes.numpy() * 0.02
    erf = np.vectorize(math.erf)(values / 2**0.5)
    tanh = np.tanh((2 / np.pi) ** 0.5 * (values + 0.044715 * values**3))
    for name, part in zip(found, (erf, erf, tanh), strict=True):
        expected = np.clip(np.rint(values * (1 + part) / 2 / 0.0005), -128, 127)
        np.testing.assert_array_equal(found[name], expected)


def test_the_two_gelus_in_float32():
    values = np.float32([-8.0, -1.0, -0.5, 0.0, 0.5, 1.0, 8.0])
    erf = [0.0, -0.15865525, -0.15426877, 0.0, 0.34573123, 0.8413447, 8.0]
    tanh = [0.0, -0.15880796, -0.15428599, 0.0, 0.34571400, 0.841192, 8.0]
    for function, expected in ((elementary._erf_gelu, erf), (elementary._tanh_gelu, tanh)):
        found = function(values)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_is_exact_on_every_code(approximate):
    rng = np.random.default_rng(1)
    codes = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    for _ in range(25):
        scale = 2.0 ** rng.uniform(-8, 0)
        zeros = tuple(int(z) for z in rng.integers(-128, 128, 2))
        assert_exact_everywhere(
            "GELU", (scale, scale * rng.uniform(0.4, 2)), zeros, codes, approximate=approximate
        )
