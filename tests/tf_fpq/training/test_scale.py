"""Replicas, workers, XLA, half precision, several steps per execution."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.tf_fpq.small_student import bytes_of, fit, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods import presets
from tf_fpq.training.qat_model import QatModel

ROOT = pathlib.Path(__file__).parents[3]
ALL_BUT_NOISE = "csd,kd,cr,sam,dampening,freezing"


def start(kind: str, methods: str, path: pathlib.Path, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "tests.tf_fpq.training.distributed_training",
        kind,
        methods,
        str(path),
    ]
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=580)
        assert process.returncode == 0, errors[-4000:]


def assert_same(first: pathlib.Path, second: pathlib.Path, rtol: float = 2e-4) -> None:
    a, b = np.load(first), np.load(second)
    assert set(a.files) == set(b.files) and len(a.files) > 40
    for name in a.files:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_two_replicas_train_what_one_device_trains(tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    for kind, path in (("none", one), ("mirrored", two)):
        finish(start(kind, ALL_BUT_NOISE, path))
    # The fused batch norm corrects its variance by n / (n - 1), n = 512 or 1024 pixels: a part in a
    # thousand.
    assert_same(one, two, rtol=2e-3)


@pytest.mark.slow
def test_two_workers_agree_with_each_other_and_with_one_process(tmp_path):
    paths = [tmp_path / "worker0.npz", tmp_path / "worker1.npz"]
    with socket.socket() as a, socket.socket() as b:
        a.bind(("localhost", 0)), b.bind(("localhost", 0))
        workers = [f"localhost:{s.getsockname()[1]}" for s in (a, b)]
    clusters = [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in (0, 1)
    ]
    finish(
        *[
            start("workers", "csd,cr", path, TF_CONFIG=config)
            for path, config in zip(paths, clusters)
        ]
    )
    assert_same(paths[0], paths[1], rtol=1e-6)
    finish(start("none", "csd,cr", tmp_path / "one.npz"))
    assert_same(paths[0], tmp_path / "one.npz", rtol=2e-3)


@pytest.mark.slow
def test_noise_and_all_methods_run_on_two_replicas(tmp_path):
    finish(start("mirrored", "fpq,kd,cr,sam,dampening,freezing", tmp_path / "all.npz"))
    result = np.load(tmp_path / "all.npz")
    assert np.isfinite(result["log_loss"]).all()


@pytest.mark.parametrize("names", ["", pytest.param("csd,cr", marks=pytest.mark.slow)])
def test_xla_trains_what_the_graph_trains(names):
    results = []
    for jit_compile in (False, True):
        teacher, student = pair()
        model = QatModel(student, teacher, presets.methods_from_names(names))
        history = fit(model, epochs=1, jit_compile=jit_compile)
        results.append([history["loss"], *student.get_weights()])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_xla_trains_with_all_methods():
    teacher, student = pair()
    names = "fpq,kd,cr,sam,dampening,freezing"
    history = fit(
        QatModel(student, teacher, presets.methods_from_names(names, sfp={"seed": 0})),
        epochs=1,
        jit_compile=True,
    )
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
def test_several_steps_per_execution_train_the_same():
    results = []
    for steps in (1, 2):
        teacher, student = pair()
        fit(
            QatModel(student, teacher, presets.methods_from_names("csd,cr")),
            steps_per_execution=steps,
        )
        results.append(bytes_of(student))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_teacher_computes_in_half_precision(dtype):
    histories = {}
    for teacher_dtype in (None, dtype):
        teacher, student = pair()
        before = bytes_of(teacher)
        model = QatModel(
            student, teacher, presets.methods_from_names("csd,kd"), teacher_dtype=teacher_dtype
        )
        histories[teacher_dtype] = fit(model, epochs=1)
        assert bytes_of(teacher) == before
    outputs = model._teacher_graph(images())
    assert outputs["features"]["stem"].dtype == outputs["predictions"].dtype == dtype
    for name in ("kd_loss", "csd_loss"):
        assert histories[dtype][name] != histories[None][name]
        np.testing.assert_allclose(
            histories[dtype][name], histories[None][name], rtol=0.05, atol=1e-3
        )


def test_unknown_teacher_dtype():
    teacher, student = pair()
    with pytest.raises(
        ValueError, match="teacher_dtype must be one of .*Received: teacher_dtype='int8'"
    ):
        QatModel(student, teacher, presets.methods_from_names("kd"), teacher_dtype="int8")


@pytest.fixture(params=["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def half_precision(request):
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


def test_a_student_trains_in_float32_under_any_policy(half_precision):
    keras.mixed_precision.set_global_policy("float32")
    _, student = pair()
    reference = fit(QatModel(student, methods=presets.methods_from_names("cr")))
    keras.mixed_precision.set_global_policy(half_precision)
    teacher, other = pair()
    model = QatModel(other, methods=presets.methods_from_names("cr"))
    history = fit(model)
    assert teacher.get_layer("stem").compute_dtype == half_precision.removeprefix("mixed_")
    assert history == reference
    assert bytes_of(other) == bytes_of(student)
    np.testing.assert_array_equal(
        model.predict(images(), verbose=0), student.predict(images(), verbose=0)
    )


def test_a_teacher_made_under_a_half_precision_policy(half_precision):
    teacher, student = pair()
    history = fit(QatModel(student, teacher, presets.methods_from_names("fpq,kd,cr")), epochs=3)
    assert np.isfinite(history["loss"]).all()


def test_cached_teacher_trains_the_same_as_the_running_one():
    results = []
    for cache_teacher in (False, True):
        teacher, student = pair()
        model = QatModel(
            student, teacher, presets.methods_from_names("csd,kd"), cache_teacher=cache_teacher
        )
        history = fit(model, validation_split=0.5)
        assert {"val_loss", "val_accuracy"} <= set(history)
        results.append(student.get_weights())
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_cached_teacher_runs_once_per_image_of_a_dataset():
    import tensorflow as tf

    teacher, student = pair()
    model = QatModel(student, teacher, presets.methods_from_names("kd"), cache_teacher=True)
    model.compile(
        keras.optimizers.SGD(0.0), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    data = tf.data.Dataset.from_tensor_slices((images(), labels())).batch(16)
    first = model.fit(data, epochs=1, verbose=0).history["kd_loss"][0]
    teacher.get_layer("logits").kernel.assign_add(tf.ones_like(teacher.get_layer("logits").kernel))
    from tf_fpq.training import teacher as teachers

    cached, _ = teachers.with_outputs(data, None, model._teacher_graph, None)
    before = [x["teacher"]["predictions"].numpy() for x, _ in cached]
    teacher.get_layer("logits").kernel.assign_add(tf.ones_like(teacher.get_layer("logits").kernel))
    after = [x["teacher"]["predictions"].numpy() for x, _ in cached]
    np.testing.assert_array_equal(before, after)
    assert np.isfinite(first)


def test_errors_of_the_cache(monkeypatch):
    import tensorflow as tf

    from tf_fpq.training import teacher as teachers

    teacher, student = pair()
    with pytest.raises(
        ValueError, match="cache_teacher=True needs a method that compares with the teacher"
    ):
        QatModel(student, teacher, [], cache_teacher=True)
    model = QatModel(student, teacher, presets.methods_from_names("csd"), cache_teacher=True)
    model.compile("sgd", loss="mse")
    views = tf.data.Dataset.from_tensors(({"weak": images(4), "strong": images(4)}, labels(4)))
    with pytest.raises(ValueError, match="does not go with augmented views"):
        model.fit(views, verbose=0)
    with pytest.raises(
        TypeError,
        match=(
            "cache_teacher=True needs x as one array or a tf.data.Dataset. Received: x of type list"
        ),
    ):
        model.fit([1], [1], verbose=0)
    endless = tf.data.Dataset.from_tensors((images(4), labels(4))).repeat()
    with pytest.raises(ValueError, match="needs a dataset that ends.*Leave .repeat.. out"):
        model.fit(endless, verbose=0, steps_per_epoch=1)
    monkeypatch.setattr(teachers, "CACHE_LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match="above the limit"):
        model.fit(images(), labels(), verbose=0)
