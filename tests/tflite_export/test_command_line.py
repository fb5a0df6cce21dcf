"""Bad files, pipes that close, and terminals of few letters: one line each."""

import json
import os
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.tflite_export import small_network
from tf_fpq.conversion import loading
from tflite_export import command_line
from tflite_export.flatbuffer import writer

PROGRAM = [sys.executable, "-m", "tflite_export.inspect"]


def test_images_and_labels_are_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    assert command_line.load_images(str(tmp_path / "x.npy")).shape == (2, 3)
    np.savez(tmp_path / "x.npz", images=np.ones((2, 3)), labels=np.arange(2))
    images, labels = command_line.load_images(str(tmp_path / "x.npz"))
    assert images.shape == (2, 3) and labels.tolist() == [0, 1]
    np.savez(tmp_path / "two.npz", left=np.ones(2), right=np.zeros(2))
    assert set(command_line.load_images(str(tmp_path / "two.npz"))) == {"left", "right"}


def huge_npz(path):
    """An array that claims 2^60 numbers."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + b"\0" * 16)


def objects(path):
    with open(path, "wb") as file:
        np.save(file, np.array([{}], object), allow_pickle=True)


def text(path):
    path.write_text("1, 2, 3")


def scalar(path):
    with open(path, "wb") as file:
        np.save(file, np.float32(1))


def only_labels(path):
    with open(path, "wb") as file:
        np.savez(file, labels=np.arange(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "is no NumPy file: its first bytes are b'1, 2, '"),
        (scalar, "must be an array of images. Received: one number"),
        (objects, "is damaged or holds no numbers: it holds Python objects."),
        (only_labels, "has no array 'images'.*only labels"),
        (huge_npz, "is damaged or holds no numbers"),
    ],
)
def test_what_are_no_images_is_said(tmp_path, make, message):
    path = tmp_path / "x.bin"
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        command_line.load_images(str(path))
    assert "x.bin" in str(error.value) and "allow_pickle" not in str(error.value)


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return str(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[1]", "x.keras' is damaged: its metadata.json is a list, not an object"),
        ("{", "x.keras' is damaged: its metadata.json cannot be read"),
    ],
)
def test_damaged_metadata_names_the_file(tmp_path, metadata, message):
    path = archive(tmp_path / "x.keras", metadata__json=metadata, config__json="{}")
    with pytest.raises(ValueError, match=message):
        loading.load_model(path)
    with pytest.raises(ValueError, match="x.keras"):
        command_line.load_keras(path)


@pytest.mark.parametrize("member", ["metadata__json", "config__json", "model__weights__h5"])
def test_claimed_sizes_are_checked_before_memory_is_taken(tmp_path, member):
    """100 MB of zeros in 100 kB; the file on which this was found claimed 1.5 GB."""
    path = archive(tmp_path / "x.keras", **{member: bytes(10**8)})
    assert os.path.getsize(path) < 2 * 10**5
    tracemalloc.start()
    for load in (loading.load_model, command_line.load_keras):
        with pytest.raises(ValueError, match="x.keras' is damaged: .* claims 100,000,000 bytes"):
            load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 10**7


def inspected(folder, name, **environment):
    path = folder / name
    writer.write(small_network.residual_network(), path)
    environ = {**os.environ, **environment}
    return subprocess.Popen(
        [*PROGRAM, *[str(path)] * 200], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    )


def test_a_closed_pipe_ends_the_program_without_a_word(tmp_path):
    program = inspected(tmp_path, "x.tflite")
    program.stdout.readline()
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == command_line.EXIT_BROKEN_PIPE


def test_a_terminal_of_ascii_shows_escapes(tmp_path):
    program = inspected(tmp_path, "größe.tflite", PYTHONIOENCODING="ascii:strict")
    output, errors = program.communicate()
    assert program.returncode == 0 and not errors
    assert b"gr\\xf6\\xdfe.tflite" in output


def test_json_is_one_line(capsys):
    command_line.print_json({"name": "größe"})
    assert json.loads(capsys.readouterr().out) == {"name": "größe"}
