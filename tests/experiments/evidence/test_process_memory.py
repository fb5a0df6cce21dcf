import subprocess
import sys

import numpy as np

from experiments.evidence import process_memory

_CHILD = """
from experiments.evidence import process_memory
before = process_memory.peak_mib()
kept = bytearray(100 * 2**20)
print(before, process_memory.peak_mib())
"""


def test_the_peak_is_the_processs_own():
    """Not what its parent held: this process holds half a GiB while the child starts."""
    held = np.ones(2**26)
    found = subprocess.run(
        [sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    before, after = map(int, found.split())
    assert before < held.nbytes / 2**20 <= process_memory.peak_mib()
    assert 95 <= after - before <= 130
