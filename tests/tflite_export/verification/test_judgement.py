import dataclasses

import numpy as np
import pytest

from tflite_export import deployed
from tflite_export.verification import judgement, last_bit_bounds, report_records

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


def test_a_layer_beyond_its_bound_is_told_whole_and_those_within_are_not():
    layers = [
        comparison(tensor="a", differing=3, lsb=1, beyond=1, beyond_lsb=1),
        comparison(tensor="a", differing=300, lsb=3, beyond=11, beyond_lsb=1),
        comparison(left="twin", tensor="a", differing=300, lsb=3, beyond=11, beyond_lsb=1),
    ]
    assert failures(layers=layers) == [
        (
            "a",
            "given the same codes, student and xnnpack differ in 300 of 1000 codes, by up to 3 LSB;"
            " 11 of them lie more than 0.002 steps away from a tie, which CONV_2D does not explain",
        )
    ]


def test_only_a_layer_of_a_coarse_bias_grid_explains_any_output():
    """It moved codes by more than one, and its bound has let it pass."""
    outputs = output_pair(0.2, 1.0)
    for lsb, explained in ((0, False), (1, False), (2, True)):
        layers = [comparison(tensor="a", differing=1, lsb=lsb)]
        assert bool(failures(outputs, layers)) != explained
        assert failures(outputs, layers, min_top1_agreement=0.3)
    other = [comparison(left="twin", tensor="a", differing=1, lsb=2)]
    assert failures(outputs, other)


@pytest.mark.parametrize(
    ("others", "by_chaos", "db", "passes"),
    [
        (11, 2, 5.0, True),
        (12, 2, 5.0, False),
        (3, 0, 5.0, True),
        (4, 0, 5.0, False),
        (150, 0, 10.0, True),
        (150, 0, 9.99, False),
        (150, 0, None, True),
    ],
)
def test_chaos_explains_four_times_as_many_other_classes_and_three(others, by_chaos, db, passes):
    found = failures(output_pair(1 - others / 200, 1 - by_chaos / 200, db))
    assert bool(found) != passes


def test_half_a_percent_of_other_classes_is_never_a_failure():
    assert not failures(output_pair(0.995, 1.0)) and not failures(output_pair(0.9951, 1.0))
    images = report_records.Findings(
        "m", "p", 1, images=2000, outputs=tuple(output_pair(0.995, 1.0)),
        output_kinds={"y": "classes"},
    )  # fmt: skip
    few, more = images, dataclasses.replace(images, outputs=tuple(output_pair(0.9945, 1.0)))
    limits = judgement.Limits()
    assert not judgement.student_failures(few, (), "xnnpack", limits)
    (found,) = judgement.student_failures(more, (), "xnnpack", limits)
    assert found == report_records.Failure(
        "student",
        "y",
        "student and xnnpack choose the same class on 99.4500% of the images; at least 99.5000% is"
        " asked for, and the student with every value moved by one float ulp keeps 100.0000%",
    )


def test_scores_without_a_best_class_agree():
    """Constant scores of one image, say: nothing is known against them."""
    outputs = [comparison(differing=1, lsb=1, sqnr_db=5.0)]
    assert not failures(outputs) and not failures(outputs, min_top1_agreement=1.0)


@pytest.mark.parametrize(
    ("db", "chaos_db", "least"),
    [(9.9, 50.0, 10.0), (1.9, 8.0, 2.0), (9.9, None, 10.0), (-4.0, 3.0, -3.0)],
)
def test_values_that_nothing_explains_are_told_by_their_sqnr(db, chaos_db, least):
    assert failures(output_pair(None, None, db, chaos_db), kind="values") == [
        (
            "y",
            f"student and xnnpack have outputs with a SQNR of {db:.1f} dB; nothing explains less"
            f" than {least:.1f} dB",
        )
    ]
    assert not failures(output_pair(None, None, least, chaos_db), kind="values")
    alone = [comparison(sqnr_db=db)]
    assert bool(failures(alone, kind="values")) == (db < 10.0)


def test_each_output_is_judged_by_its_own_chaos_and_kind():
    both = [
        comparison(tensor="v", sqnr_db=3.0, top1=0.2),
        comparison(tensor="y", sqnr_db=3.0, top1=0.2),
        comparison(tensor="y", right="moved", sqnr_db=8.0, top1=0.2),
        comparison(tensor="v", right="moved", sqnr_db=50.0, top1=1.0),
        comparison(right="reference", sqnr_db=-9.0, top1=0.0),
    ]
    for kind in ("classes", "values"):
        ((tensor, _),) = failures(both, kind=kind)
        assert tensor == "v"


def test_the_budget_in_lsb_is_of_layers_and_outputs_of_the_student():
    layers = [comparison(tensor="a", lsb=3), comparison(left="twin", tensor="b", lsb=9)]
    outputs = (comparison(lsb=3), comparison(tensor="z", lsb=4))
    report = report_records.Findings("m", "p", 1, tensors=tuple(layers), outputs=outputs)

    def found(limit):
        limits = judgement.Limits(0, 0.0, limit)
        failures = judgement.student_failures(report, (), "xnnpack", limits)
        return [(failure.tensor, failure.message) for failure in failures]

    text = "student and xnnpack differ by {} LSB; the budget is {}"
    assert found(None) == found(4) == []
    assert found(2) == [
        ("a", text.format(3, 2)),
        ("y", text.format(3, 2)),
        ("z", text.format(4, 2)),
    ]
    assert found(3) == [("z", text.format(4, 3))]


