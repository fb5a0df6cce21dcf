"""The library is compiled once, appears whole, and says what is missing where it cannot be."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tf_fpq.native import library

EMPTY = "int main() { return 0; }\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of sources that compile in no time, without TensorFlow's headers."""
    for name in (*library.SOURCES, *library.HEADERS):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    return tmp_path


def compiler(folder: pathlib.Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{script}\n")
    path.chmod(0o755)
    return str(path)


# Writes its output, as a compiler does, and a line for each call.
WRITES = """
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("library")
with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
    calls.write("once\\n")
"""


def test_it_is_compiled_once_and_replaces_that_of_other_sources(folder, monkeypatch):
    monkeypatch.setenv("CXX", compiler(folder, WRITES))
    built = library.build()
    assert (built, built.read_text()) == (library.path(), "library")
    assert library.build() == built
    assert (folder / "calls").read_text() == "once\n"
    (folder / library.SOURCES[0]).write_text("// changed\n")
    assert library.path() != built and not library.path().exists()
    library.build()
    assert [path.name for path in folder.glob("operations-*")] == [library.path().name]


def test_where_a_compiler_fails_its_error_is_said_and_nothing_is_left(folder, monkeypatch):
    monkeypatch.setenv("CXX", compiler(folder, 'sys.exit("x.cc:1: error: no such header")'))
    with pytest.raises(library.BuildError, match="error: no such header\nThe command: .*-O3"):
        library.build()
    assert not list(folder.glob("operations-*"))


def test_without_a_compiler_the_error_says_which_would_do(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(library.BuildError, match="Looked for: no-such-compiler. Install one"):
        library.build()


def test_a_folder_that_cannot_be_written_to_is_named(folder, monkeypatch):
    script = "sys.exit(0)"  # wrote nothing, as a full disk does
    monkeypatch.setenv("CXX", compiler(folder, script))
    with pytest.raises(library.BuildError, match=f"cannot be written to {folder}"):
        library.build()


def test_without_a_library_there_are_no_operations(folder):
    assert library.operations.__wrapped__() is None


def test_the_program_explains_itself_and_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tf_fpq.native"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "python -m tf_fpq.native" in done.stdout
    # A copy, in which nothing is built.
    shutil.copytree(
        pathlib.Path(library.__file__).parent.parent,
        tmp_path / "tf_fpq",
        ignore=shutil.ignore_patterns("operations-*", "__pycache__"),
    )
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "CXX": "no-such-compiler", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: There is no C++ compiler.")
