"""Checks by buildifier, formatter and linter of BUILD files, those that `tools.build_files` writes.

python -m tools.buildifier          exits with 1 and names the files that it would change
python -m tools.buildifier --fix    changes them

It is Bazel's own program, run from its package on npm. Where there is no npm, or npm cannot fetch
it, a line says that nothing was checked.
"""

from collections.abc import Sequence
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "@bazel/buildifier@8.2.1"
PATTERNS = ("MODULE.bazel", "BUILD", "**/BUILD")


def files(root: pathlib.Path = ROOT) -> list[str]:
    """The files to check, without those of folders that start with a dot."""
    found = {path.relative_to(root) for pattern in PATTERNS for path in root.glob(pattern)}
    return sorted(str(path) for path in found if not any(p.startswith(".") for p in path.parts))


def command() -> list[str] | None:
    """How buildifier starts, or None where it cannot be had."""
    npx = shutil.which("npx")
    if npx is None:
        return None
    start = [npx, "--yes", PACKAGE]
    fetched = subprocess.run([*start, "--version"], capture_output=True, check=False)
    return start if fetched.returncode == 0 else None


def main(arguments: Sequence[str], root: pathlib.Path = ROOT) -> int:
    """Runs buildifier and returns the exit status."""
    if list(arguments) not in ([], ["--fix"]):
        print(__doc__)
        return 2
    start = command()
    if start is None:
        print(f"BUILD files were not checked by buildifier: npx cannot run {PACKAGE} here.")
        return 0
    mode = "--mode=fix" if arguments else "--mode=check"
    done = subprocess.run([*start, mode, "--lint=warn", *files(root)], cwd=root, check=False)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
