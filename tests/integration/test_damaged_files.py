"""Damaged files, by the hundred: no crash, no hang, no memory, no change that is not noticed."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tests.tflite_export import small_student
import tf_fpq  # noqa: F401  registers the layers of a student
from tf_fpq.conversion import loading
import tflite_export
from tflite_export import command_line
from tflite_export.flatbuffer import reader
from tflite_export.verification import file_pair, parameter_checks

# Lengths and offsets that a file may claim.
HUGE = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x3FFFFFFF, 0x10000000)
FEW, MANY = 60, 1000

# Reads what it is sent, with all readers that run nothing; prints the memory it needed in MiB.
_READ = """
import pathlib, sys
from experiments.evidence import process_memory
import tflite_export
from tflite_export.flatbuffer import file_summary, reader
path = pathlib.Path(sys.argv[1])
for name in sorted(path.iterdir()):
    for read in (tflite_export.read, tflite_export.read_metadata, file_summary.inspect_file):
        try:
            read(name)
        except ValueError:
            pass
print(process_memory.peak_mib())
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "small.tflite"
    return tflite_export.export(small_student.student(), path, labels=list("abcde"))


def flipped(data, generator):
    changed = bytearray(data)
    changed[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def claiming(data, generator):
    changed = bytearray(data)
    start = 4 * int(generator.integers(2, len(data) // 4))
    changed[start : start + 4] = int(generator.choice(HUGE)).to_bytes(4, "little")
    return bytes(changed)


def changed_constants(model, found):
    """Names of the constants that differ, by an own comparison: bytes and grids."""
    names = set()
    for name, tensor in model.tensors.items():
        other = found.tensors.get(name)
        if tensor.data is not None and other is not None and other.data is not None:
            same = tensor.data.tobytes() == other.data.tobytes()
            if not same or not np.array_equal(tensor.scale, other.scale):
                names.add(name)
    return names


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_student_mode_and_pair_mode_name_every_constant_that_a_flipped_bit_changes(exported, count):
    data = bytes_of(exported.path)
    generator, seen = np.random.default_rng(0), 0
    for _ in range(count):
        try:
            found = reader.from_bytes(flipped(data, generator))
        except ValueError:
            continue
        names = changed_constants(exported.file_model, found)
        against_student = parameter_checks.compare(exported.file_model, found)
        against_file, _ = file_pair._parameters(reader.from_bytes(data), found, False)
        for failures in (against_student, against_file):
            assert names <= {failure.tensor for failure in failures}
        seen += bool(names)
    assert seen > count // 50


def bytes_of(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("damage", "count"),
    [
        (claiming, FEW),
        pytest.param(claiming, 1500, marks=pytest.mark.slow),
        pytest.param(flipped, MANY, marks=pytest.mark.slow),
    ],
)
def test_readers_take_no_memory_for_what_a_file_claims(exported, tmp_path, damage, count):
    data, generator = bytes_of(exported.path), np.random.default_rng(1)
    for number in range(count):
        (tmp_path / f"{number:04}.tflite").write_bytes(damage(data, generator))
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500


@pytest.mark.slow
def test_files_that_can_be_read_are_run_or_refused(exported, tmp_path):
    """In a process of its own first, as `verify` does."""
    data, generator = bytes_of(exported.path), np.random.default_rng(2)
    path, ran = tmp_path / "x.tflite", 0
    for number in range(40):
        path.write_bytes((claiming, flipped)[number % 2](data, generator))
        try:
            report = tflite_export.compare_files(exported.path, path, tensor_images=2, verbose=0)
        except (ValueError, tflite_export.InterpreterError) as error:
            assert "x.tflite" in str(error) or "shapes" in str(error)
            continue
        names = changed_constants(exported.file_model, reader.read(path))
        assert names <= {failure.tensor for failure in report.failures}
        ran += 1
    assert ran


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("damage", [flipped, claiming])
def test_a_damaged_student_is_refused_or_is_the_student(tmp_path, damage, count):
    student = small_student.student()
    student.save(tmp_path / "whole.keras")
    data, generator = bytes_of(tmp_path / "whole.keras"), np.random.default_rng(3)
    path, refused = tmp_path / "x.keras", 0
    for _ in range(count):
        path.write_bytes(damage(data, generator))
        try:
            loading.keras_version(path)
        except (ValueError, ImportError) as error:
            refused += 1
            assert "x.keras" in str(error)
            continue
        try:
            loaded = command_line.load_keras(str(path))
        except ValueError as error:
            refused += 1
            assert "x.keras" in str(error)
            continue
        for one, other in zip(student.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(one, other)
    assert refused > count // 2


def test_a_changed_grid_is_no_equal_constant(exported):
    """The comparison above sees grids too."""
    name = next(n for n, t in exported.file_model.tensors.items() if t.data is not None)
    tensor = exported.file_model.tensors[name]
    other = dataclasses.replace(tensor, scale=np.asarray(tensor.scale) * 2)
    tensors = {**exported.file_model.tensors, name: other}
    found = dataclasses.replace(exported.file_model, tensors=tensors)
    assert changed_constants(exported.file_model, found) == {name}
