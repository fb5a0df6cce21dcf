"""The table of tfmot's own tests. The suites themselves need a checkout and take minutes."""

import pathlib
import unittest

import pytest

from experiments.evidence import tfmot_suite
from experiments.evidence.tfmot_suite import FAILED, PASSED, SKIPPED, Outcome
from experiments.evidence.tfmot_suite_reasons import REASONS


def test_the_table_counts_and_gives_a_reason_or_the_error():
    wrapper = "QuantizeApplyTest.testQuantize_UsesBuiltinQuantizeConfig"
    outcomes = [
        Outcome("quantize", "QuantizeTest.testQuantizeModel_Passes", PASSED),
        Outcome("quantize", wrapper, FAILED, "AssertionError: a | b"),
        Outcome("quantize", "QuantizeTest.testNew", FAILED, "KeyError: a | b"),
        Outcome("quantize", "QuantizeTest.testOther", SKIPPED),
    ]
    lines = tfmot_suite.table(outcomes).splitlines()
    assert "| `quantize_test` | 1 | 3 |" in lines
    assert f"| `{wrapper}` | {outcomes[1].reason} |" in lines and outcomes[1].reason
    assert "| `QuantizeTest.testNew` | **open**: KeyError: a \\| b |" in lines
    assert not any("testOther" in line or "_Passes" in line for line in lines)


def test_each_result_is_recorded_with_the_last_line_of_its_error(capsys):
    class Suite_test(unittest.TestCase):
        def test_good(self):
            pass

        def test_bad(self):
            raise KeyError("no\n such\n key")

        def test_skipped(self):
            self.skipTest("not here")

    Suite_test.__module__ = "package.some_test"
    recorder = tfmot_suite._Recorder("some")
    unittest.defaultTestLoader.loadTestsFromTestCase(Suite_test).run(recorder)
    found = {outcome.name.split(".")[-1]: outcome for outcome in recorder.outcomes}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "test_good": PASSED,
        "test_bad": FAILED,
        "test_skipped": SKIPPED,
    }
    assert found["test_bad"].error.startswith("KeyError: ") and "key" in found["test_bad"].error


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a checkout of tensorflow/model-optimization"):
        tfmot_suite.use_scheme(pathlib.Path(tmp_path))


def test_every_reason_is_a_sentence():
    assert all(reason[0].isupper() and reason.endswith(".") for reason in REASONS.values())
