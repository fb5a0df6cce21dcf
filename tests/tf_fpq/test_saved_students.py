"""Students that earlier versions saved still load, and compute what they computed."""

import pathlib

import numpy as np
import pytest

from tests.tf_fpq import small_student
import tf_fpq  # noqa: F401  registers the layers a student is made of
from tf_fpq.keras_compat import keras

# `small_student.network()` at W4A4 with an 8-bit stem, after two epochs of FPQ, saved by commit
# a488447, before the modules moved to where they are now.
SAVED = pathlib.Path(__file__).parent / "data" / "student_a488447.keras"
# Its step size of the logits, and their codes for eight images, as that commit computed them.
STEP_SIZE = 0.0085363
CODES = [
    [1, -11, 8, 2],
    [1, -10, 8, 3],
    [1, -11, 7, 2],
    [2, -11, 7, 2],
    [1, -11, 7, 2],
    [1, -11, 8, 2],
    [1, -11, 8, 2],
    [1, -11, 7, 3],
]


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (2, 21),
    reason="an older tf_keras than the one that saved it may not know all of its arguments",
)
def test_a_student_of_an_earlier_version_loads_and_computes_the_same():
    student = keras.models.load_model(SAVED)
    logits = student(small_student.images(8, seed=3), training=False).numpy()
    assert np.array_equal(np.rint(logits / STEP_SIZE), CODES)
    np.testing.assert_allclose(logits, np.multiply(CODES, STEP_SIZE), rtol=1e-5)
