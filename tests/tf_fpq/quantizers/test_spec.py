"""Grids and rules, without TensorFlow."""

import dataclasses
import re

import pytest

from tf_fpq.placement.rules import QuantRule, describe_rules, match_rules
from tf_fpq.quantizers.spec import QuantSpec, check_bits

LAYERS = {"stem": "Conv2D", "block_dw": "DepthwiseConv2D", "block_pw": "Conv2D", "logits": "Dense"}


@pytest.mark.parametrize(
    "arguments, codes",
    [
        ({"num_bits": 4}, (0, 15)),
        ({"num_bits": 8}, (0, 255)),
        ({"num_bits": 8, "narrow_range": True}, (1, 255)),
        ({"num_bits": 4, "symmetric": True}, (-8, 7)),
        ({"num_bits": 4, "symmetric": True, "narrow_range": True}, (-7, 7)),
        ({"num_bits": 2, "symmetric": True, "narrow_range": True}, (-1, 1)),
    ],
)
def test_codes(arguments, codes):
    spec = QuantSpec(**arguments)
    assert (spec.qmin, spec.qmax) == codes


@pytest.mark.parametrize("num_bits", [1, 9, 0, -4, 4.0, "4", True, None])
def test_bad_widths_are_refused(num_bits):
    with pytest.raises(ValueError, match="num_bits must be an integer from 2 to 8"):
        QuantSpec(num_bits=num_bits)


@pytest.mark.parametrize(
    "axis, step_shape, shared",
    [
        (None, (), (0, 1, 2, 3)),
        ((3,), (1, 1, 1, 7), (0, 1, 2)),
        ((-1,), (1, 1, 1, 7), (0, 1, 2)),
        ((2, 3), (1, 1, 5, 7), (0, 1)),
    ],
)
def test_step_shape_and_shared_axes(axis, step_shape, shared):
    spec = QuantSpec(num_bits=8, axis=axis)
    assert spec.step_shape((3, 3, 5, 7)) == step_shape
    assert spec.shared_axes(4) == shared


def test_a_grid_is_unsigned_whole_and_the_tensors_unless_it_says_otherwise():
    assert dataclasses.asdict(QuantSpec(num_bits=2)) == {
        "num_bits": 2,
        "symmetric": False,
        "narrow_range": False,
        "axis": None,
    }
    with pytest.raises(TypeError):
        QuantSpec(4)


def test_a_width_that_is_refused_is_told_with_those_that_are_not():
    message = (
        "weight_bits must be an integer from 2 to 8 (an int8 container holds those widths"
        " exactly). Received: weight_bits=9."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_bits("weight_bits", 9)
    for num_bits in (2, 8):
        check_bits("weight_bits", num_bits)


def test_sizes_along_which_a_step_is_shared_may_be_unknown():
    assert QuantSpec(num_bits=8, axis=(-1,)).step_shape((None, None, 3)) == (1, 1, 3)
    assert QuantSpec(num_bits=8, axis=(0,)).step_shape((5, None)) == (5, 1)


def test_records_are_frozen_and_comparable():
    spec = QuantSpec(num_bits=4, axis=[3])
    assert spec == QuantSpec(num_bits=4, axis=(3,))
    for record, field in ((spec, "num_bits"), (QuantRule(".*"), "weight_bits")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, 2)


def test_first_match_wins_and_the_whole_name_must_match():
    rules = [QuantRule("stem|logits"), QuantRule("block_.*", weight_bits=4)]
    chosen = match_rules(rules, LAYERS)
    assert chosen == {
        "stem": rules[0],
        "logits": rules[0],
        "block_dw": rules[1],
        "block_pw": rules[1],
    }
    assert "block_dw" not in match_rules([QuantRule("stem"), QuantRule("block_pw")], LAYERS)
    with pytest.raises(ValueError, match="'block' -> W8A8"):
        match_rules([QuantRule("block")], LAYERS)


def test_layer_type_by_name_or_class():
    class Dense:
        pass

    rules = [
        QuantRule(layer_type="DepthwiseConv2D", weight_bits=8),
        QuantRule(layer_type=Dense),
        QuantRule(".*", weight_bits=2),
    ]
    chosen = match_rules(rules, LAYERS)
    assert [name for name, rule in chosen.items() if rule is rules[0]] == ["block_dw"]
    assert chosen["logits"] is rules[1] and chosen["stem"].weight_bits == 2
    with pytest.raises(ValueError, match=r"layer_type=Conv1D.*stem \(Conv2D\)"):
        match_rules([QuantRule(layer_type="Conv1D")], LAYERS)
    both = QuantRule("block_.*", layer_type="Conv2D")
    assert list(match_rules([both], LAYERS)) == ["block_pw"]


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="match no layer with a kernel: 'steem' -> W4A8"):
        match_rules([QuantRule(".*"), QuantRule("steem", weight_bits=4)], LAYERS)
    assert match_rules([], LAYERS) == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"weight_bits": 9}, "weight_bits=9"),
        ({"activation_bits": 1}, "activation_bits=1"),
        ({"pattern": "("}, "pattern='\\('"),
        ({"pattern": None}, "pattern=None"),
        ({"layer_type": 3}, "layer_type=3"),
        ({"per_channel": "no"}, "per_channel='no'"),
    ],
)
def test_bad_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        QuantRule(**{"pattern": ".*", **arguments})


def test_scheme_names():
    assert QuantRule().scheme == "W8A8"
    assert QuantRule(weight_bits=2, activation_bits=None).scheme == "W2A32"
    assert (
        str(QuantRule("a", layer_type="Dense", weight_bits=None))
        == "'a', layer_type=Dense -> W32A8"
    )


def test_describe_rules_says_what_each_rule_decides():
    rules = [QuantRule("stem"), QuantRule("stem|block_dw", weight_bits=4), QuantRule("st.*")]
    assert describe_rules(rules, LAYERS).split("\n") == [
        "'stem' -> W8A8: stem",
        "'stem|block_dw' -> W4A8: block_dw",
        "'st.*' -> W8A8: nothing, earlier rules match first",
        "no rule, float kernel: block_pw, logits",
    ]
