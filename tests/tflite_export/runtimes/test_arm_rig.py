import pathlib

import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
import tflite_export
from tflite_export.flatbuffer import writer
from tflite_export.runtimes import arm_rig, litert

needs_rig = pytest.mark.skipif(
    not arm_rig.is_set_up(), reason="needs the rig: python -m tflite_export.runtimes.arm_rig"
)
CONTENTS = writer.to_bytes(small_network.residual_network())


@needs_rig
@pytest.mark.parametrize("cpu", list(arm_rig.CPUS))
def test_xnnpack_on_arm_is_xnnpack_here(cpu):
    images = np.random.default_rng(0).uniform(0, 1, (30, 8, 8, 3)).astype(np.float32)
    expected = litert.Interpreter(CONTENTS).run(images)
    found = arm_rig.ArmInterpreter(CONTENTS, cpu).run(images)
    assert list(found) == list(expected)
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes)


@needs_rig
def test_arm_takes_part_in_a_verification(tmp_path):
    exported = tflite_export.export(small_student.student(), tmp_path / "x.tflite")
    report = tflite_export.verify(
        small_student.student(),
        exported,
        small_student.images(48),
        kernels=("xnnpack",),
        runtimes=[arm_rig.ArmInterpreter(exported.path)],
        runtime_images=20,
        verbose=0,
    )
    found = report.output("xnnpack", "arm:cortex-a76")
    assert (found.codes, found.differing) == (100, 0)
    assert ("xnnpack", "arm:cortex-a76") in report.agreeing()


def test_a_missing_rig_names_the_way_out(tmp_path):
    assert not arm_rig.is_set_up(tmp_path)
    with pytest.raises(arm_rig.RigError, match="python -m tflite_export.runtimes.arm_rig --root="):
        arm_rig.ArmInterpreter(CONTENTS, root=tmp_path)
    with pytest.raises(ValueError, match="cpu must be one of cortex-a53"):
        arm_rig.ArmInterpreter(CONTENTS, "pentium")
    with pytest.raises(ValueError, match="kernels must be one of"):
        arm_rig.ArmInterpreter(CONTENTS, kernels="gpu")


def test_a_rig_that_cannot_be_downloaded_is_one_error_and_not_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(arm_rig.RigError, match="needs apt-get, dpkg-deb"):
        arm_rig.set_up(tmp_path / "rig")
    assert not arm_rig.is_set_up(tmp_path / "rig")


def test_the_rig_is_found_where_it_is_named(monkeypatch):
    monkeypatch.setenv("TFLITE_EXPORT_ARM_RIG", "/some/folder")
    assert arm_rig.default_root() == pathlib.Path("/some/folder")
    monkeypatch.delenv("TFLITE_EXPORT_ARM_RIG")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert arm_rig.default_root() == pathlib.Path("/cache/tflite_export/arm_rig")
