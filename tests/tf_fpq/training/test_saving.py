"""A QatModel in a file, and trainings that go on where they stopped: bit-equal to one that did
not stop."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, images, labels, pair
import tf_fpq
from tf_fpq import callbacks
from tf_fpq.keras_compat import keras
from tf_fpq.training.qat_model import QatModel

EPOCHS = 4


class Killed(Exception):
    """What ends a training in the middle."""


def state_of(model: QatModel) -> dict[str, np.ndarray]:
    """Everything that training moves."""
    owners = {"student": model.student.weights, "optimizer": model.optimizer.variables}
    owners |= {method.name: method.weights for method in model.methods}
    return {
        f"{owner}/{index}/{variable.name}": variable.numpy()
        for owner, variables in owners.items()
        for index, variable in enumerate(variables)
    }


def make(names: str) -> QatModel:
    """A compiled model, the same whenever it is made."""
    teacher, student = pair()
    arguments = {"sfp": {"seed": 3, "probability": 0.5}, "freezing": {"threshold": 0.05}}
    model = QatModel(student, teacher, tf_fpq.methods_from_names(names, **arguments))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOSS, metrics=["accuracy"])
    return model


def train(model: QatModel, *more: keras.callbacks.Callback, first: int = 0, killed: bool = False):
    """Four epochs of two batches, in order."""
    if model.methods and "weight" in model.methods[-1].coefficients:
        curve = callbacks.cosine(1.0, 0.1)
        more = (*more, callbacks.Schedule(model.methods[-1], "weight", curve))
    if killed:
        more = (*more, keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    data = {"batch_size": 16, "shuffle": False, "verbose": 0, "initial_epoch": first}
    model.fit(images(), labels(), epochs=EPOCHS, callbacks=list(more), **data)


def kill(epoch: int, logs=None) -> None:
    if epoch == 2:
        raise Killed


METHODS = ["none", "fpq", "csd,cr", "sam", "freezing"]


@pytest.mark.parametrize(
    "names",
    [n if n == "fpq" else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_a_resumed_training_is_bit_equal_to_an_uninterrupted_one(names, tmp_path):
    whole = make(names)
    train(whole)
    expected = state_of(whole)

    file = str(tmp_path / "last.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(file)
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    model = make(names)
    with pytest.raises(Killed):
        train(model, checkpoint, backup, killed=True)

    restored = make(names)
    train(restored, keras.callbacks.BackupAndRestore(str(tmp_path / "backup")))
    assert_equal(state_of(restored), expected)

    loaded = QatModel.load(file, whole.teacher)
    train(loaded, first=2)
    assert_equal(state_of(loaded), expected)


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for (name, one), (_, other) in zip(found.items(), expected.items(), strict=True):
        np.testing.assert_array_equal(one, other, name)


def test_a_file_holds_all_but_the_teacher(tmp_path):
    model = make("fpq,kd,cr")
    train(model)
    model.methods[0].set_coefficient("probability", 0.25)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_equal(state_of(again), state_of(model))
    assert [type(method) for method in again.methods] == [type(m) for m in model.methods]
    assert [m.get_config() for m in again.methods] == [m.get_config() for m in model.methods]
    assert again.step_size_learning_rate_factor == model.step_size_learning_rate_factor
    np.testing.assert_array_equal(
        again.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    with pytest.raises(ValueError, match="teacher must be given: csd, kd .*set_teacher"):
        again.fit(images(), labels(), verbose=0)
    again.set_teacher(model.teacher)
    again.fit(images(), labels(), verbose=0)

    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        names: list[str] = []
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visit(names.append)
    assert any("student" in name for name in names)
    assert not any("teacher" in name for name in names)  # nor is CR's average there twice


def test_a_model_is_saved_as_keras_only(tmp_path):
    model = make("none")
    for name in ("folder", "m.h5"):
        with pytest.raises(ValueError, match="filepath must end in .keras.*model.student.save"):
            model.save(str(tmp_path / name))
    model.student.save(tmp_path / "s.keras")
    with pytest.raises(ValueError, match="path must be a file of a QatModel.*holds a Functional"):
        QatModel.load(tmp_path / "s.keras")


def test_a_model_that_was_never_compiled_can_be_saved(tmp_path):
    _, student = pair()
    QatModel(student).save(tmp_path / "m.keras")
    again = QatModel.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(tf.constant(images())), student(images()))
