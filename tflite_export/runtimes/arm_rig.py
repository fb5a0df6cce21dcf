"""XNNPACK's ARM kernels on any machine.

LiteRT's aarch64 wheel and Debian's arm64 Python run under qemu's user-mode emulation.

  python -m tflite_export.runtimes.arm_rig [--root=FOLDER]

Sets the rig up in a folder of its own, under a minute, about 170 MB; nothing is installed on the
host. It needs Debian's `apt-get`, `dpkg-deb` and archive keyring, and pip. Then
`ArmInterpreter(path, cpu)` is a runtime for `verify(..., runtimes=[...])`.

Each CPU model selects another family of kernels. The emulated /proc/cpuinfo must name the same
model, because LiteRT trusts it over what the emulator tells: a core named there as newer than the
emulated one ends in an illegal instruction, and none at all in a crash at start. Times under
emulation mean nothing.

Exit code: 0 the rig works, 2 it could not be set up.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any
import zipfile

import numpy as np

from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert, other_process

# Plain NEON; dot product; int8 matrix multiplication. Debian 12's qemu 7.2 computes garbage with
# SME, so it is off.
CPUS: Mapping[str, str] = {"cortex-a53": "0xd03", "cortex-a76": "0xd0b", "max,sme=off": "0xd0b"}

_DEBIAN_PACKAGES = (
    "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1"
    " zlib1g libexpat1 libffi8 libssl3 liblzma5 libbz2-1.0"
).split()
_WHEEL_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
_EMULATOR = "qemu-aarch64-static"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PYTHON = "usr/bin/python3.11"

_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 4
"""

_RUN = """
import sys
import numpy as np
from tflite_export.runtimes import litert
model, kernels, codes, outputs = sys.argv[1:]
np.savez(outputs, **litert.Interpreter(model, kernels).run(np.load(codes)))
"""


class RigError(InterpreterError):
    """The rig is missing or could not be set up."""


def default_root() -> pathlib.Path:
    """Where the rig is looked for: `$TFLITE_EXPORT_ARM_RIG`, or a folder in the user's cache."""
    named = os.environ.get("TFLITE_EXPORT_ARM_RIG")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return pathlib.Path(named) if named else cache / "tflite_export" / "arm_rig"


def is_set_up(root: pathlib.Path | None = None) -> bool:
    """Whether a rig is there."""
    return ((root or default_root()) / "ready").exists()