def test_without_a_difference_in_any_layer_an_output_is_blamed_itself():
    report = report_records.Findings(
        "m", "p", 1, images=200, outputs=tuple(output_pair(0.2, 1.0)),
        output_kinds={"y": "classes"}, tensors=(comparison(tensor="a"),),
    )  # fmt: skip
    (found,) = judgement.student_failures(report, (), "xnnpack", judgement.Limits())
    assert found.tensor == "y" and found.message.endswith("keeps 100.0000%")
    layer = comparison(tensor="a", differing=1)
    report = dataclasses.replace(report, tensors=(layer,))
    (found,) = judgement.student_failures(report, (), "xnnpack", judgement.Limits())
    assert found.tensor == "a"
    assert found.message.endswith("100.0000%. This is the first layer in which they differ")


def test_limits_ask_for_nothing_beyond_equality_by_default():
    limits = judgement.Limits()
    assert dataclasses.asdict(limits) == {
        "max_twin_codes": 0,
        "min_top1_agreement": None,
        "max_student_lsb": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.max_twin_codes = 1


def gated():
    """image -> conv -> LOGISTIC -> scaled; every tensor has 1000 codes."""
    tensors = {
        name: deployed.Tensor(name, (1, 1000), "int8", np.float32(1))
        for name in ("image", "conv", "gate", "scaled")
    }
    operators = tuple(
        deployed.Operator(kind, (x,), (y,))
        for kind, x, y in (
            ("CONV_2D", "image", "conv"), ("LOGISTIC", "conv", "gate"), ("MUL", "gate", "scaled")
        )
    )  # fmt: skip
    return deployed.DeployedModel(tensors, operators, ("image",), ("scaled",))


def twin(tensor, differing, lsb=1, pair=("twin", "xnnpack")):
    return report_records.Comparison(
        tensor, "LOGISTIC" if tensor == "gate" else "MUL", *pair, 1000, differing, lsb, ()
    )


def twin_failures(
    tensors=(), unselected=(), outputs=(), limit=0, kernels=("xnnpack", "builtin"), images=4
):
    report = report_records.Findings(
        "m", "p", 1, tensor_images=images, tensors=tuple(tensors), outputs=tuple(outputs)
    )
    found = judgement.twin_failures(report, unselected, gated(), kernels, limit)
    return [(f.check, f.tensor, f.message) for f in found]


@pytest.mark.parametrize(("limit", "passes"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_tensor_without_a_bound_keeps_the_budget_of_codes(limit, passes):
    found = twin_failures([twin("conv", 2, lsb=9), twin("scaled", 2)], limit=limit)
    text = (
        "2 of 1000 codes differ between twin and xnnpack, by up to 9 LSB; 2 tensors over the"
        f" budget of {limit} codes"
    )
    assert found == ([] if passes else [("twin", "conv", text)])


@pytest.mark.parametrize(
    ("differing", "lsb", "chosen", "anyhow"),
    [(10, 1, True, True), (11, 1, True, False), (1000, 1, True, False), (1, 2, False, False)],
)
def test_a_bound_is_of_size_and_on_images_that_nobody_chose_of_share(
    differing, lsb, chosen, anyhow
):
    gate = twin("gate", differing, lsb)
    text = (
        f"{differing} of 1000 codes differ between twin and xnnpack, by up to {lsb} LSB; 1 tensors"
        " over the budget of 0 codes and the bound of LOGISTIC"
    )
    assert twin_failures([gate]) == ([] if chosen else [("twin", "gate", text)])
    assert twin_failures(unselected=[gate]) == ([] if anyhow else [("twin", "gate", text)])
    assert twin_failures([gate], limit=differing) == []


def test_an_output_behind_a_bounded_operator_is_judged_by_its_operators_if_these_were_compared():
    outputs = [twin("scaled", 500, 9), twin("conv", 0)]
    assert twin_failures(outputs=outputs) == []
    assert [f[1] for f in twin_failures(outputs=outputs, images=0)] == ["scaled"]
    assert [f[1] for f in twin_failures(outputs=[twin("conv", 1)])] == ["conv"]
    assert twin_failures(outputs=[twin("gate", 10)]) == []


def test_each_twin_is_judged_against_the_kernels_that_it_stands_for():
    other = ("twin_double", "reference")
    tensors = [
        twin("conv", 7, pair=("student", "xnnpack")),
        twin("scaled", 3, pair=other),
        twin("conv", 5, pair=("twin", "reference")),
        twin("image", 2),
    ]
    assert [f[1] for f in twin_failures(tensors)] == ["image"]
    both = twin_failures(tensors, kernels=("builtin", "reference", "xnnpack"))
    assert [(f[1], f[2][:54]) for f in both] == [
        ("scaled", "3 of 1000 codes differ between twin and reference, by "),
        ("image", "2 of 1000 codes differ between twin and xnnpack, by up"),
    ]
    assert last_bit_bounds.TWINS == {"xnnpack": "twin", "reference": "twin_double"}
