"""What a killed run might end with is noticed."""

import json
import shutil

import numpy as np
import pytest

from experiments.evidence import same_run
from tf_fpq.keras_compat import keras


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


def repeat_row(folder):
    path = folder / "rows.jsonl"
    path.write_text(path.read_text() * 2)


@pytest.mark.parametrize(
    "spoil", [add_file, change_weights, change_bytes, change_figure, lose_row, repeat_row]
)
def test_what_differs_is_found(folders, spoil):
    one, other = folders
    same_run.compare(one, other)
    spoil(one)
    with pytest.raises(same_run.DifferenceError):
        same_run.compare(one, other)


def test_seconds_and_half_lines_are_no_differences(folders):
    one, other = folders
    (one / "cell/result.json").write_text(json.dumps({"metrics": [1], "seconds": {"a": 7}}))
    row = (one / "rows.jsonl").read_text()
    (one / "rows.jsonl").write_text(row[:20] + "\n" + row)
    same_run.compare(one, other)
