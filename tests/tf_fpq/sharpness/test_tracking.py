"""The callback measures the student, when it is time."""

import numpy as np
import pytest

from tests.tf_fpq import small_student
from tests.tf_fpq.sharpness import known
import tf_fpq
from tf_fpq import sharpness


def test_every_so_many_epochs_and_the_last_one():
    _, student = small_student.pair()
    data = small_student.images(), small_student.labels()
    tracker = sharpness.SharpnessTracker(*data, every=2, probes=2)
    logs = small_student.fit(tf_fpq.QatModel(student), epochs=3, callbacks=[tracker])
    assert [epoch for epoch, _, _ in tracker.history] == [1, 2]
    assert logs["hessian_trace"] == [trace for _, trace, _ in tracker.history]
    hessian = sharpness.LossHessian(student, *data)
    trace = sharpness.hessian_trace(hessian, probes=2, tolerance=0).mean
    np.testing.assert_allclose(tracker.history[-1][1], trace, rtol=1e-5)


def test_of_a_quadratic_it_is_the_same_in_every_epoch():
    hessian = known.quadratic()
    images = np.diag(np.sqrt(6 * known.EIGENVALUES)).astype(np.float32)
    tracker = sharpness.SharpnessTracker(images, np.zeros(6), known.half_square, probes=50)
    hessian.model.compile("sgd", "mse")
    hessian.model.fit(images, np.zeros(6), epochs=2, verbose=0, callbacks=[tracker])
    for _, trace, top in tracker.history:
        np.testing.assert_allclose([trace, top], [known.EIGENVALUES.sum(), 5.0], rtol=1e-3)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every=0"):
        sharpness.SharpnessTracker([], [], every=0)
