"""Widths for a budget, on damages that are made up so that the answer is known."""

import itertools
import math

import pytest

import tf_fpq
from tf_fpq.sensitivity import Damage, LayerCost, Sensitivity

# Noise of the kernels and of what they read at 2, 4 and 8 bits.
NOISE = {
    "stem": ((0.5, 0.2, 0.001), (0.3, 0.1, 0.001)),
    "block/conv+1": ((0.02, 0.001, 0.0001), (0.01, 0.001, 0.0001)),
    "head": ((0.1, 0.01, 0.001), (0.2, 0.01, 0.001)),
}
WEIGHTS = {"stem": 100, "block/conv+1": 4000, "head": 1000}


def _found(reads=None):
    layers = {
        name: LayerCost(
            kind="Conv2D", reads=(reads or {}).get(name, f"{name}_in"), weights=count,
            bias_bytes=16, macs=10 * count,
        )
        for name, count in WEIGHTS.items()
    }  # fmt: skip
    damages = tuple(
        Damage(
            layer=name, part=part, bits=bits, noise=noise, agreement=1.0, squared_error=4 * noise
        )
        for name, parts in NOISE.items()
        for part, noises in zip(("weights", "activations"), parts)
        for bits, noise in zip((2, 4, 8), noises)
    )
    return Sensitivity("made_up", 8, layers, damages)


def test_the_worked_number():
    layers = {
        name: LayerCost(kind="Dense", reads="x", weights=1000, bias_bytes=0, macs=1000)
        for name in ("first", "second")
    }
    damages = tuple(
        Damage(layer=name, part="weights", bits=bits, noise=noise, agreement=1.0)
        for name, noises in (("first", (0.01, 0.0)), ("second", (0.001, 0.0)))
        for bits, noise in zip((4, 8), noises)
    )
    suggestion = tf_fpq.suggest_rules(Sensitivity("m", 1, layers, damages), weight_bytes=1500)
    assert suggestion.choice.widths == {"first": (8, 8), "second": (4, 8)}
    assert suggestion.choice.weight_bytes == 1500


