import dataclasses
import json
import pathlib

import numpy as np
import pytest

from experiments import data, models, pipeline
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from tf_fpq.keras_compat import keras
import tflite_export

FILES = {
    "float.keras",
    "student.keras",
    "model.tflite",
    "report.json",
    "report.html",
    "result.json",
}


@pytest.fixture(scope="module")
def small(data_dir):
    """A run of seconds: few images, a narrow network, little training."""
    return Config(
        data_dir=data_dir,
        train_examples=256,
        width=4,
        float_epochs=2,
        epochs=1,
        kernels=("xnnpack",),
        weight_bits=3,
        min_top1_agreement=0,
    )


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    config = dataclasses.replace(small, workdir=str(tmp_path_factory.mktemp("run")))
    return config, pipeline.run(config)


def test_run_writes_everything_and_nothing_else(finished):
    config, result = finished
    folder = pathlib.Path(config.workdir)
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["metrics"]["bytes"] == (folder / "model.tflite").stat().st_size


def test_result_repeats_the_configuration(finished):
    config, result = finished
    assert Config(**result["config"]) == config
    assert (
        len(result["history"]["float"]["loss"]) == 2
        and len(result["history"]["student"]["csd_loss"]) == 1
    )


def test_a_finished_run_is_not_repeated(finished, monkeypatch):
    config, result = finished
    monkeypatch.setattr(pipeline, "load", None)
    assert pipeline.run(config) == json.loads(json.dumps(result))


