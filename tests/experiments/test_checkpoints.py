"""Trainings that go on from the newest checkpoint that is whole."""

import pathlib
import warnings

import numpy as np
import pytest

from experiments.checkpoints import Checkpoints
from tf_fpq.keras_compat import keras

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
Y = np.arange(32) % 3


def compiled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def trained(folder, epochs, keep=2, **arguments):
    """A model that has trained so many epochs, going on where it was."""
    model, checkpoints = compiled(), Checkpoints(folder, keep, **arguments)
    done = checkpoints.restore(model)
    data = {"shuffle": False, "batch_size": 16, "verbose": 0}
    model.fit(X, Y, initial_epoch=done, epochs=epochs, callbacks=[checkpoints], **data)
    return model, checkpoints, done


def test_a_training_that_goes_on_is_the_uninterrupted_one(tmp_path):
    whole, checkpoints, _ = trained(tmp_path / "a", 4)
    trained(tmp_path / "b", 2)
    model, resumed, done = trained(tmp_path / "b", 4)
    assert done == 2 and resumed.history == checkpoints.history
    assert {name: len(values) for name, values in resumed.history.items()} == {
        "loss": 4,
        "accuracy": 4,
    }
    for one, other in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_seconds_of_epochs_before_a_kill_are_known(tmp_path):
    """A clock that is looked at once when training begins, and once an epoch."""
    _, first, _ = trained(tmp_path, 2, clock=iter([100.0, 103.0, 105.0]).__next__)
    _, second, _ = trained(tmp_path, 3, clock=iter([7.0, 8.0]).__next__)
    _, third, _ = trained(tmp_path, 3, clock=iter([0.0]).__next__)
    assert [c.seconds_before for c in (first, second, third)] == [0.0, 5.0, 6.0]
    assert "seconds" not in third.history


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_stay_as_are_asked_for(tmp_path, keep):
    trained(tmp_path, 2, keep)
    trained(tmp_path, 5, keep)
    assert len(list(tmp_path.glob("*.index"))) == keep


def test_the_time_between_two_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=3600)
    model = compiled()
    checkpoints.restore(model)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[checkpoints])
    assert not list(tmp_path.glob("*.index"))
    assert len(checkpoints.history["loss"]) == 2


def damage(path: pathlib.Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("spoil", [damage, cut, pathlib.Path.unlink])
@pytest.mark.parametrize("part", ["epoch-3.index", "epoch-3.data-00000-of-00001"])
def test_the_one_before_takes_the_place_of_one_that_is_damaged(tmp_path, spoil, part):
    trained(tmp_path, 3)
    spoil(tmp_path / part)
    gone = spoil is pathlib.Path.unlink and part.endswith("index")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, checkpoints, done = trained(tmp_path, 4)
    assert done == 2
    messages = [str(warning.message) for warning in caught]
    assert any("epoch-3 cannot be read and is passed over" in text for text in messages) != gone
    expected, whole, _ = trained(tmp_path / "whole", 4)
    assert checkpoints.history == whole.history
    np.testing.assert_array_equal(model.get_weights()[0], expected.get_weights()[0])


def test_a_damaged_list_of_checkpoints_loses_none(tmp_path):
    trained(tmp_path, 3)
    (tmp_path / "checkpoint").write_text("nonsense")
    assert trained(tmp_path, 3)[2] == 3


def test_without_any_that_is_whole_a_training_begins(tmp_path):
    trained(tmp_path, 1)
    damage(tmp_path / "epoch-1.index")
    with pytest.warns(UserWarning, match="epoch-1 cannot be read"):
        model, checkpoints, done = trained(tmp_path, 1)
    assert done == 0 and len(checkpoints.history["loss"]) == 1
    expected, _, _ = trained(tmp_path / "whole", 1)
    np.testing.assert_array_equal(model.get_weights()[0], expected.get_weights()[0])
