"""The README's example runs as it stands."""

import functools
import pathlib
import re

from sklearn import datasets
import tensorflow_model_optimization as tfmot

from experiments import models
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_example_of_ones_own_model(tmp_path, monkeypatch):
    example = _examples()[0]
    monkeypatch.chdir(tmp_path)
    models.build("resnet8", (8, 8, 1), 10, width=4).save("float.keras")
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


def test_example_in_tfmots_own_code():
    names = {"tf_fpq": tf_fpq, "tfmot": tfmot, "keras": keras}
    exec(_examples()[1], names)
    model = names["model"]
    assert model.output_shape == (None, 10)
    assert any("step_size" in variable.name for variable in model.trainable_variables)
