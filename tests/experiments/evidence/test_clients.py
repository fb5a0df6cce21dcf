"""The list of clients, the table, and two clients themselves (slow: they install packages)."""

import ast
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.evidence import client_list, clients, clients_network
from tests.tflite_export import small_student
import tflite_export
from tflite_export import targets
from tflite_export.runtimes import litert


def row(**fields):
    return {
        "client": "tflm",
        "package": "tflite-micro 1",
        "dense": "one scale",
        "target": "tflm",
        "loads": True,
        "error": None,
        "note": "",
        "codes": 3600,
        "differing_xnnpack": 7,
        "max_lsb_xnnpack": 2,
        "differing_reference": 0,
        "max_lsb_reference": 0,
        "commit": "abc",
        **fields,
    }


def test_clients_are_pinned_and_their_targets_known():
    for name, client in client_list.CLIENTS.items():
        assert client.name == name and client.target in targets.TARGETS
        assert all("==" in requirement for requirement in client.requirements)
        ast.parse(client.script)


def test_a_client_is_judged_by_its_own_kernels_and_target():
    assert not clients.failed(row())
    assert not clients.failed(row(differing_reference=36))
    assert clients.failed(row(differing_reference=37)), "TFLM may differ in 1 % of the codes"
    assert clients.failed(row(client="litert", target="litert", differing_xnnpack=1))
    assert clients.failed(row(loads=False))
    assert not clients.failed(row(loads=False, target="litert"))


def test_the_table_shows_counts_and_refusals(tmp_path):
    refused = row(dense="per channel", loads=False, target="litert", error="Didn't find op")
    del refused["codes"]
    path = tmp_path / "rows.jsonl"
    clients.merged(path, [refused])
    rows = clients.merged(path, [row()])
    assert [r["dense"] for r in rows] == ["one scale", "per channel"], "in order, none lost"
    text = clients.table(clients.merged(path, [row(differing_reference=3, max_lsb_reference=1)]))
    assert "3 of 3,600 (reference), at most 1 LSB" in text
    assert "no, as foretold" in text and "Didn't find op" in text


def test_scores_are_counted_as_codes(tmp_path):
    """On the scores of LiteRT itself, one of them moved by two steps."""
    exported = tflite_export.export(
        small_student.student(), tmp_path / "x.tflite", output_type="uint8"
    )
    values = small_student.images(20)
    (name,) = exported.file_model.outputs
    grid = exported.file_model.tensors[name]
    codes = litert.Interpreter(exported.path).run(values)[name]
    scores = litert.dequantize(codes, float(grid.scale), grid.zero_point).astype(np.float64)
    scores[3, 1] += 2 * float(grid.scale)
    found = clients.differences(client_list.CLIENTS["mediapipe"], exported, scores, values)
    assert (found["images"], found["codes"]) == (20, 100)
    assert (found["differing_xnnpack"], found["max_lsb_xnnpack"]) == (1, 2)


def test_the_images_are_pixels_of_three_channels():
    images, classes = clients_network.pixels()
    assert images.shape == (1797, 16, 16, 3) and images.dtype == np.uint8
    assert images.max() == 255 and set(classes) == set(range(10))
    values = clients_network.preprocessed(images)
    assert values.min() == 0.0 and values.max() == 1.0


@pytest.mark.slow
def test_the_oldest_clients_run_our_file(tmp_path):
    """tflite-runtime 2.14 and TFLM, installed into folders of their own."""
    command = [sys.executable, "-m", "experiments.evidence.clients"]
    envs = os.environ.get("CLIENTS_ENVS", str(tmp_path / "envs"))
    done = subprocess.run(
        [*command, f"--envs={envs}", "--clients=tflite_runtime,tflm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tflite-runtime 2.14.0, Dense one scale: yes; 0 of 3,600 (builtin)" in done.stdout
    assert "tflite-runtime 2.14.0, Dense per channel: no, as foretold" in done.stdout
    assert done.stdout.count(" of 3,600 (reference)") == 2