def set_up(root: pathlib.Path | None = None) -> pathlib.Path:
    """Downloads and unpacks the rig, and runs one line of Python on every CPU model.

    Raises:
      RigError: If a tool is missing on the host, a download fails or the emulated Python does not
        run.
    """
    root = (root or default_root()).absolute()
    missing = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    if missing or not pathlib.Path(_KEYRING).exists():
        raise RigError(
            f"The rig needs {', '.join(missing) or _KEYRING} (Debian's apt, dpkg,"
            " debian-archive-keyring)."
        )
    for folder in (
        "apt/lists/partial",
        "apt/cache/archives/partial",
        "debs",
        "host",
        "guest",
        "wheels",
        "site",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    _download_debian(root)
    _download_wheels(root)
    for cpu, part in CPUS.items():
        _make_sysroot(root, cpu, part)
        machine = _emulate(root, cpu, ["-c", "import platform; print(platform.machine())"]).strip()
        if machine != "aarch64":
            raise RigError(f"The emulated Python on {cpu} says it runs on {machine!r}.")
    for folder in ("apt", "debs", "wheels"):
        shutil.rmtree(root / folder)
    (root / "ready").touch()
    return root


class ArmInterpreter:
    """A file on emulated ARM kernels.

    Attributes:
      name: "arm:" and the CPU model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        cpu: str = "cortex-a76",
        *,
        kernels: str = "xnnpack",
        root: pathlib.Path | None = None,
    ):
        """Checks the file and the rig.

        Args:
          model: Path or contents.
          cpu: One of `CPUS`.
          kernels: Kernel set.
          root: Folder of the rig.

        Raises:
          RigError: If the rig is not set up.
          ValueError: If the CPU or the kernel set is unknown, or the file is no whole `.tflite`
            file.
        """
        if cpu not in CPUS:
            raise ValueError(f"cpu must be one of {', '.join(CPUS)}. Received: cpu={cpu!r}.")
        if kernels not in litert.KERNEL_SETS:
            known = ", ".join(litert.KERNEL_SETS)
            raise ValueError(f"kernels must be one of {known}. Received: kernels={kernels!r}.")
        self._root = (root or default_root()).absolute()
        if not is_set_up(self._root):
            raise RigError(
                f"No rig in {self._root}; set it up: python -m tflite_export.runtimes.arm_rig"
                f" --root={self._root}"
            )
        self.name = f"arm:{cpu}" if kernels == "xnnpack" else f"arm:{cpu}:{kernels}"
        self._cpu, self._kernels = cpu, kernels
        self._contents = litert.read_bytes(model)
        self._records = reader.from_bytes(self._contents)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for a batch by tensor name.

        It starts the emulator once, which takes some seconds whatever the batch.
        """
        codes = other_process.to_input(batch, self._records)
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            file.write(self._contents)
            file.flush()
            arguments = ["-c", _RUN, file.name, self._kernels]
            return other_process.exchange(
                codes, lambda *paths: _emulate(self._root, self._cpu, [*arguments, *paths])
            )


def _emulate(root: pathlib.Path, cpu: str, arguments: Sequence[str]) -> str:
    """Runs the emulated Python and returns what it printed."""
    sysroot = root / f"cpu-{cpu}"
    emulator = str(root / "host/usr/bin" / _EMULATOR)
    package = pathlib.Path(__file__).resolve().parents[2]
    command = [emulator, "-cpu", cpu, "-L", str(sysroot), str(sysroot / _PYTHON), "-S", *arguments]
    environment = {
        "PYTHONPATH": f"{root / 'site'}{os.pathsep}{package}",
        "PATH": "/usr/bin",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        code = done.returncode
        reason = signal.Signals(-code).name if code < 0 else (lines or [f"exit code {code}"])[-1]
        raise RigError(f"The emulated Python failed on {cpu}: {reason}")
    return done.stdout


def _download_debian(root: pathlib.Path) -> None:
    """arm64 packages into `guest`, the emulator into `host`, through an apt of the rig's own."""
    host = _output(["dpkg", "--print-architecture"]).strip()
    (root / "apt/status").touch()
    (root / "apt/sources.list").write_text(
        f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian bookworm main\n"
        f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian-security bookworm-security main\n"
    )
    (root / "apt/apt.conf").write_text(
        f'APT::Architecture "{host}"; APT::Architectures {{ "{host}"; "arm64";'
        f' }};\nDir::State::lists "{root}/apt/lists"; Dir::State::status "{root}/apt/status";'
        f' Dir::Cache "{root}/apt/cache";\nDir::Etc::sourcelist "{root}/apt/sources.list";'
        ' Dir::Etc::sourceparts "/dev/null"; APT::Sandbox::User "root";\nAcquire::Languages'
        ' "none";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(root / "apt/apt.conf")}
    _output(["apt-get", "-qq", "update"], env=environment)
    guest = [f"{name}:arm64" for name in _DEBIAN_PACKAGES]
    _output(
        ["apt-get", "-qq", "download", *guest, f"qemu-user-static:{host}"],
        env=environment,
        cwd=root / "debs",
    )
    for package in sorted((root / "debs").glob("*.deb")):
        target = "host" if package.name.startswith("qemu") else "guest"
        _output(["dpkg-deb", "-x", str(package), str(root / target)])
    for emulator in (root / "host/usr/bin").iterdir():
        if emulator.name != _EMULATOR:  # the other processors' are 200 MB
            emulator.unlink()


def _download_wheels(root: pathlib.Path) -> None:
    """LiteRT and NumPy for aarch64 into `site`."""
    platforms = [argument for name in _WHEEL_PLATFORMS for argument in ("--platform", name)]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
    ]
    _output([*pip, *platforms, "-d", str(root / "wheels"), "ai-edge-litert", "numpy"])
    for wheel in sorted((root / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")


def _make_sysroot(root: pathlib.Path, cpu: str, part: str) -> None:
    """The guest's files by links, with a /proc/cpuinfo of its own."""
    sysroot = root / f"cpu-{cpu}"
    (sysroot / "proc").mkdir(parents=True, exist_ok=True)
    (sysroot / "proc/cpuinfo").write_text(_CPUINFO.format(part=part))
    for entry in (root / "guest").iterdir():
        link = sysroot / entry.name
        if not link.is_symlink():
            link.symlink_to(entry)


def _output(command: Sequence[str], **arguments: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **arguments)
    if done.returncode:
        raise RigError(
            f"`{' '.join(command[:4])} ...` failed: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def main(arguments: list[str]) -> int:
    """Sets the rig up."""
    command_line.positional(arguments, [])
    root = set_up(pathlib.Path(_ROOT.value) if _ROOT.value else None)
    print(f"{root}: ARM kernels are ready for {', '.join(CPUS)}")
    return 0


if __name__ == "__main__":
    from absl import flags

    from tflite_export import command_line

    _ROOT = flags.DEFINE_string(
        "root", None, "Folder of the rig; by default $TFLITE_EXPORT_ARM_RIG or a cache folder."
    )
    command_line.start(main)