@pytest.mark.parametrize("budget", [1400, 2000, 2700, 4000, 5200])
def test_no_choice_within_the_budget_does_less_damage(budget):
    suggestion = tf_fpq.suggest_rules(_found(), weight_bytes=budget)
    assert suggestion.choice.weight_bytes <= budget
    damages = []
    for widths in itertools.product((2, 4, 8), repeat=3):
        cost = sum(WEIGHTS[n] * w // 8 + 16 for n, w in zip(WEIGHTS, widths))
        if cost <= budget:
            noises = (NOISE[n][0][(2, 4, 8).index(w)] for n, w in zip(WEIGHTS, widths))
            damages.append(sum(noises))
    assert suggestion.choice.damage == pytest.approx(min(damages))


def test_large_budgets_lose_little_by_units():
    layers = {
        f"layer{i}": LayerCost(kind="Dense", reads="x", weights=10**6, bias_bytes=0, macs=1)
        for i in range(10)
    }
    damages = tuple(
        Damage(layer=name, part="weights", bits=bits, noise=2.0**-bits, agreement=1.0)
        for name in layers
        for bits in (2, 3, 4)
    )
    found = Sensitivity("m", 1, layers, damages)
    suggestion = tf_fpq.suggest_rules(found, weight_bytes=10 * 10**6 * 3 // 8)
    assert {widths for widths, _ in suggestion.choice.widths.values()} == {3}


def test_what_the_last_step_leaves_is_spent():
    # From 5,148 bytes, 8 bits everywhere, the largest kernel at 4 leads to 3,148: the stem or the
    # head must be narrowed as well.
    suggestion = tf_fpq.suggest_rules(_found(), weight_bytes=3100)
    spent = suggestion.choice
    assert spent.weight_bytes <= 3100
    for name, (width, _) in spent.widths.items():
        for wider in (bits for bits in (4, 8) if bits > width):
            cost = spent.weight_bytes + WEIGHTS[name] * (wider - width) // 8
            assert cost > 3100, f"{name} could have {wider} bits."


def test_the_choice_need_not_be_the_one_that_pays_most():
    layers = {
        name: LayerCost(kind="Dense", reads="x", weights=count, bias_bytes=0, macs=count)
        for name, count in (("large", 8000), ("small", 400))
    }
    damages = tuple(
        Damage(layer=name, part="weights", bits=bits, noise=noise, agreement=1.0)
        for name, noises in (("large", (0.5, 0.01)), ("small", (0.1, 0.01)))
        for bits, noise in zip((4, 8), noises)
    )
    # 4,000 bytes for 0.49 pay more than 200 for 0.09, but 100 bytes are all that must go.
    suggestion = tf_fpq.suggest_rules(Sensitivity("m", 1, layers, damages), weight_bytes=8300)
    assert suggestion.choice.widths == {"large": (8, 8), "small": (4, 8)}


def test_the_path_is_a_front():
    path = tf_fpq.suggest_rules(_found(), weight_bytes=10**6).path
    costs = [choice.weight_bytes for choice in path]
    damages = [choice.damage for choice in path]
    assert costs == sorted(costs, reverse=True) and damages == sorted(damages)
    assert {widths for widths, _ in path[0].widths.values()} == {8}
    assert {widths for widths, _ in path[-1].widths.values()} == {2}


def test_the_rules_say_what_was_chosen():
    suggestion = tf_fpq.suggest_rules(_found(), weight_bytes=2700)
    for name, scheme in suggestion.choice.widths.items():
        rule = next(rule for rule in suggestion.rules if rule.matches(name, "Conv2D"))
        assert (rule.weight_bits, rule.activation_bits) == scheme
    assert suggestion.rules[-1].pattern == ".*"


def test_bit_operations_choose_activations_that_are_shared_together():
    found = _found(reads={"head": "shared", "block/conv+1": "shared"})
    suggestion = tf_fpq.suggest_rules(found, bit_operations=10**6, activation_bits=None)
    widths = suggestion.choice.widths
    assert widths["head"][1] == widths["block/conv+1"][1]
    assert suggestion.choice.bit_operations <= 10**6
    expected = sum(10 * WEIGHTS[name] * w * a for name, (w, a) in widths.items())
    assert suggestion.choice.bit_operations == expected


def test_traces_take_the_place_of_noise():
    traces = {"stem": 1.0, "block/conv+1": 1000.0, "head": 1.0}
    plain = tf_fpq.suggest_rules(_found(), weight_bytes=4700)
    by_trace = tf_fpq.suggest_rules(_found(), weight_bytes=4700, traces=traces)
    assert plain.choice.widths["block/conv+1"][0] < 8
    assert by_trace.choice.widths["block/conv+1"][0] == 8
    weights = {n: (2, 4, 8).index(w) for n, (w, _) in by_trace.choice.widths.items()}
    expected = sum(traces[n] * 4 * NOISE[n][0][index] for n, index in weights.items())
    assert math.isclose(by_trace.choice.damage, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_bytes": 5000, "bit_operations": 10},
        {"weight_bytes": 5000, "activation_bits": None},
        {"weight_bytes": 5000, "activation_bits": 9},
        {"weight_bytes": 10},
        {"weight_bytes": 5000, "traces": {"stem": 1.0}},
        {"bit_operations": 10**6, "activation_bits": None, "traces": dict.fromkeys(NOISE, 1.0)},
    ],
)
def test_arguments_that_do_not_fit(arguments):
    with pytest.raises(ValueError):
        tf_fpq.suggest_rules(_found(), **arguments)


def test_text_and_picture(tmp_path):
    suggestion = tf_fpq.suggest_rules(_found(), weight_bytes=2700)
    assert f"{suggestion.choice.weight_bytes:,} bytes" in str(suggestion)
    suggestion.plot(str(tmp_path / "front.svg"))
    assert "<svg" in (tmp_path / "front.svg").read_text()
