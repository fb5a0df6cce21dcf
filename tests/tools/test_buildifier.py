import shutil

import pytest

from tools import buildifier

BARE = 'py_library(name="a",\n srcs=["b.py","a.py"])\n'


def test_without_npm_a_line_says_that_nothing_was_checked(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert buildifier.main([]) == 0
    assert "were not checked" in capsys.readouterr().out


def test_build_files_of_the_tree_are_found_and_hidden_ones_are_not(tmp_path):
    for folder in (".", "a/b", ".bazel/out"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "BUILD").write_text("")
    assert buildifier.files(tmp_path) == ["BUILD", "a/b/BUILD"]
    assert "tools/BUILD" in buildifier.files()


@pytest.mark.slow  # fetches the package
@pytest.mark.skipif(shutil.which("npx") is None, reason="buildifier comes from npm")
def test_a_file_that_is_not_formatted_is_refused_until_it_is_fixed(tmp_path):
    (tmp_path / "BUILD").write_text(BARE)
    if buildifier.command() is None:
        pytest.skip("npm cannot fetch buildifier")
    assert buildifier.main([], tmp_path) == 1
    buildifier.main(["--fix"], tmp_path)
    assert (
        '    srcs = [\n        "a.py",\n        "b.py",\n    ],\n'
        in (tmp_path / "BUILD").read_text()
    )


def test_another_argument_is_answered_by_the_usage(capsys):
    assert buildifier.main(["--format"]) == 2
    assert "--fix" in capsys.readouterr().out
