"""What the records of a verification say of themselves."""

import dataclasses

import pytest

from tflite_export.verification import judgement, last_bit_bounds, report_records

Comparison, Findings = report_records.Comparison, report_records.Findings


def comparison(tensor="y", left="student", right="xnnpack", codes=40, differing=0, max_lsb=0):
    return Comparison(tensor, "ADD", left, right, codes, differing, max_lsb, ())


RECORDS = (
    comparison(),
    report_records.FloatError("y", "add", None),
    report_records.OperatorBound("TANH", "xnnpack", 1, 0.01),
    report_records.LayerBound("y", ("ADD",), 0.002, 1, 0.01),
    report_records.Failure("twin", "y", "differs"),
    Findings("net", "net.tflite", 9),
    last_bit_bounds.Bound(1, 0.5),
    judgement.Limits(),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_equals_its_copy_and_cannot_be_changed(record):
    first, *_ = dataclasses.fields(record)
    assert dataclasses.replace(record) == record
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first.name, "other")


def test_what_was_not_measured_is_none_and_nothing():
    assert dataclasses.asdict(comparison())["sqnr_db"] is None
    measured = {"sqnr_db", "top1", "max_abs", "beyond", "beyond_lsb"}
    found = {name: getattr(comparison(), name) for name in measured}
    assert found == {"sqnr_db": None, "top1": None, "max_abs": None, "beyond": 0, "beyond_lsb": 0}
    empty = dataclasses.asdict(Findings("net", "net.tflite", 9))
    assert {name for name, value in empty.items() if value} == {"model", "path", "bytes"}
    counts = ("images", "tensor_images", "parameters")
    assert [empty[name] for name in counts] == [0, 0, 0]


def test_a_difference_is_in_lsb_or_of_values():
    assert comparison(max_lsb=2).difference == "2 LSB"
    values = dataclasses.replace(comparison(), max_abs=0.123456)
    assert values.difference == "0.123"
    assert dataclasses.replace(values, max_abs=0.0).difference == "0"


def test_a_share_is_of_the_codes_that_there_are():
    assert comparison(differing=10).share == 0.25
    assert comparison(codes=0).share == 0.0


TENSORS = (
    comparison("a", differing=0),
    comparison("b", differing=10, max_lsb=1),
    comparison("c", "twin", differing=40, max_lsb=9),
    comparison("d", differing=10, max_lsb=3),
    comparison("e", "xnnpack", "student", codes=20, differing=10, max_lsb=1),
    comparison("f", differing=10, max_lsb=2),
)
FINDINGS = Findings(
    "net",
    "net.tflite",
    9,
    tensors=TENSORS,
    outputs=(
        comparison("y", "twin"),
        comparison("y", differing=1),
        comparison("z", "twin", differing=1),
        comparison("z"),
        comparison("y", "twin", "student"),
    ),
)


def test_operators_come_by_the_share_of_codes_and_then_by_size():
    for pair in (("student", "xnnpack"), ("xnnpack", "student")):
        assert [c.tensor for c in FINDINGS.by_damage(*pair)] == ["e", "d", "f", "b"]
    assert FINDINGS.by_damage("twin", "student") == []


def test_the_first_tensor_that_differs_is_that_of_the_pair():
    assert FINDINGS.first_diverging("student", "xnnpack") == "b"
    assert FINDINGS.first_diverging("xnnpack", "twin") == "c"
    assert FINDINGS.first_diverging("twin", "student") is None


def test_a_pair_has_one_comparison_for_each_output():
    assert [c.tensor for c in FINDINGS.of_pair("xnnpack", "twin")] == ["y", "z"]
    assert FINDINGS.of_pair("xnnpack", "arm") == ()
    assert FINDINGS.output("xnnpack", "student") is FINDINGS.outputs[1]
    assert FINDINGS.output("student", "twin") is FINDINGS.outputs[4]
    with pytest.raises(KeyError) as caught:
        FINDINGS.output("twin", "arm")
    assert caught.value.args == (
        "'twin' and 'arm' were not compared; pairs: [('twin', 'xnnpack'), ('student', 'xnnpack'),"
        " ('twin', 'student')].",
    )


def test_a_pair_agrees_if_no_code_of_any_output_differs():
    pairs = [("twin", "xnnpack"), ("student", "xnnpack"), ("twin", "student")]
    assert FINDINGS.pairs() == pairs
    assert FINDINGS.agreeing() == pairs[2:]


def test_a_verification_passes_without_a_failure():
    assert FINDINGS.passed is True
    failure = report_records.Failure("twin", "y", "differs")
    assert dataclasses.replace(FINDINGS, failures=(failure,)).passed is False
