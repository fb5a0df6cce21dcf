"""The README's example runs as it stands, and its picture is that of the rows."""

import functools
import pathlib
import re

import keras
from sklearn import datasets

import tflite_export
from tools import result_picture

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def _network_of_keras3() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="stem_conv"),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, name="logits"),
        ]
    )


def test_example_of_ones_own_model(tmp_path, monkeypatch):
    example = _examples()[0]
    monkeypatch.chdir(tmp_path)
    _network_of_keras3().save("float.keras")
    digits = datasets.load_digits()
    images, labels = digits.images[:64, ..., None].astype("float32") / 16, digits.target[:64]
    # One epoch from random weights leaves near ties, so the classes need not agree; the codes must.
    monkeypatch.setattr(
        tflite_export, "verify", functools.partial(tflite_export.verify, min_top1_agreement=0)
    )
    exec(example.replace("epochs=20", "epochs=1"), {"images": images, "labels": labels})
    assert {path.name for path in tmp_path.iterdir()} == {
        "float.keras",
        "w4a4.tflite",
        "report.html",
    }


def test_the_picture_is_drawn_from_the_rows():
    assert result_picture.PICTURE.read_text() == result_picture.svg(), (
        "Run `python -m tools.result_picture`."
    )


def test_shares_of_the_picture_are_means_over_seeds():
    found = [
        {
            "network": "n",
            "ours": {"differing": differing, "codes": 4},
            "tfmot": {"differing": 3, "codes": 4},
        }
        for differing in (0, 1)
    ]
    assert result_picture.shared_codes(found) == {("n", "ours"): 87.5, ("n", "tfmot"): 25.0}


def test_the_first_screen_has_few_lines_of_code():
    code = [line for line in _examples()[0].splitlines() if line and "import" not in line]
    assert len(_examples()) == 1 and len(code) <= 11
