"""Files of both Keras are read, whatever was imported first, and what cannot be read is
explained."""

import subprocess
import sys
import zipfile

import keras as keras3
import numpy as np
import pytest

from tf_fpq.conversion import loading
from tf_fpq.keras_compat import keras
from tflite_export import command_line

layers3 = keras3.layers


def _sequential(*layers, shape=(8, 8, 4)):
    return keras3.Sequential([keras3.Input(shape), *layers])


@pytest.mark.parametrize("file_name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("load", [loading.load_model, command_line.load_keras])
def test_load_reads_files_of_both(tmp_path, file_name, load):
    path = tmp_path / file_name
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    third = _sequential(layers3.Conv2D(3, 3, activation="hard_silu"), layers3.BatchNormalization())
    third.save(path)
    np.testing.assert_allclose(load(path)(x), third(x, training=False), rtol=1e-5, atol=1e-5)
    second = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(3, 3)])
    second.save(path)
    np.testing.assert_array_equal(load(path)(x), second(x))


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="No model file"):
        loading.load_model(tmp_path / "none.keras")
    path = tmp_path / "model.keras"
    _sequential(layers3.Dense(2)).save(path)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r"written by Keras 3.*pip install 'keras>=3'"):
        loading.load_model(path)


@pytest.mark.slow
def test_a_process_that_imports_keras_3_first(tmp_path):
    path = tmp_path / "model.keras"
    _sequential(layers3.Conv2D(2, 3)).save(path)
    for first in ("import keras", "import tf_fpq", "import tensorflow as tf; tf.keras"):
        code = (
            f"{first}; from tf_fpq.conversion import loading;"
            f" print(type(loading.load_model({str(path)!r})).__module__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith("tf_keras.src.engine.functional")


class _Own3(layers3.Layer):
    def call(self, x):
        return x * 2


def _files(tmp_path):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x * 2

    x, x3 = keras.Input((4,)), keras3.Input((4,))
    for name, model in (
        ("own", keras.Model(x, Own()(x))),
        ("own3", keras3.Model(x3, _Own3()(x3))),
        ("lambda", keras.Model(x, keras.layers.Lambda(lambda t: t * 2)(x))),
        ("lambda3", keras3.Model(x3, layers3.Lambda(lambda t: t * 2)(x3))),
    ):
        model.save(tmp_path / f"{name}.keras")
    (tmp_path / "junk.keras").write_text("junk")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own", r"must be imported first; on the command line, --imports=MODULE\.$"),
        ("own3", r"'_Own3'.*must be imported first; on the command line, --imports=MODULE\.$"),
        ("lambda", "has a Lambda layer.*Write it as Keras layers or operators"),
        ("lambda3", "has a Lambda layer.*Write it as Keras layers or operators"),
        ("junk", "is no model file"),
    ],
)
def test_what_cannot_be_read_is_explained_in_a_line(tmp_path, name, said):
    _files(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        loading.load_model(tmp_path / f"{name}.keras")
    assert "\n" not in str(caught.value)


def _with_code(path, marker):
    """A model that writes `marker` when it is loaded: the function runs when Keras rebuilds it."""
    text = str(marker)

    def act(x):
        import pathlib

        pathlib.Path(text).touch()
        return x

    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(act)])
    keras.Model(x, inner(x)).save(path)
    marker.unlink()
    return path


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "folder"])
@pytest.mark.parametrize("load", [loading.load_model, command_line.load_keras])
def test_code_in_a_file_runs_only_if_it_is_trusted(tmp_path, name, load):
    marker = tmp_path / "ran"
    path = str(_with_code(tmp_path / name, marker))
    if name == "folder" and load is command_line.load_keras:
        with pytest.raises(FileNotFoundError, match="No such file: .*folder"):
            load(path)
        return
    with pytest.raises(ValueError, match=f"Cannot load .*{name}.*(Lambda layer|is a program)") as e:
        load(path)
    assert not marker.exists() and "\n" not in str(e.value)
    load(path, trust=True)
    assert marker.exists()


def test_a_file_that_is_two_at_once_is_looked_at_as_both(tmp_path):
    """Keras goes by the name, and reads this archive as HDF5."""
    marker = tmp_path / "ran"
    path = _with_code(tmp_path / "model.h5", marker)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", "{}")
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match="Lambda layer"):
        loading.load_model(path)
    assert not marker.exists()
