"""tfmot's own tests of `quantize_apply`, run with `FpqQuantizeScheme` as the scheme.

  python -m experiments.evidence.tfmot_suite --source=CHECKOUT [--only=functional]
      [--output=docs/tfmot_suite.md]

CHECKOUT is a clone of https://github.com/tensorflow/model-optimization. The tests come from it,
what they test from the installed package, in which two names are replaced: `quantize_apply` has
this library's scheme as its default, and `convert_keras_to_tflite` is `tflite_export.export`, with
float borders as those tests ask.

Prints one line a test and writes a table. Exit code: 0 unless a test fails for which `REASONS` has
no reason.
"""

import collections
from collections.abc import Iterable
import contextlib
import dataclasses
import importlib
import io
import pathlib
import re
import sys
from typing import Any
import unittest

from absl import app, flags
import tensorflow_model_optimization as tfmot

from experiments.evidence.tfmot_suite_reasons import REASONS
import tf_fpq
from tf_fpq import programs
import tflite_export

_CORE = "tensorflow_model_optimization.python.core"
_QUANTIZATION = f"{_CORE}.quantization.keras"
SUITES = {
    "functional": "quantize_functional_test",
    "integration": "quantize_integration_test",
    "quantize": "quantize_test",
    "models": "quantize_models_test",
}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
      suite: Its module, without `_test`.
      name: Class and method.
      status: "passed", "failed" or "skipped".
      error: Last line of the error.
    """

    suite: str
    name: str
    status: str
    error: str = ""

    @property
    def reason(self) -> str:
        """Why it stays as it is, or nothing."""
        if self.status == PASSED:
            return ""
        found = (reason for pattern, reason in REASONS.items() if re.search(pattern, self.name))
        return next(found, "")


class _Recorder(unittest.TestResult):
    """Keeps an `Outcome` of every test."""

    def __init__(self, suite: str):
        super().__init__()
        self.outcomes: list[Outcome] = []
        self._suite = suite

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._add(test, PASSED)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._add(test, SKIPPED, reason)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._add(test, FAILED, _line_of(err))

    addFailure = addError

    def _add(self, test: unittest.TestCase, status: str, error: str = "") -> None:
        # The arguments of parameterized tests have dots and addresses of their own.
        name = re.sub(r" at 0x[0-9a-f]+", "", test.id().split("_test.", 1)[1])
        self.outcomes.append(Outcome(self._suite, name, status, error))
        print(f"{status:8}{name}  {error}", file=sys.__stdout__, flush=True)


def _line_of(err: Any) -> str:
    kind, value, _ = err
    lines = [line.strip() for line in str(value).splitlines() if line.strip()]
    return f"{kind.__name__}: {' '.join(lines)[:300]}"


def use_scheme(source: pathlib.Path) -> None:
    """Lets `source` add its tests to the installed tfmot, and puts this library in its place there.

    Args:
      source: The checkout.

    Raises:
      ValueError: If it is none.
    """
    for package in (f"{_CORE}.keras", _QUANTIZATION):
        folder = source.joinpath(*package.split("."))
        if not folder.is_dir():
            raise ValueError(
                "--source must be a checkout of tensorflow/model-optimization. Received:"
                f" --source={source}."
            )
        importlib.import_module(package).__path__.append(str(folder))
    quantize = importlib.import_module(f"{_QUANTIZATION}.quantize")
    utils = importlib.import_module(f"{_QUANTIZATION}.utils")
    original = quantize.quantize_apply

    def quantize_apply(model: Any, scheme: Any = None, **arguments: Any) -> Any:
        return original(model, scheme or tf_fpq.FpqQuantizeScheme(), **arguments)

    quantize.quantize_apply = quantize_apply
    utils.convert_keras_to_tflite = _convert


def _convert(model: Any, output_path: Any = None, **unused: Any) -> bytes:
    with tfmot.quantization.keras.quantize_scope():
        tflite_export.export(model, output_path, input_type="float32", output_type="float32")
    return pathlib.Path(output_path).read_bytes()


def run(suite: str) -> list[Outcome]:
    """The outcomes of one suite."""
    module = importlib.import_module(f"{_QUANTIZATION}.{SUITES[suite]}")
    recorder = _Recorder(SUITES[suite].removesuffix("_test"))
    with contextlib.redirect_stdout(io.StringIO()):
        unittest.defaultTestLoader.loadTestsFromModule(module).run(recorder)
    # TensorFlow's test class brings one along that is none.
    return [outcome for outcome in recorder.outcomes if not outcome.name.endswith("test_session")]


def table(outcomes: Iterable[Outcome]) -> str:
    """Markdown: counts by suite, then every test that does not pass."""
    outcomes = list(outcomes)
    lines = [
        "# tfmot's own tests with `FpqQuantizeScheme`",
        "",
        "Written by `python -m experiments.evidence.tfmot_suite --source=CHECKOUT"
        " --output=docs/tfmot_suite.md`, which says what is replaced in them. Tests that tfmot"
        " skips by itself are not counted.",
        "",
        "| suite | pass | of |",
        "|---|---:|---:|",
    ]
    counts: dict[str, collections.Counter] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.suite, collections.Counter())[outcome.status] += 1
    for suite, count in counts.items():
        lines.append(f"| `{suite}_test` | {count[PASSED]} | {count[PASSED] + count[FAILED]} |")
    lines += ["", "## Those that do not pass", "", "| test | why it stays |", "|---|---|"]
    for outcome in outcomes:
        if outcome.status == FAILED:
            why = outcome.reason or f"**open**: {outcome.error}".replace("|", "\\|")
            lines.append(f"| `{outcome.name}` | {why} |")
    return "\n".join(lines) + "\n"


def define_flags() -> None:
    """Defines the flags: not on import, as other programs have some of the same names."""
    flags.DEFINE_string("source", None, "Checkout of tensorflow/model-optimization.")
    flags.DEFINE_string("output", None, "Markdown file for the table.")
    flags.DEFINE_multi_enum("only", None, list(SUITES), "Suites to run.")


def main(arguments: list[str]) -> int:
    """Runs the suites."""
    values = flags.FLAGS
    if values.source is None:
        raise app.UsageError("--source is missing: a checkout of tensorflow/model-optimization.")
    use_scheme(pathlib.Path(values.source))
    outcomes = [outcome for suite in values.only or SUITES for outcome in run(suite)]
    print(table(outcomes))
    if values.output:
        pathlib.Path(values.output).write_text(table(outcomes))
    return int(any(outcome.status == FAILED and not outcome.reason for outcome in outcomes))


if __name__ == "__main__":
    define_flags()
    programs.run(main)
