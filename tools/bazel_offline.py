"""Runs Bazel on this repository where it can download nothing: Debian's bazel-bootstrap (4.2.3).

python -m tools.bazel_offline test //tests/tflite_export/flatbuffer:all      any Bazel command

    apt-get install bazel-bootstrap bazel-rules-java

Current Bazel reads MODULE.bazel and needs no more. The old one wants four repositories that it
would fetch. Small ones take their place here, whose rules are those that Bazel 4 has inside. They
and the WORKSPACE lie in `.bazel/` beside links to the sources, with what Bazel built and which
tests passed; a second run repeats the others only. Tests run with the Python of this program.
"""

from collections.abc import Sequence
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bazel"
_JAVA = ("binary", "import", "library", "test", "package_configuration", "plugin", "runtime")
# Files of the stand-ins by path.
FILES = {
    **{
        f"rules_python/python/py_{rule}.bzl": f"py_{rule} = native.py_{rule}\n"
        for rule in ("library", "test")
    },
    "rules_python/python/BUILD": "",
    "rules_cc/cc/defs.bzl": "".join(
        f"cc_{rule} = native.cc_{rule}\n"
        for rule in ("binary", "import", "library", "test", "toolchain", "toolchain_suite")
    ),
    "rules_cc/cc/BUILD": "",
    "rules_java/java/defs.bzl": "".join(
        f"java_{rule} = native.java_{rule}\n" for rule in (*_JAVA, "toolchain")
    ),
    "rules_java/java/BUILD": "",
    "remote_coverage_tools/BUILD": 'package(default_visibility = ["//visibility:public"])\n'
    'sh_binary(name = "lcov_merger", srcs = ["merge.sh"])\n'
    'filegroup(name = "coverage_report_generator", srcs = ["merge.sh"])\n',
    "remote_coverage_tools/merge.sh": "#!/bin/sh\n",
}


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """Writes the stand-ins and a workspace that uses them; returns the workspace."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    repositories = sorted({name.partition("/")[0] for name in FILES})
    for name in repositories:
        (folder / name / "WORKSPACE").write_text(f'workspace(name = "{name}")\n')
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    for link in filter(pathlib.Path.is_symlink, workspace.iterdir()):
        link.unlink()
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") or entry.name == ".bazelrc":
            (workspace / entry.name).symlink_to(entry)
    lines = [f'local_repository(name = "{n}", path = "{folder / n}")\n' for n in repositories]
    (workspace / "WORKSPACE").write_text('workspace(name = "tf_fpq")\n' + "".join(lines))
    return workspace


def main(arguments: Sequence[str]) -> int:
    """Runs `bazel ARGUMENTS` and returns its exit status."""
    if not arguments:
        print(__doc__)
        return 2
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return subprocess.run(
        ["bazel", "--batch", f"--output_user_root={FOLDER}/out", *arguments],
        cwd=prepare(FOLDER),
        env={**os.environ, "PATH": path},
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
