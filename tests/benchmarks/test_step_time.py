"""The benchmark's arithmetic and files, and that every variant makes steps. No timing is
asserted."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import step_time
from experiments import records

SMALL = step_time.Settings(batch_size=4, image_size=8)


@pytest.mark.parametrize(
    "variant", ["float", "tfmot", pytest.param("fpq+cr", marks=pytest.mark.slow)]
)
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


def test_a_case_is_named_by_what_is_not_the_default():
    assert step_time.Settings().label("resnet20") == "resnet20"
    wide = step_time.Settings(width=64, threads=2, mode="xla")
    assert wide.label("resnet20") == "resnet20, width 64, 2 threads, xla"
    assert step_time.Settings().clock == "cpu"
    assert step_time.Settings(threads=2).clock == step_time.Settings(device="gpu").clock == "wall"


def test_what_fails_in_its_process_is_named():
    with pytest.raises(RuntimeError, match="_peak_of_process.*'fast'.*failed with exit code 1"):
        step_time.peak_memory("resnet8", "fast", SMALL)


@pytest.mark.slow
def test_one_command_writes_every_case(tmp_path):
    """Peaks are above zero, and the file has the ratios under the names that are read."""
    arguments = ["--models=resnet8", "--variants=lsq", "--rounds=1", "--steps=1", "--batch_size=4"]
    arguments += ["--image_size=8", "--widths=4,16", f"--json={tmp_path}/out.json"]
    command = [sys.executable, "-m", "benchmarks.step_time", *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["resnet8, width 4", "resnet8"]
    for result in found.values():
        assert set(result["ratios"]) == {"lsq"} and result["ratios"]["lsq"] > 0
        assert all(peak > 0 for peak in result["peak_mib"].values())
    assert "MiB/float" in printed


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
