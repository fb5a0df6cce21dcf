import dataclasses
import pathlib
import re
import subprocess
import sys

from absl import app, flags
from absl.testing import flagsaver
import pytest

from experiments import data, pipeline, train
from experiments.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["train"])
    with flagsaver.flagsaver():
        yield


def test_defaults_are_those_of_the_config():
    assert train.config_from_flags() == Config()


def test_every_field_is_a_flag_and_arrives():
    values = {
        "dataset": "cifar10",
        "data_dir": "/d",
        "fashion_mnist_dir": "/f",
        "train_examples": 7,
        "validation_examples": 8,
        "resolution": 14,
        "shift": 2,
        "model": "resnet20",
        "width": 3,
        "weight_bits": 2,
        "activation_bits": 3,
        "quantizer": "pact",
        "methods": ["sfp"],
        "method_arguments": {"sfp": {"seed": 3}},
        "schedules": {"sfp.probability": [[0, 1], [1, 0]]},
        "noise_probability": 0.2,
        "noise_position": "post",
        "csd_weight": 0.5,
        "epochs": 1,
        "float_epochs": 2,
        "batch_size": 3,
        "learning_rate": 0.2,
        "float_learning_rate": 0.3,
        "step_size_learning_rate_factor": 0.4,
        "weight_decay": 0.5,
        "float_weight_decay": 0.25,
        "augment": False,
        "jit_compile": True,
        "precision": "mixed_bfloat16",
        "task_weight": 0.5,
        "mixup": 0.2,
        "average_from": 0.75,
        "stages": ["W4A4"],
        "calibration_examples": 9,
        "seed": 4,
        "workdir": "w",
        "teacher": __file__,
        "input_type": "uint8",
        "output_type": "float32",
        "kernels": ["xnnpack"],
        "min_top1_agreement": 0.6,
    }
    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    with flagsaver.flagsaver(**values):
        config = train.config_from_flags()
    found = dataclasses.asdict(config)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()} == values


def test_bad_flag_is_a_usage_error():
    with flagsaver.flagsaver(weight_bits=9), pytest.raises(app.UsageError, match="weight_bits=9"):
        train.config_from_flags()


def test_objects_are_given_as_json():
    with flagsaver.flagsaver():
        flags.FLAGS(["train", "--methods=kd", '--method_arguments={"kd": {"temperature": 2}}'])
        (method,) = train.config_from_flags().make_methods()
        assert method.temperature == 2
        with pytest.raises(flags.IllegalFlagValueError, match="an object of JSON"):
            flags.FLAGS(["train", "--schedules=[1]"])


def test_the_float_network_alone_is_for_sweeps():
    with flagsaver.flagsaver(methods=["float"]), pytest.raises(app.UsageError, match="sweep"):
        train.config_from_flags()


def test_bad_arguments_end_with_one_line():
    with pytest.raises(SystemExit, match="^error: Flags only, please. Received: digits$"):
        train.main(["train", "digits"])
    with flagsaver.flagsaver(methods=["fqp"]), pytest.raises(SystemExit) as error:
        train.main(["train"])
    assert re.match(
        "error: methods must be one of fpq, .*Received: methods='fqp'", str(error.value)
    )
    assert "\n" not in str(error.value)


def test_missing_dataset_ends_with_one_line(monkeypatch):
    def run(config, **arguments):
        raise data.DatasetMissingError("Ways out: none.")

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(SystemExit, match="^DatasetMissingError: Ways out: none.$"):
        train.main(["train"])


def test_examples_in_the_help_are_valid():
    """Every command line of the module's docstring parses, and makes a config (but for the teacher,
    which is not there)."""
    text = train.__doc__.replace("\\\n", " ")
    commands = re.findall(r"python -m experiments\.train(.*)", text)
    assert len(commands) >= 4
    for command in commands:
        arguments = [
            argument for argument in command.split() if not argument.startswith("--teacher=")
        ]
        with flagsaver.flagsaver():
            assert flags.FLAGS(["train", *arguments]) == ["train"]
            train.config_from_flags()


def test_help_teaches():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "python -m experiments.train --methods=sfp" in done.stdout
    for field in dataclasses.fields(Config):
        assert re.search(rf"--(\[no\])?{field.name}\b", done.stdout), field.name
