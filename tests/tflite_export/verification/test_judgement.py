import dataclasses

import pytest

from tflite_export.verification import judgement, report_records

BOUND = report_records.LayerBound("a", ("CONV_2D",), 0.002, 1, 0.01)


def comparison(left="student", right="xnnpack", tensor="y", differing=0, lsb=0, **more):
    return report_records.Comparison(
        tensor, "CONV_2D", left, right, 1000, differing, lsb, ((0, 1000),), **more
    )


def failures(outputs=(), layers=(), kind="classes", **limits):
    report = report_records.Findings(
        "m", "p", 1, images=200, outputs=tuple(outputs), output_kinds={"y": kind},
        layer_bounds=(BOUND,),
    )  # fmt: skip
    found = judgement.student_failures(report, layers, "xnnpack", judgement.Limits(**limits))
    return [(f.tensor, f.message) for f in found]


@pytest.mark.parametrize(
    ("differing", "lsb", "passes"), [(10, 1, True), (11, 1, False), (1, 2, False), (0, 0, True)]
)
def test_a_layer_keeps_size_and_share_of_its_bound_beyond_ties(differing, lsb, passes):
    found = failures(
        layers=[
            comparison(tensor="a", differing=900, lsb=2, beyond=differing, beyond_lsb=lsb),
        ]
    )
    assert bool(found) != passes
    if not passes:
        assert found[0][0] == "a"
        assert "given the same codes" in found[0][1]
        assert f"{differing} of them lie more than 0.002 steps away from a tie" in found[0][1]


def output_pair(agreement, chaos, db=5.0, chaos_db=30.0):
    return [
        comparison(differing=1, lsb=1, top1=agreement, sqnr_db=db),
        comparison(right="moved", differing=1, lsb=1, top1=chaos, sqnr_db=chaos_db),
    ]


@pytest.mark.parametrize(
    ("agreement", "chaos", "db", "passes"),
    [
        (0.995, 1.0, 5.0, True),  # what was always asked for
        (0.96, 0.99, 5.0, True),  # 8 images of 200, chaos moves 2
        (0.90, 0.99, 5.0, False),  # 20 images, chaos moves 2
        (0.90, 0.97, 5.0, True),
        (0.90, 1.0, 20.0, True),  # tied classes: the values agree
        (0.985, 1.0, 5.0, True),  # three images are no evidence
        (0.98, 1.0, 5.0, False),
        (0.2, 1.0, -1.0, False),
    ],
)
def test_classes_fail_by_default_only_where_nothing_explains_it(agreement, chaos, db, passes):
    found = failures(output_pair(agreement, chaos, db))
    assert bool(found) != passes
    if not passes:
        assert f"on {agreement:.4%} of the images; at least 99.5000%" in found[0][1]
        assert f"one float ulp keeps {chaos:.4%}" in found[0][1]


def test_a_network_whose_chaos_is_unknown_is_judged_as_one_without():
    """Not moved at all, or with outputs that had no best class."""
    alone = [comparison(differing=1, lsb=1, top1=0.98, sqnr_db=5.0)]
    for outputs in (alone, [*alone, comparison(right="moved")]):
        ((_, message),) = failures(outputs)
        assert "one float ulp keeps 100.0000%" in message


def test_an_explicit_agreement_is_a_hard_gate():
    outputs = output_pair(0.96, 0.5, db=40.0)
    assert not failures(outputs) and not failures(outputs, min_top1_agreement=0.96)
    assert "at least 97.0000%" in failures(outputs, min_top1_agreement=0.97)[0][1]
    assert not failures(outputs, kind="values", min_top1_agreement=0.97)


@pytest.mark.parametrize(
    ("db", "chaos_db", "passes"),
    [
        (10.0, 50.0, True),
        (9.0, 50.0, False),
        (3.0, 8.0, True),
        (1.0, 8.0, False),
        (None, 8.0, True),
    ],
)
def test_values_fail_where_they_are_unrelated_and_chaos_is_not_as_bad(db, chaos_db, passes):
    found = failures(output_pair(0.1, 1.0, db, chaos_db), kind="values")
    assert bool(found) != passes
    assert passes or "SQNR of" in found[0][1]


def test_a_failure_names_the_first_layer_that_differs():
    outputs = output_pair(0.2, 1.0)
    report = report_records.Findings(
        "m", "p", 1, images=200, outputs=tuple(outputs), output_kinds={"y": "classes"},
        tensors=(comparison(tensor="a"), comparison(tensor="b", differing=1, lsb=1)),
    )  # fmt: skip
    (found,) = judgement.student_failures(report, (), "xnnpack", judgement.Limits())
    assert found.tensor == "b" and "first layer in which they differ" in found.message
    lsb = judgement.student_failures(report, (), "xnnpack", judgement.Limits(0, 0.0, 0))
    assert [f.tensor for f in lsb] == ["b", "y"] and "the budget is 0" in lsb[0].message
    assert dataclasses.replace(report, failures=tuple(lsb)).passed is False
