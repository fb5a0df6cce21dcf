"""The picture of a cell: what is in it, what is called unfinished, and that text stays inside."""

import re
from xml.etree import ElementTree

import pytest

from experiments import overview
from tests.experiments.test_tables import row


def trace(methods, seed, value, **changes):
    found = {"methods": methods, "seed": seed, "hessian_trace": value, "model": "resnet8"}
    return {**found, "weight_bits": 2, "activation_bits": 2, "split": "test", **changes}


def rows(seeds):
    for seed in range(seeds):
        yield row("none", seed, 0.80)
        yield row("kd", seed, 0.81 + 0.001 * seed)
        yield row("fpq", seed, 0.79 - 0.001 * seed)


TRACES = [
    *(trace("none", seed, 150 + 10 * seed) for seed in range(3)),
    *(trace("fpq", seed, 70 + 10 * seed) for seed in range(3)),
    trace("kd", 0, 1, split="validation"),
    trace("kd", 0, 2, model="resnet20"),
    trace("kd", 0, 3, weight_bits=4),
]


def lines(seeds, traces=TRACES):
    return overview.lines(list(rows(seeds)), traces, "resnet8", "W2A2")


def texts(picture):
    return [element.text for element in ElementTree.fromstring(picture).iter() if element.text]


def test_lines_have_differences_and_traces_of_their_cell_and_of_test_images():
    lsq, kd, fpq = lines(8)
    assert (lsq.name, kd.name, fpq.name) == ("none", "kd", "fpq")
    assert lsq.accuracy is None and lsq.traces == {0: 150, 1: 160, 2: 170}
    assert kd.accuracy.mean == pytest.approx(1.35) and kd.accuracy.count == 8 and not kd.traces
    assert fpq.accuracy.mean == pytest.approx(-1.35)
    assert overview.lines(list(rows(8)), TRACES, "resnet8", "W4A4") == []


@pytest.mark.parametrize(("seeds", "unfinished"), [(8, False), (7, True), (1, True)])
def test_fewer_than_eight_pairs_are_hollow_and_called_unfinished(seeds, unfinished):
    picture = overview.svg(lines(seeds), "title")
    assert ('class="dot part"' in picture) == unfinished
    assert any("unfinished" in text for text in texts(picture)) == unfinished
    # One pair has no interval.
    assert ('class="bar"' in picture) == (seeds > 1)


def test_traces_are_bars_and_their_length_is_their_ratio():
    picture = overview.svg(lines(8), "title")
    widths = [
        float(w) for w in re.findall(r'class="(?:lsq|trace)" x="428" .*?width="([\d.]+)"', picture)
    ]
    assert len(widths) == 2 and widths[1] / widths[0] == pytest.approx(80 / 160, abs=0.01)
    assert {"160", "80"} <= set(texts(picture))
    assert "not measured yet" in texts(overview.svg(lines(8, []), "title"))


def test_everything_is_inside_and_modes_are_light_and_dark():
    found = overview.lines(
        [*rows(2), row("cr", 0, 0.2), row("cr", 1, 0.99)], TRACES, "resnet8", "W2A2"
    )
    picture = overview.svg(found, "a < b")
    assert "prefers-color-scheme: dark" in picture and "<title>a &lt; b</title>" in picture
    root = ElementTree.fromstring(picture)
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(name, 0)) <= 600
    # Not below 11 pixels where the picture is 390 wide.
    size = float(re.search(r"font-size: ([\d.]+)px", picture)[1])
    assert size * 390 / 600 >= 11


def test_without_a_pair_nothing_is_written(tmp_path):
    assert not overview.write(
        overview.lines([], TRACES, "resnet8", "W2A2"), "t", tmp_path / "a.svg"
    )
    assert not overview.write([*lines(8)[:1]], "t", tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()
    assert overview.write(lines(2), "t", tmp_path / "b.svg") and (tmp_path / "b.svg").exists()


def test_ticks_are_round_and_few():
    assert list(overview._Scale(-1.2, 1.7).ticks()) == [-1, 0, 1]
    assert list(overview._Scale(-0.3, 0.4).ticks()) == pytest.approx([-0.2, 0, 0.2, 0.4])
