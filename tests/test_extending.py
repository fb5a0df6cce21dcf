"""The stranger's task: the files of docs/extending.md, written to a folder and used as they are."""

import importlib
import pathlib
import re
import sys

import numpy as np
import pytest

import tf_fpq
from tf_fpq import roles
from tf_fpq.conversion import canonical
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import kernels
from tflite_export.flatbuffer import operator_options, operator_versions
from tflite_export.lowering import operators

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "docs/extending.md").read_text()
TABLES = (
    (roles, "ROLES"),
    (roles, "KERNELS"),
    (canonical, "LAYERS"),
    (operators, "STARTS"),
    (kernels, "KERNELS"),
    (operator_options, "OPTIONS"),
    (operator_versions, "INT8_VERSIONS"),
    (operator_versions, "RUNTIMES"),
)


@pytest.fixture(autouse=True)
def _forgets_what_is_registered():
    saved = [(getattr(module, name), dict(getattr(module, name))) for module, name in TABLES]
    yield
    for table, rows in saved:
        table.clear()
        table.update(rows)


class Mine(keras.layers.Layer):
    """A layer that nobody knows."""


def test_a_quantizer_a_method_and_an_operator_are_a_file_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    keras.utils.set_random_seed(0)
    *files, script = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = [re.match(r"# (\w+\.py)\n", text)[1] for text in files]
    assert names == ["power_of_two.py", "centralization.py", "absolute.py"]
    for name, text in zip(names, files, strict=True):
        (tmp_path / name).write_text(text)
    found = {}
    exec(script, found)
    student = found["student"]
    kinds = [operator.kind for operator in tflite_export.read("extended.tflite").operators]
    assert kinds.count("ABS") == 1
    steps = student.get_layer("conv").quantized_weights()[0]
    exponents = np.log2(steps[2].grid(steps[3])[0])
    np.testing.assert_array_equal(exponents, np.round(exponents))
    student.save("student.keras")
    again = keras.models.load_model("student.keras")
    np.testing.assert_array_equal(again(found["images"]), student(found["images"]))
    for name in names:
        sys.modules.pop(name[:-3], None)
    importlib.invalidate_caches()


def test_a_name_of_ones_own_in_the_table_of_quantizers(monkeypatch):
    from tf_fpq.placement import quantize_configs

    class Own(tf_fpq.quantizers.LsqQuantizer):
        """A quantizer without a config class."""

    monkeypatch.setitem(quantize_configs.QUANTIZE_CONFIGS, "own", Own)
    config = quantize_configs.config_maker("own")(4, 4)
    assert type(config.weight_quantizer(axis=(1,))) is Own
    assert type(quantize_configs.config_maker("lsq")(4, 4)) is tf_fpq.LsqQuantizeConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give rewrite, .* or role"),
        ({"rewrite": print, "role": roles.Role.CLAMP}, "and not both"),
        ({"role": roles.Role.KERNEL}, "kernel is needed for Role.KERNEL"),
        ({"role": roles.Role.AFFINE, "kernel": roles.Kernel("w", None)}, "and for no other"),
    ],
)
def test_a_layer_is_registered_in_one_way(arguments, message):
    with pytest.raises(ValueError, match=message):
        tf_fpq.register_layer(Mine, **arguments)


def test_a_layer_that_is_registered_again_changes_its_ways():
    tf_fpq.register_layer(Mine, role=roles.Role.KERNEL, kernel=roles.Kernel("w", (1,)))
    assert roles.kernel(Mine()) == roles.Kernel("w", (1,))
    tf_fpq.register_layer(Mine, rewrite=lambda rewriter, layer, name, x: x)
    assert roles.kernel(Mine()) is None and roles.role(Mine()) is None
    assert Mine in canonical.LAYERS


def test_instances_and_known_kinds_are_refused():
    with pytest.raises(TypeError, match="layer_class must be a class. Received: layer_class='Mine"):
        tf_fpq.register_layer("Mine", role=roles.Role.CLAMP)
    with pytest.raises(TypeError, match="layer_class must be a class"):
        tflite_export.register_operator(Mine(), print)
    kind = tflite_export.OperatorKind(name="ADD", kernel=print)
    with pytest.raises(ValueError, match="the package does not have.* Received: kind 'ADD'"):
        tflite_export.register_operator(Mine, print, kind)


def test_dir_shows_the_api():
    assert dir(tf_fpq) == sorted(tf_fpq.__all__)
    assert dir(tflite_export) == sorted(tflite_export.__all__)
    assert all(hasattr(tf_fpq, name) for name in tf_fpq.__all__)
    assert all(hasattr(tflite_export, name) for name in tflite_export.__all__)
