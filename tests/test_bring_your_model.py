"""The examples of docs/bring-your-model.md run in order, as they stand, down to verified files."""

import pathlib
import re

import pytest

from tf_fpq.conversion import canonical
from tf_fpq.keras_compat import keras
from tflite_export.lowering import operators

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "docs/bring-your-model.md").read_text()


@pytest.fixture(autouse=True)
def _forgets_what_is_registered(monkeypatch):
    for module, name in ((canonical, "LAYERS"), (operators, "STARTS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {}
    for example in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(example, names)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tflite", "keras3.tflite"}
    student = names["trainer"].student
    widths = {
        n: student.get_layer(n).quantize_config.weight_bits
        for n in ("attention", "attention_squeeze", "project")
    }
    assert widths == {"attention": 4, "attention_squeeze": 4, "project": 4}