@pytest.mark.parametrize(
    "field", ["float_learning_rate", pytest.param("learning_rate", marks=pytest.mark.slow)]
)
def test_a_training_that_diverges_is_one_line_and_leaves_no_half_product(
    small, tmp_path, monkeypatch, field
):
    """Where the float network is not at fault it stays."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small, methods=("none",), workdir="run", **{field: 1e30})
    with pytest.raises(ArithmeticError, match="^Training .*diverged in (step|epoch)") as error:
        pipeline.run(config)
    assert "\n" not in str(error.value)
    left = {path.name for path in pathlib.Path("run").iterdir()}
    assert left == {"checkpoints", *(["float.keras"] if field == "learning_rate" else [])}


class KilledError(Exception):
    """What ends a run in the middle."""


def kill_after(monkeypatch, saves):
    """Ends a run after so many checkpoints."""
    real, count = Checkpoints.on_epoch_end, 0

    def on_epoch_end(self, epoch, logs=None):
        nonlocal count
        real(self, epoch, logs)
        count += 1
        if count == saves:
            raise KilledError

    monkeypatch.setattr(Checkpoints, "on_epoch_end", on_epoch_end)


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(small, tmp_path, monkeypatch):
    """Killed in the middle of the teacher's training, then of the student's."""
    config = dataclasses.replace(
        small, methods=("fpq", "cr"), epochs=2, train_examples=128, workdir=str(tmp_path / "whole")
    )
    expected = pipeline.run(config)
    killed = dataclasses.replace(config, workdir=str(tmp_path / "killed"))
    for saves in (1, 2):
        with monkeypatch.context() as patched, pytest.raises(KilledError):
            kill_after(patched, saves)
            pipeline.run(killed)
        assert not (tmp_path / "killed" / "result.json").exists()
    found = pipeline.run(killed)
    assert (found["metrics"], found["history"]) == (expected["metrics"], expected["history"])
    one, other = (tmp_path / name / "model.tflite" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert {path.name for path in (tmp_path / "killed").iterdir()} == FILES


def test_twin_and_file_agree_in_every_code(finished):
    metrics = finished[1]["metrics"]
    assert (metrics["codes_differing"], metrics["codes_compared"]) == (0, 3600)
    assert metrics["twin_accuracy"] == metrics["tflite_accuracy"]


def test_saved_student_is_the_measured_one(finished, digits):
    config, result = finished
    student = keras.models.load_model(f"{config.workdir}/student.keras", compile=False)
    assert pipeline.accuracy(student, digits) == result["metrics"]["student_accuracy"]


def test_table_shows_the_metrics(finished):
    _, result = finished
    text = pipeline.table(result)
    for name in ("float_accuracy", "student_accuracy", "twin_accuracy", "tflite_accuracy"):
        assert f"{result['metrics'][name]:.2%}" in text
    assert "digits, resnet8, W3A4, fpq, seed 0" in text and "0 of 3600" in text


def test_teacher_is_loaded_instead_of_trained(small, digits, tmp_path):
    saved = models.build("resnet8", digits.image_shape, 10, width=4)
    saved.save(tmp_path / "t.keras")
    teacher, history = pipeline.float_teacher(
        dataclasses.replace(small, teacher=str(tmp_path / "t.keras")), digits
    )
    assert history == {}
    assert all(
        np.array_equal(a, b)
        for a, b in zip(saved.get_weights(), teacher.get_weights(), strict=True)
    )


@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((8, 8, 1), 100)])
def test_teacher_of_another_dataset_is_refused(small, digits, tmp_path, shape, classes):
    models.build("resnet8", shape, classes, width=4).save(tmp_path / "t.keras")
    with pytest.raises(ValueError, match=r"\(None, 8, 8, 1\) to \(None, 10\) for digits.*Received"):
        pipeline.float_teacher(
            dataclasses.replace(small, teacher=str(tmp_path / "t.keras")), digits
        )


def test_accuracy_of_a_known_answer(digits):
    """A model that always says 3 is right on as many images as show a 3."""
    image = keras.Input(digits.image_shape)
    zeros = keras.layers.Dense(
        10, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(np.eye(10)[3])
    )
    model = keras.Model(image, zeros(keras.layers.Flatten()(image)))
    assert pipeline.accuracy(model, digits) == np.mean(digits.test_labels == 3)


@pytest.mark.filterwarnings("ignore:All batch norms")  # a network that was not trained
def test_failed_verification_leaves_the_report_and_no_result(small, tmp_path, monkeypatch):
    """If the file is not the trained model, the report says why, and there is no figure."""
    real = tflite_export.verify

    def verify(student, exported, images, **kwargs):
        kernel = next(
            v for v in student.get_layer("logits").weights if v.name.split("/")[-1] == "kernel:0"
        )
        kernel.assign(-kernel)
        return real(student, exported, images, **kwargs)

    monkeypatch.setattr(tflite_export, "verify", verify)
    with pytest.raises(tflite_export.VerificationError):
        pipeline.run(dataclasses.replace(small, float_epochs=0, epochs=0, workdir=str(tmp_path)))
    names = {path.name for path in tmp_path.iterdir()}
    assert "result.json" not in names and {"report.json", "report.html"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_demo_reaches_what_the_readme_says(data_dir, tmp_path, seed):
    """Float at least 98 %, W4A4 FPQ within a point of it, and the file is the twin on every kernel
    set it stands for."""
    result = pipeline.run(Config(data_dir=data_dir, workdir=str(tmp_path), seed=seed))
    metrics = result["metrics"]
    assert metrics["float_accuracy"] >= 0.98
    assert metrics["student_accuracy"] >= metrics["float_accuracy"] - 0.01
    assert (
        metrics["tflite_accuracy"] == metrics["twin_accuracy"] and metrics["codes_differing"] == 0
    )
    assert metrics["student_agreement"] >= 0.995


@pytest.mark.slow
def test_figures_follow_from_the_seed(small, tmp_path):
    def figures(name, seed):
        result = pipeline.run(dataclasses.replace(small, workdir=str(tmp_path / name), seed=seed))
        return result["metrics"], result["history"]

    first = figures("a", 1)
    assert figures("b", 1) == first
    assert figures("c", 2) != first


@pytest.mark.slow
@pytest.mark.parametrize("model", models.SMALL)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4), (2, 4), (2, 2)])
def test_every_scheme_verifies(small, tmp_path, model, bits):
    config = dataclasses.replace(
        small,
        model=model,
        weight_bits=bits[0],
        activation_bits=bits[1],
        width=8,
        kernels=("xnnpack", "reference"),
        workdir=str(tmp_path),
    )
    assert (
        pipeline.run(config)["metrics"]["codes_differing"] == 0
    )  # and verify found twin_double = reference


def test_dataset_error_comes_before_training(tmp_path, monkeypatch):
    def missing(*arguments, **kwargs):
        raise data.DatasetMissingError("not here")

    monkeypatch.setattr(data, "load", missing)
    with pytest.raises(data.DatasetMissingError):
        pipeline.run(Config(workdir=str(tmp_path)))
    assert not list(tmp_path.iterdir())
