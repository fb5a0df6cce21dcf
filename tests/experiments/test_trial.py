"""A run measures what it says: pairs by seed, the file, and batch norms once more."""

import dataclasses

import numpy as np
import pytest

from experiments import pipeline, trial
from experiments.checkpoints import Checkpoints
from experiments.config import Config
import tf_fpq
from tf_fpq.keras_compat import keras


@pytest.fixture(scope="module")
def base(data_dir, tmp_path_factory):
    """A tiny run on digits, with a teacher that is there."""
    folder = tmp_path_factory.mktemp("trial")
    config = Config(
        data_dir=data_dir,
        train_examples=128,
        validation_examples=200,
        width=4,
        batch_size=32,
        float_epochs=2,
        epochs=1,
        methods=("none",),
        workdir=str(folder / "run"),
    )
    pipeline.seed_everything(config)
    model, _ = pipeline.float_teacher(config, pipeline.load(config), watch=False)
    model.save(folder / "float.keras")
    return dataclasses.replace(config, teacher=str(folder / "float.keras"))


def figures_of(config):
    """What is to be repeated: all but the seconds."""
    figures = trial.run(config)
    assert figures.pop("seconds") > 0
    return figures


@pytest.mark.slow
def test_figures_of_a_student(base):
    figures = trial.run(base)
    assert (figures["codes_differing"], figures["codes_compared"]) == (0, 2 * 200 * 10)
    dataset = pipeline.load(base)
    teacher = keras.models.load_model(base.teacher, compile=False)
    assert figures["accuracy_float"] == pipeline.accuracy(teacher, dataset)
    student = keras.models.load_model(f"{base.workdir}/student.keras", compile=False)
    assert figures["accuracy_student"] == pipeline.accuracy(student, dataset)
    assert figures["train_accuracy"] == pipeline.accuracy_on(student, dataset.plain_train_batches())
    batches = dataset.train_batches(base.batch_size, base.seed, base.augment).take(20)
    tf_fpq.callbacks.reestimate_batch_norm(student, batches)
    assert figures["accuracy_student_reestimated"] == pytest.approx(
        pipeline.accuracy(student, dataset), abs=0.011
    )
    for name in ("accuracy_tflite", "accuracy_tflite_reestimated"):
        assert figures[name] == pytest.approx(figures[name.replace("tflite", "student")], abs=0.011)


@pytest.mark.slow
def test_figures_follow_from_the_seed(base):
    first, again, other = (figures_of(dataclasses.replace(base, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.slow
def test_a_float_network_goes_on_training_and_has_no_file(base):
    config = dataclasses.replace(base, methods=("float",), epochs=3)
    figures = trial.run(config)
    assert figures["accuracy_tflite"] is None and figures["codes_compared"] == 0
    standing = trial.run(dataclasses.replace(config, epochs=0))
    assert standing["accuracy_student"] == figures["accuracy_float"] == standing["accuracy_float"]
    assert figures["accuracy_student"] != figures["accuracy_float"]


@pytest.mark.slow
def test_methods_of_one_seed_see_the_same_images_from_the_same_student(base, monkeypatch):
    seen = []

    def train_student(config, student, teacher, dataset, *, watch, checkpoints):
        batches = list(dataset.train_batches(config.batch_size, config.seed, config.augment))
        seen.append([*student.get_weights(), batches[0][0].numpy(), batches[-1][0].numpy()])

    monkeypatch.setattr(pipeline, "train_student", train_student)
    for methods, rate in ((("none",), 0.1), (("sfp", "kd"), 0.01)):
        trial.run(dataclasses.replace(base, methods=methods, learning_rate=rate))
    trial.run(dataclasses.replace(base, seed=1))
    first, second, other = seen
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[-1], other[-1])


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(base, tmp_path, monkeypatch):
    config = dataclasses.replace(
        base, methods=("fpq",), epochs=2, workdir=str(tmp_path / "whole"), validation_examples=40
    )
    expected = figures_of(config)
    killed = dataclasses.replace(config, workdir=str(tmp_path / "killed"))
    real = Checkpoints.on_epoch_end
    monkeypatch.setattr(trial, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def kill(self, epoch, logs=None):
        real(self, epoch, logs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "on_epoch_end", kill)
        trial.run(killed)
    assert figures_of(killed) == expected
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["student.keras"]
