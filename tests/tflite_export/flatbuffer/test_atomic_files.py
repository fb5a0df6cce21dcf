"""Whole files or none."""

import os
import stat

import pytest

from tflite_export.flatbuffer import atomic_files


def test_a_written_file_is_whole_alone_and_readable(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"the old file")
    umask = os.umask(0o022)
    try:
        assert atomic_files.write_whole(b"new", path, "the file") == 3
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_errors_name_what_and_where(tmp_path):
    with pytest.raises(FileNotFoundError, match="Cannot write the report .No such file.*missing"):
        atomic_files.write_whole(b"", tmp_path / "missing" / "x", "the report")
    with pytest.raises(OSError, match="Cannot write the .tflite file"):
        atomic_files.write_whole(b"", tmp_path, "the .tflite file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt, OSError(28, "No space left on device")]
)
def test_an_interruption_leaves_the_old_file_alone(tmp_path, monkeypatch, interruption):
    path = tmp_path / "x.bin"
    path.write_bytes(b"the old file")

    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        atomic_files.write_whole(b"new", path, "the file")
    assert path.read_bytes() == b"the old file" and list(tmp_path.iterdir()) == [path]
