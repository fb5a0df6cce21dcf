"""Killed runs end as the one that nobody killed; what they would leave is noticed."""

import json
import shutil

import numpy as np
import pytest

from experiments.evidence import kill_test
from tf_fpq.keras_compat import keras


@pytest.mark.slow
def test_three_kills(tmp_path):
    lines = []
    assert kill_test.run_kills(3, 1, tmp_path, lines.append) >= 1
    assert "3 kills" in lines[-1] and "all are the uninterrupted one" in lines[-1]


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same run."""
    one = tmp_path / "one"
    (one / "cell").mkdir(parents=True)
    keras.utils.set_random_seed(0)
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(one / "cell/student.keras")
    (one / "cell/model.tflite").write_bytes(b"TFL3")
    (one / "cell/result.json").write_text(json.dumps({"metrics": [1], "seconds": {"a": 1}}))
    (one / "rows.jsonl").write_text(json.dumps({"seed": 0, "metrics": [1]}) + "\n")
    shutil.copytree(one, tmp_path / "other")
    return one, tmp_path / "other"


def add_file(folder):
    (folder / "cell/.student.x.keras").touch()


def change_weights(folder):
    model = keras.models.load_model(folder / "cell/student.keras")
    kernel = model.get_weights()[0]
    model.set_weights([np.nextafter(kernel, 9).astype(np.float32), *model.get_weights()[1:]])
    model.save(folder / "cell/student.keras")


def change_bytes(folder):
    (folder / "cell/model.tflite").write_bytes(b"TFL4")


def change_figure(folder):
    (folder / "cell/result.json").write_text(json.dumps({"metrics": [2], "seconds": {"a": 1}}))


def lose_row(folder):
    (folder / "rows.jsonl").write_text('{"seed": 0, "me')


@pytest.mark.parametrize("spoil", [add_file, change_weights, change_bytes, change_figure, lose_row])
def test_what_differs_is_found(folders, spoil):
    one, other = folders
    kill_test.compare(one, other)
    spoil(one)
    with pytest.raises(kill_test.DifferenceError):
        kill_test.compare(one, other)


def test_seconds_and_half_lines_are_no_differences(folders):
    one, other = folders
    (one / "cell/result.json").write_text(json.dumps({"metrics": [1], "seconds": {"a": 7}}))
    row = (one / "rows.jsonl").read_text()
    (one / "rows.jsonl").write_text(row[:20] + "\n" + row)
    kill_test.compare(one, other)
