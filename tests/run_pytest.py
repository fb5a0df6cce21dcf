"""Runs pytest on the files it is given: the `main` of every Bazel test, which would otherwise only
import its file."""

import os
import sys

import pytest

NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED


def main(files: list[str]) -> int:
    """Returns the exit status; a file whose tests are all slow has none to run, and passes.

    Bazel's variables say where the table of results belongs and where a test may write.
    """
    options = ["-p", "no:cacheprovider"]
    if table := os.environ.get("XML_OUTPUT_FILE"):
        options.append(f"--junit-xml={table}")
    if folder := os.environ.get("TEST_TMPDIR"):
        options.append(f"--basetemp={folder}/pytest")
    status = pytest.main([*options, *files])
    return 0 if status == NO_TESTS else int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
