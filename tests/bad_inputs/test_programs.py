"""Command lines and environments: an exit code, and one line on stderr."""

import runpy
import sys

from absl import flags
import numpy as np
import pytest

from tests.tflite_export import small_student


def _not_of_absl():
    """Names of the flags that programs have defined."""
    known = flags.FLAGS.flags_by_module_dict().items()
    absls = {flag.name for name, found in known if name.startswith("absl") for flag in found}
    return [name for name in flags.FLAGS if name not in absls]


@pytest.fixture
def program(capfd, monkeypatch):
    """Runs a program in this process as `python -m` does, and gives exit code and output."""

    def run(name, *arguments):
        others = {flag: flags.FLAGS[flag] for flag in _not_of_absl()}
        for flag in others:
            delattr(flags.FLAGS, flag)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # as Python does at the end
                print(code, file=sys.stderr)
                code = 1
        finally:
            for flag in _not_of_absl():
                delattr(flags.FLAGS, flag)
            for flag, definition in others.items():
                flags.FLAGS[flag] = definition
        return code or 0, capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def files(made):
    """Names of files for the command lines below."""
    folder = made.folder
    np.save(folder / "images.npy", small_student.images(8))
    np.savez(folder / "wrong.npz", images=small_student.images(8), labels=np.full(8, 9))
    (folder / "text.keras").write_text("no model")
    (folder / "text.tflite").write_text("no model")
    made.small.save(folder / "small.keras")
    return {path.name: path for path in folder.iterdir()}


VERIFY, EXPORT = "tflite_export.verify", "tflite_export.export"
INSPECT, BENCHMARK = "tflite_export.inspect", "tflite_export.benchmark"
CHECK, TRAIN, SWEEP = "tf_fpq.check", "experiments.train", "experiments.sweep"
PAIR = ("small.tflite", "small.tflite")
STUDENT = ("small.keras", "small.tflite", "--images=images.npy")

ROWS = {
    "inspect nothing": (INSPECT, [], 2, "Expected arguments: MODEL.tflite"),
    "inspect a text": (INSPECT, ["text.tflite"], 2, "text.tflite is not a TFLite file"),
    "inspect for a target": (INSPECT, ["small.tflite", "--target=ios"], 1, "--target"),
    "unknown flag": (INSPECT, ["small.tflite", "--jsn"], 1, "Unknown command line flag 'jsn'"),
    "verify one file": (VERIFY, ["small.tflite"], 2, "Expected arguments"),
    "verify without images": (VERIFY, ["small.keras", "small.tflite"], 2, "verified on images"),
    "verify a text": (VERIFY, ["text.keras", *STUDENT[1:]], 2, "text.keras"),
    "verify other images": (VERIFY, [*STUDENT[:2], "--images=text.keras"], 2, "no NumPy file"),
    "verify class 9": (VERIFY, [*STUDENT[:2], "--images=wrong.npz"], 2, "labels must be class"),
    "teacher is a text": (VERIFY, [*STUDENT, "--teacher=text.keras"], 2, "text.keras"),
    "no kernels": (VERIFY, [*PAIR, "--kernels="], 2, "kernels must be some of"),
    "student without kernels": (VERIFY, [*STUDENT, "--kernels="], 2, "kernels must be some of"),
    "agreement nan": (VERIFY, [*PAIR, "--min_top1_agreement=nan"], 2, "min_top1_agreement=nan"),
    "agreement -1": (VERIFY, [*PAIR, "--min_top1_agreement=-1"], 2, "between 0 and 1"),
    "lsb -1": (VERIFY, [*PAIR, "--max_lsb=-1"], 2, "max_lsb must not be negative"),
    "abs nan": (VERIFY, [*PAIR, "--max_abs=nan"], 2, "max_abs must not be negative"),
    "twin codes -1": (VERIFY, [*STUDENT, "--max_twin_codes=-1"], 2, "max_twin_codes"),
    "report.pdf": (VERIFY, [*PAIR, "--save=report.pdf"], 2, "path must end in .json"),
    "report into nothing": (VERIFY, [*PAIR, "--save=/no/where.json"], 2, "Cannot write"),
    "report on a full disk": (VERIFY, [*PAIR, "--overlay=/dev/full"], 2, "No space left"),
    "export to nowhere": (EXPORT, ["small.keras", "/no/where.tflite"], 2, "Cannot write"),
    "export a float model": (EXPORT, ["teacher.keras", "never.tflite"], 2, "quant"),
    "mean alone": (EXPORT, ["small.keras", "never.tflite", "--mean=1"], 2, "go together"),
    "benchmark nothing": (BENCHMARK, [], 2, "Expected arguments"),
    "benchmark a text": (BENCHMARK, ["text.tflite"], 2, "text.tflite is not a TFLite file"),
    "benchmark kernels": (BENCHMARK, [*PAIR, "--kernels=gpu"], 2, "kernels must be one of"),
    "check nothing": (CHECK, [], 1, "One model file is needed"),
    "check a text": (CHECK, ["text.keras"], 2, "text.keras' is no model file"),
    "check a folder": (CHECK, ["."], 2, "a SavedModel is a program"),
    "check rules": (CHECK, ["teacher.keras", "--rules=W4"], 1, "--rules: a rule must be"),
    "check imports": (CHECK, ["teacher.keras", "--imports=no_such"], 2, "No module named"),
    "train words": (TRAIN, ["digits"], 1, "Flags only, please"),
    "train bits": (TRAIN, ["--weight_bits=9"], 1, "weight_bits=9"),
    "train rate": (TRAIN, ["--learning_rate=nan"], 1, "learning_rate must be positive"),
    "train kernels": (TRAIN, ["--kernels="], 1, "kernels must"),
    "train into a file": (TRAIN, ["--workdir=text.keras/x"], 1, "workdir cannot be written to"),
    "train teacher": (TRAIN, ["--teacher=text.keras", "--workdir=w"], 1, "is no model file"),
    "train other teacher": (TRAIN, ["--teacher=teacher.keras", "--workdir=w"], 1, "must map"),
    "sweep scheme": (SWEEP, ["--results=r.jsonl", "--schemes=4"], 1, "--schemes must be like"),
}


@pytest.mark.parametrize(("name", "arguments", "code", "message"), ROWS.values(), ids=ROWS.keys())
def test_a_command_line(program, files, made, monkeypatch, name, arguments, code, message):
    monkeypatch.chdir(made.folder)
    found, (_, errors) = program(name, *arguments)
    lines = [line for line in errors.splitlines() if message in line or "Error" in line]
    assert found == code, errors
    assert message in errors and "Traceback" not in errors
    assert len(lines) == 1, errors
    assert not (made.folder / "never.tflite").exists()
