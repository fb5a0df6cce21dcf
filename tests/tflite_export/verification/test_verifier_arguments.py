"""What `verify` takes and what it says of it, without a network."""

import inspect
import types

import pytest

from tflite_export import deployed as deployed_lib
from tflite_export.errors import InterpreterError
from tflite_export.verification import judgement, report_records, verifier


def test_the_defaults_ask_for_equality_on_all_kernel_sets():
    parameters = inspect.signature(verifier.verify).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert defaults == {
        "teacher": None,
        "kernels": ("xnnpack", "builtin", "reference"),
        "runtimes": (),
        "runtime_images": 200,
        "reference_images": None,
        "tensor_images": None,
        "batch_size": None,
        "max_twin_codes": 0,
        "min_top1_agreement": None,
        "max_student_lsb": None,
        "save": (),
        "verbose": 1,
    }


@pytest.mark.parametrize("name", ["max_twin_codes", "max_student_lsb"])
@pytest.mark.parametrize("value", [-1, -0.5, float("nan")])
def test_a_limit_below_zero_is_refused(name, value):
    with pytest.raises(ValueError) as caught:
        verifier._check_arguments(judgement.Limits(**{name: value}), tensor_images=None)
    assert str(caught.value) == f"{name} must not be negative. Received: {name}={value}."


def test_a_number_of_images_below_zero_is_refused():
    with pytest.raises(ValueError) as caught:
        verifier._check_arguments(judgement.Limits(), tensor_images=0, runtime_images=-1)
    assert str(caught.value) == (
        "runtime_images must not be negative. Received: runtime_images=-1."
    )


@pytest.mark.parametrize("share", [-0.5, -1e-9, 1 + 1e-9, 1.5, float("nan")])
def test_an_agreement_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError) as caught:
        verifier._check_arguments(judgement.Limits(min_top1_agreement=share))
    assert str(caught.value) == (
        "min_top1_agreement must be a share between 0 and 1, or None. Received:"
        f" min_top1_agreement={share}."
    )


@pytest.mark.parametrize("share", [None, 0, 0.25, 1])
@pytest.mark.parametrize("count", [None, 0, 1, 300])
def test_shares_and_counts_from_zero_on_are_taken(share, count):
    limits = judgement.Limits(count or 0, share, count)
    verifier._check_arguments(limits, tensor_images=count, runtime_images=200)


def test_versions_are_those_of_the_packages_that_are_installed(monkeypatch):
    assert list(verifier.versions()) == ["tensorflow", "tf_keras", "ai-edge-litert", "numpy"]
    monkeypatch.setattr(verifier, "_PACKAGES", ("no-such-package", "numpy"))
    assert list(verifier.versions()) == ["numpy"]


def test_the_bounds_of_a_file_are_those_of_its_operators_on_the_kernels_that_run():
    kinds = ("TANH", "CONV_2D", "SOFTMAX", "TANH")
    operators = tuple(deployed_lib.Operator(kind, (), ()) for kind in kinds)
    model = deployed_lib.DeployedModel({}, operators, (), ())
    bound = report_records.OperatorBound
    tanh, softmax = bound("TANH", "xnnpack", 1, 0.01), bound("SOFTMAX", "xnnpack", 1, 0.01)
    assert verifier._operator_bounds(model, ("xnnpack", "builtin")) == (tanh, softmax)
    reference = bound("TANH", "reference", 1, 0.01)
    assert verifier._operator_bounds(model, ("reference", "xnnpack")) == (tanh, reference, softmax)
    assert verifier._operator_bounds(model, ("builtin",)) == ()


def test_a_crash_is_a_failure_of_the_runtime_and_anything_else_is_raised(monkeypatch):
    probed = []
    monkeypatch.setattr(verifier.litert, "probe", lambda *arguments: probed.append(arguments))
    assert verifier._crash("net", b"file", ("xnnpack",)) is None
    assert probed == [(b"file", ("xnnpack",))]

    def probe(error):
        def fails(contents, kernels):
            raise error

        monkeypatch.setattr(verifier.litert, "probe", fails)
        return verifier._crash("net", b"file", ("xnnpack",))

    assert probe(InterpreterError("SIGSEGV")) == report_records.Failure("runtime", "net", "SIGSEGV")
    with pytest.raises(KeyError):
        probe(KeyError("other"))


def test_without_a_teacher_there_is_none():
    assert verifier._flat(None) is None


def test_an_error_is_the_first_failure_and_carries_the_report():
    failures = (
        report_records.Failure("twin", "y", "differs"),
        report_records.Failure("student", "z", "too"),
    )
    report = types.SimpleNamespace(path="net.tflite", failures=failures)
    error = verifier.VerificationError(report)
    assert str(error) == ("net.tflite is not the trained model. twin: y: differs (and 1 more)")
    assert error.report is report
