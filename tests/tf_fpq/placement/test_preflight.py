"""The pre-flight: every layer with its fate, the same offenders as `quantize_model` names, and the
command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

import tf_fpq
from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.placement import preflight
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer

layers = keras.layers


def network() -> keras.Model:
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="norm")(x)
    skip = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(skip)
    x = layers.Add(name="add")([x, skip])
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="logits")(x), name="net")


RULES = [tf_fpq.QuantRule("stem|logits"), tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)]


def fates(report):
    return {row.layer: (row.status, row.weight_bits, row.activation_bits) for row in report.rows}


def test_every_layer_has_its_fate():
    report = preflight.check(network(), RULES)
    assert fates(report) == {
        "image": ("quantized", None, 8),
        "stem": ("quantized", 8, 8),
        "norm": ("passed through", None, None),
        "relu": ("passed through", None, None),
        "depthwise": ("quantized", 4, 4),
        "add": ("quantized", None, 8),  # the wider of 4 (the ReLU, which depthwise reads) and 8
        "pool": ("passed through", None, 8),  # logits reads it
        "flat": ("passed through", None, 8),
        "logits": ("quantized", 8, 8),
        "logits_softmax": ("quantized", None, 8),
    }
    assert {row.reason for row in report.rows if row.layer in ("norm", "relu")} == {
        "part of the operator of stem"
    }
    assert report.ok and report.exportable


def test_the_widths_are_those_of_the_student():
    student = tf_fpq.quantize_model(network(), RULES)
    grids = {}
    for call in graph.calls(student):
        if isinstance(call.layer, QuantizeActivation):
            grids[id(call.outputs[0])] = call.layer.quantizer.spec.num_bits
        elif id(call.inputs[0]) in grids:  # pool and flat keep the grid
            grids[id(call.outputs[0])] = grids[id(call.inputs[0])]
    for row in preflight.check(network(), RULES).rows:
        layer = student.get_layer(row.layer)
        if isinstance(layer, QuantizedLayer):
            assert layer.quantize_config.weight_bits == row.weight_bits
            assert grids[id(layer.input)] == row.activation_bits


def test_layers_left_float_say_why():
    report = preflight.check(
        network(), [tf_fpq.QuantRule("depthwise"), tf_fpq.QuantRule("stem", weight_bits=None)]
    )
    status = fates(report)
    assert status["logits"][0] == status["stem"][0] == "left float"
    reasons = {row.layer: row.reason for row in report.of("left float")}
    assert "no rule matches it" in reasons["logits"] and "leaves it float" in reasons["stem"]
    assert report.ok and not report.exportable


def unsupported() -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="elu", name="conv")(image)
    x = layers.ConvLSTM1D(2, 3, name="recurrent")(x)
    return keras.Model(
        image, layers.Dense(2, name="dense")(layers.Flatten(name="flat")(x)), name="net"
    )


def test_the_offenders_are_those_of_quantize_model():
    report = preflight.check(unsupported())
    assert {row.layer for row in report.of("not supported")} == {"conv", "recurrent"}
    assert not report.ok
    with pytest.raises(ValueError) as error:
        tf_fpq.quantize_model(unsupported(), [tf_fpq.QuantRule()])
    for row in report.of("not supported"):
        assert f"{row.layer}: {row.reason}" in str(error.value)


def test_a_tensor_without_a_grid_joins_nothing_behind_an_offender():
    image = keras.Input((8, 3), name="image")
    outputs = layers.ReLU(name="relu")(layers.LSTM(2, name="recurrent")(image))
    report = preflight.check(keras.Model(image, layers.Dense(2, name="dense")(outputs)))
    assert fates(report)["relu"][0] == "quantized"


def test_nested_models_and_operators_are_listed_as_they_are_quantized():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")], name="inner")
    image = keras.Input((4,), name="image")
    report = preflight.check(keras.Model(image, inner(image * 2.0)))
    assert [row.layer_class for row in report.rows if row.layer != "image"][-1] == "Dense"
    assert report.ok


def test_table_and_json_hold_every_row():
    report = preflight.check(unsupported())
    content = json.loads(report.to_json())
    assert [row["layer"] for row in content["rows"]] == [row.layer for row in report.rows]
    assert content["rows"][1]["class"] == "Conv2D" and content["ok"] is False
    lines = str(report).splitlines()
    assert len(lines) == len(report.rows) + 2
    assert "2 not supported" in lines[-1]


def test_a_rule_that_matches_nothing_and_no_model():
    with pytest.raises(ValueError, match="match no layer"):
        preflight.check(network(), [tf_fpq.QuantRule("stm")])
    with pytest.raises(TypeError, match="must be a Keras model"):
        preflight.check(None)


@pytest.mark.parametrize(
    ("text", "pattern", "widths"),
    [("stem|logits=W8A8", "stem|logits", (8, 8)), ("a=b.*=W4A32", "a=b.*", (4, None))],
)
def test_rules_of_the_command_line(text, pattern, widths):
    rule = preflight.parse_rule(text)
    assert (rule.pattern, (rule.weight_bits, rule.activation_bits)) == (pattern, widths)


@pytest.mark.parametrize("text", ["W4A4", ".*=8", ".*=W9A4", "=W4A4", "(=W4A4"])
def test_rules_that_are_none(text):
    with pytest.raises(ValueError):
        preflight.parse_rule(text)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "tf_fpq.check", *arguments]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_command_reads_a_keras_3_file(tmp_path):
    import keras as keras3

    model = keras3.Sequential(
        [keras3.Input((8, 8, 1)), keras3.layers.Conv2D(2, 3, name="conv"), keras3.layers.Flatten()]
    )
    model.save(tmp_path / "model.keras")
    done = run(str(tmp_path / "model.keras"), "--rules=conv=W4A4", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["layer"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["conv"]["weight_bits"] == 4 and np.isfinite(rows["conv"]["activation_bits"])


def test_the_command_fails_on_a_model_that_is_not_supported(tmp_path):
    unsupported().save(tmp_path / "model.keras")
    done = run(str(tmp_path / "model.keras"))
    assert done.returncode == 1 and "recurrent" in done.stdout


OWN_LAYER = """
from tf_fpq.keras_compat import keras

@keras.utils.register_keras_serializable(package="my_layers")
class Twice(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""


def test_the_command_imports_what_registers_ones_own_classes(tmp_path):
    (tmp_path / "my_layers.py").write_text(OWN_LAYER)
    names = {}
    exec(OWN_LAYER, names)
    x = keras.Input((4,), name="x")
    keras.Model(x, layers.Dense(2)(names["Twice"](name="twice")(x))).save(tmp_path / "model.keras")
    done = run(str(tmp_path / "model.keras"))
    assert (
        done.returncode == 2
        and "--imports=MODULE" in done.stderr
        and "Traceback" not in done.stderr
    )
    done = run(str(tmp_path / "model.keras"), "--imports=my_layers", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "Two ways out" in done.stdout and "Traceback" not in done.stderr


def test_help_is_no_error_and_a_missing_file_is_no_unsupported_layer():
    assert run("--help").returncode == 0
    done = run("missing.keras")
    assert done.returncode == 2 and "missing.keras" in done.stderr
