"""`tf-fpq` is what `pip install` leaves on the PATH: it teaches, stays quiet, and starts fast."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.tflite_export import small_network, small_student
from tflite_export import command_line, console
from tflite_export.flatbuffer import writer

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(*arguments, **environment):
    """Runs `tf-fpq` as its entry point does, with `environment` and no other."""
    code = "import sys; from tflite_export import console; sys.exit(console.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_setup_installs_what_is_tested_here():
    [(module, function)] = re.findall(r'"tf-fpq = (.*):(.*)"', (ROOT / "setup.py").read_text())
    assert getattr(importlib.import_module(module), function) is console.main


@pytest.mark.parametrize("asked", ["--help", "-h", "help"])
def test_help_teaches_all_commands(asked, capsys):
    assert console.main([asked]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in console.COMMANDS)
    assert "tf-fpq verify student.keras model.tflite --images=test.npz" in shown


def test_a_word_that_is_no_command_is_a_mistake(capsys):
    assert console.main(["explain"]) == 2
    shown = capsys.readouterr()
    assert "No such command. Received: 'explain'." in shown.err and shown.out == ""
    assert console.main([]) == 2


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """Environment in which no process, nor one that it starts, can import TensorFlow or a Keras."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"):
            raise ImportError(f"{name} is kept out")

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["help"],
        ["inspect", "a.tflite", "b.tflite"],
        ["inspect", "a.tflite", "--target=litert", "--json"],
        ["verify", "a.tflite", "b.tflite"],
        ["benchmark", "a.tflite", "b.tflite", "--runs=2", "--warmup=0"],
    ],
    ids=" ".join,
)
def test_what_reads_runs_and_compares_files_needs_no_tensorflow(
    tmp_path, without_tensorflow, arguments
):
    for name in ("a.tflite", "b.tflite"):
        writer.write(small_network.residual_network(), tmp_path / name)
    paths = [tmp_path / name if name.endswith(".tflite") else name for name in arguments]
    done = run(*paths, **without_tensorflow)
    assert (done.returncode, "kept out" in done.stderr) == (0, False), done.stderr
    assert done.stdout


def test_what_reads_a_float_model_does_need_it(without_tensorflow):
    """So the environment above keeps it out."""
    done = run("check", "float.keras", **without_tensorflow)
    assert done.returncode and "is kept out" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify", "benchmark", "export"])
def test_help_of_a_command_exits_with_0_and_says_how_to_call_it(command):
    done = run(command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert f"tf-fpq {command} " in done.stdout and "Exit code:" in done.stdout


def test_what_is_written_to_stderr_is_held_back_unless_it_fails(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")  # remembers what to put back
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with command_line.tensorflow_silenced():
        os.write(2, b"about CUDA\n")
    assert capfd.readouterr().err == ""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with pytest.raises(ImportError), command_line.tensorflow_silenced():
        os.write(2, b"a library is missing\n")
        raise ImportError
    assert capfd.readouterr().err == "a library is missing\n"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with command_line.tensorflow_silenced():
        os.write(2, b"about CUDA\n")
    os.write(2, b"and on\n")
    assert capfd.readouterr().err == "about CUDA\nand on\n"


@pytest.mark.slow
def test_check_and_export_write_nothing_but_their_answer(tmp_path):
    small_student.student().save(tmp_path / "student.keras")
    small_student.float_model().save(tmp_path / "float.keras")
    done = run("check", tmp_path / "float.keras")
    assert done.returncode == 0 and done.stderr == "" and "stem" in done.stdout
    done = run("export", tmp_path / "student.keras", tmp_path / "x.tflite")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(str(tmp_path / "x.tflite"))
