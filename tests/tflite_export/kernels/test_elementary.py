"""RSQRT and GELU of the twin against the interpreter, on every code, in all kernel sets."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases

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
