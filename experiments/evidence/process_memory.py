"""How much memory a process has needed."""

import pathlib
import resource
import sys

_STATUS = pathlib.Path("/proc/self/status")


def peak_mib() -> int:
    """Largest resident memory of this process so far, in MiB.

    Linux' own figure, where there is one: `getrusage` counts there what the parent held when it
    started this process.
    """
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
