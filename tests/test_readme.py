"""The README's example runs as it stands."""

import functools
import pathlib
import re

from sklearn import datasets

from experiments import models
import tflite_export

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_example_of_ones_own_model(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    models.build("resnet8", (8, 8, 1), 10, width=4).save("float.keras")
    digits = datasets.load_digits()
    images, labels = digits.images[:64, ..., None].astype("float32") / 16, digits.target[:64]
    # One epoch from random weights leaves near ties, so the classes need not agree; the codes must.
    monkeypatch.setattr(tflite_export, "verify", functools.partial(tflite_export.verify, min_top1_agreement=0))
    exec(example.replace("epochs=20", "epochs=1"), {"images": images, "labels": labels})
    assert {path.name for path in tmp_path.iterdir()} == {"float.keras", "w4a4.tflite", "report.html"}
