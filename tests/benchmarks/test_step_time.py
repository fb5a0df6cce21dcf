"""The benchmark's arithmetic and files, and that every variant makes steps. No timing is
asserted."""

import json

import numpy as np
import pytest

from benchmarks import step_time
from experiments import records

SMALL = step_time.Settings(batch_size=4, image_size=8)


@pytest.mark.parametrize("variant", ["float", "tfmot", "fpq+cr"])
def test_a_variant_makes_steps(variant):
    step = step_time.make_step("resnet8", variant, SMALL)
    losses = [step() for _ in range(3)]
    assert np.isfinite(losses).all() and len(set(losses)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(set(step_time.VARIANTS) - {"float", "tfmot", "fpq+cr"}))
def test_other_variants_make_steps(variant):
    assert np.isfinite(step_time.make_step("resnet8", variant, SMALL)())


def test_unknown_variant():
    with pytest.raises(ValueError, match="variants must be of float, tfmot, .*Received: 'fast'"):
        step_time.make_step("resnet8", "fast", SMALL)


def test_ratios_are_paired_medians():
    times = {
        "float": {"cpu": [1.0, 2.0, 4.0], "wall": [1.0, 1.0, 1.0]},
        "lsq": {"cpu": [1.5, 2.4, 4.0], "wall": [3.0, 2.0, 1.0]},
    }
    result = step_time.summarize(times, "cpu")
    # 1.5 / 1, 2.4 / 2, 4 / 4: the median is 1.2, not 2.4 / 2.0 of medians only by chance.
    assert result["ratios"] == {"lsq": 1.2}
    assert result["quartiles"] == {"lsq": [1.1, 1.35]}
    assert result["cpu_ms"] == {"float": 2000.0, "lsq": 2400.0}
    assert step_time.summarize(times, "wall")["ratios"] == {"lsq": 2.0}


def test_json_and_plot(tmp_path):
    results = {
        "resnet20": {"ratios": {"lsq": 1.1, "fpq": 1.4}},
        "mobilenet_v2_tiny": {"ratios": {"lsq": 1.2}},
    }
    records.write_json(tmp_path / "out.json", results)
    assert json.loads((tmp_path / "out.json").read_text()) == results
    step_time.plot(results, str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]
