"""Runs pytest on the files it is given: the `main` of every Bazel test, which would otherwise only
import its file."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
