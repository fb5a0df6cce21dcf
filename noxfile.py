"""Both ends of the versions that are supported, each in an environment of its own.

pip install nox
nox -s oldest           the lower bounds of setup.py, each exactly, on the oldest Python
nox -s newest           whatever pip chooses, on every Python that TensorFlow has
nox -s wheel            the wheel alone: its tests run where no source is
nox -s newest-3.12 -- tests/tf_fpq       other tests than those below
"""

import pathlib
import re
import shutil

import nox

# What touches every formula, layer and file format, in a few minutes: grids, kernels, students that
# are saved, loaded and trained on, export, verification, the programs.
TESTS = (
    "tests/tf_fpq/quantizers",
    "tests/tf_fpq/conversion/test_keras3.py",
    "tests/tf_fpq/test_saved_students.py",
    "tests/tf_fpq/test_tfmot_scheme.py",
    "tests/tf_fpq/training/test_saving.py",
    "tests/tflite_export/flatbuffer",
    "tests/tflite_export/kernels",
    "tests/tflite_export/lowering",
    "tests/tflite_export/test_binaries.py",
    "tests/tflite_export/test_export.py",
    "tests/tflite_export/verification/test_verifier.py",
)
PYTHONS = ("3.11", "3.12", "3.13")
nox.options.sessions = ["oldest", "newest", "wheel"]


def requirements() -> list[str]:
    """What setup.py requires, as `numpy>=1.26`."""
    text = pathlib.Path("setup.py").read_text()
    return re.findall(r'"([\w-]+>=[\d.]+)"', text.split("install_requires=[")[1].split("]")[0])


def run_tests(session: nox.Session) -> None:
    """Runs the tests that the command line names, or `TESTS`."""
    session.install("pytest>=8", "hypothesis>=6.100")
    session.run("pip", "list", "--format=freeze", silent=False)
    tests = session.posargs or TESTS
    session.run("python", "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The lower bounds themselves."""
    session.install(*(required.replace(">=", "==") for required in requirements()))
    session.install("--no-deps", ".")
    run_tests(session)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest versions that fit together."""
    session.install(".")
    run_tests(session)


@nox.session(python=PYTHONS[1])
def wheel(session: nox.Session) -> None:
    """The wheel, installed in a folder that has the tests and none of the sources."""
    folder = pathlib.Path(session.create_tmp())
    session.run_install("pip", "wheel", "--no-deps", "--wheel-dir", str(folder), ".")
    session.install(*map(str, folder.glob("*.whl")))
    shutil.copytree("tests", folder / "tests", dirs_exist_ok=True)
    session.chdir(folder)
    session.run("tf-fpq", "--help")
    found = "import tf_fpq, tflite_export; assert 'site-packages' in tf_fpq.__file__"
    session.run("python", "-c", found)
    run_tests(session)
