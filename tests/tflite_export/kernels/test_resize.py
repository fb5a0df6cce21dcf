"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR of the twin against the interpreter."""

import numpy as np
import pytest

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.twin import integer_twin as twin_lib

MODES = [{}, {"align_corners": True}, {"half_pixel_centers": True}]
SIZES = [
    ((4, 5), (8, 10)),
    ((4, 5), (7, 13)),
    ((9, 8), (4, 3)),
    ((3, 3), (1, 1)),
    ((1, 1), (3, 4)),
    ((6, 6), (6, 6)),
]


def resized(kind, size, target, **options):
    x, y = (cases.activation(n, (1, *s, 9), 0.05, -11) for n, s in (("x", size), ("y", target)))
    return cases.one_operator(
        kind, [x, cases.constant("size", np.array(target, np.int32))], y, **options
    )


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("kind", ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"])
def test_resizing_is_exact(kind, size, target, options):
    model = resized(kind, size, target, **options)
    cases.assert_exact(model, cases.random_codes(np.random.default_rng(0), model, 16))


def test_refusals():
    with pytest.raises(ValueError, match="only one of the options"):
        twin_lib.IntegerTwin(
            resized("RESIZE_BILINEAR", (2, 2), (4, 4), align_corners=True, half_pixel_centers=True)
        )
