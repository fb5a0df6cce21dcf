"""Models that the rows share; no row changes them."""

import types

import pytest

from tests.tf_fpq import small_student as trained
from tests.tflite_export import small_student as exporting
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    """A teacher, its student, a trainer, a student that is exported, and files of all kinds."""
    folder = tmp_path_factory.mktemp("made")
    teacher, student = trained.pair()
    small = exporting.student()
    trainer = tf_fpq.QatModel(student, teacher, tf_fpq.fpq())
    # No row is worth the seconds of a compiled step.
    trainer.compile(keras.optimizers.SGD(0.01), trained.LOSS, run_eagerly=True)
    exported = tflite_export.export(small, folder / "small.tflite", round_biases=False)
    student.save(folder / "student.keras")
    teacher.save(folder / "teacher.keras")
    return types.SimpleNamespace(
        folder=folder,
        teacher=teacher,
        student=student,
        trainer=trainer,
        small=small,
        exported=exported,
        tflite=folder / "small.tflite",
    )
