"""What every row of the tables is held to."""

from collections.abc import Callable
import pathlib
import re
from typing import Any

import pytest

import experiments
import tf_fpq
import tflite_export

# Where they were imported from, which under Bazel is not where this file lies.
OURS = tuple(
    pathlib.Path(package.__file__).parent for package in (tf_fpq, tflite_export, experiments)
)


def refuses(call: Callable[[], Any], message: str) -> None:
    """Checks that a call raises an error of ours, in one line that `message` matches."""
    with pytest.raises(Exception) as caught:
        call()
    text = f"{caught.typename}: {caught.value}"
    raised_in = pathlib.Path(caught.traceback[-1].path)
    ours = any(raised_in.is_relative_to(folder) for folder in OURS)
    # Python's own errors about files say the file and what is wrong.
    assert ours or caught.errisinstance(OSError), f"{text}, in {raised_in}"
    assert not caught.errisinstance((KeyError, IndexError, AttributeError, AssertionError)), text
    assert "\n" not in text.strip() and len(text) < 700, text
    assert re.search(message, text), text


def warns(call: Callable[[], Any], message: str) -> None:
    """Checks that a call gives a warning in one line that `message` matches."""
    with pytest.warns(UserWarning, match=message) as caught:
        call()
    assert all("\n" not in str(warning.message) for warning in caught)
