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


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_files.write_whole(b"new", link, "the file")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert list((tmp_path / "folder").iterdir()) == [target]
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "folder" / "later")
    atomic_files.write_whole(b"new", nowhere, "the file")
    assert nowhere.is_symlink() and nowhere.read_bytes() == b"new"


def test_a_device_stays_a_device():
    assert atomic_files.write_whole(b"into nothing", os.devnull, "the report") == 12
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(OSError, match="Cannot write the report .No space left on device.*full"):
        atomic_files.write_whole(b"x" * 2**16, "/dev/full", "the report")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_pipe_is_written_into(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    atomic_files.write_whole(b"through", path, "the report")
    assert os.read(reader, 100) == b"through" and stat.S_ISFIFO(os.stat(path).st_mode)
    os.close(reader)


def test_a_block_fills_a_file_of_the_same_suffix(tmp_path):
    with atomic_files.whole_file(tmp_path / "x.keras", "the model") as temporary:
        assert temporary.suffix == ".keras" and temporary.parent == tmp_path
        temporary.write_text("whole")
    assert (tmp_path / "x.keras").read_text() == "whole"
    with pytest.raises(RuntimeError, match="half way"):
        with atomic_files.whole_file(tmp_path / "x.keras", "the model") as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")
    assert [p.name for p in tmp_path.iterdir()] == ["x.keras"]
    assert (tmp_path / "x.keras").read_text() == "whole"
