import json
import pathlib
import subprocess

import pytest

from experiments import records


def test_write_json_reads_back(tmp_path):
    content = {"accuracy": 0.5, "methods": ["fpq"], "teacher": None}
    records.write_json(tmp_path / "result.json", content)
    assert json.loads((tmp_path / "result.json").read_text()) == content
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")

    def fail(temporary):
        assert temporary.endswith(".keras")
        pathlib.Path(temporary).write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        records.write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_workdir_is_created_and_stays_empty(tmp_path):
    workdir = records.prepare_workdir(str(tmp_path / "a" / "b"))
    assert workdir.is_dir() and not list(workdir.iterdir())


def test_workdir_that_cannot_be_made_is_one_clear_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OSError, match=r"workdir cannot be written to .*choose another.*file"):
        records.prepare_workdir(str(blocked / "sub"))


def test_versions_name_what_decides():
    versions = records.versions()
    assert {"python", "machine", "tensorflow", "tf_keras", "ai-edge-litert", "numpy"} <= set(
        versions
    )
    assert all(versions.values())


def git(*arguments, cwd):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_is_that_of_the_source_tree(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    monkeypatch.setattr(records, "__file__", str(tmp_path / "experiments" / "records.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.commit() is None
    git("init", cwd=tmp_path)
    git("commit", "--allow-empty", "-m", "x", cwd=tmp_path)
    revision = git("rev-parse", "HEAD", cwd=tmp_path)
    assert records.commit() == revision
    (tmp_path / "new").touch()
    assert records.commit() == f"{revision}+changes"


def test_section_is_replaced_and_the_rest_stays(tmp_path):
    path, marks = tmp_path / "page.md", ("<!-- begin -->", "<!-- end of table -->")
    path.write_text("# Title\n\n")
    records.write_section(path, marks, "one")
    path.write_text(path.read_text() + "after\n")
    records.write_section(path, marks, "two")
    text = path.read_text()
    assert text.startswith("# Title") and text.endswith("after\n")
    assert "two" in text and "one" not in text
