"""The library of operations: where it lies, how it is compiled, and its functions in Python.

A library fits one TensorFlow and one source, so both are in its name. One that was compiled for
others is never loaded, and `build` removes it.
"""

import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sysconfig
from typing import Any

import tensorflow as tf

FOLDER = pathlib.Path(__file__).resolve().parent
SOURCES = (
    "grid_operations.cc",
    "distance_operations.cc",
    "noise_operations.cc",
    "list_operations.cc",
)
HEADERS = ("operation.h",)
# No option that lets the compiler change a result: a product and a sum stay two roundings.
_OPTIONS = (
    *("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-shared", "-fPIC", "-w"),  # TensorFlow's own headers warn
)


class BuildError(RuntimeError):
    """The operations could not be compiled; the message says why."""


@functools.cache
def operations() -> Any:
    """The operations as functions, or None if `build` was not called for this TensorFlow.

        y = library.operations().tf_fpq_fake_quant(x=x, step_size=step_size, ...)

    Once asked, the answer stays for this process.
    """
    found = path()
    return tf.load_op_library(str(found)) if found.exists() else None


def path() -> pathlib.Path:
    """Where the library lies once it is built."""
    sources = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS))
    built_for = [
        tf.__version__,
        platform.machine(),
        *_OPTIONS,
        *tf.sysconfig.get_compile_flags()[1:],
    ]
    digest = hashlib.sha256(sources + " ".join(built_for).encode()).hexdigest()[:12]
    return FOLDER / f"operations-{digest}.so"


def build() -> pathlib.Path:
    """Compiles the operations if they are not there yet, in some seconds, and returns `path()`.

    Several processes may do so at once: the library appears whole.

    Raises:
      BuildError: There is no C++ compiler, it failed, or the folder cannot be written to.
    """
    target = path()
    if target.exists():
        return target
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        _compile(partial)
        os.replace(partial, target)
    except OSError as error:
        raise BuildError(f"The operations cannot be written to {FOLDER}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    for other in FOLDER.glob("operations-*.so"):
        if other != target:
            other.unlink()
    return target


def _compile(target: pathlib.Path) -> None:
    compiler = _compiler()
    sources = [str(FOLDER / name) for name in SOURCES]
    include = f"-I{FOLDER.parent.parent}"
    flags = [*tf.sysconfig.get_compile_flags(), include, *_OPTIONS]
    command = [compiler, *flags, *sources, "-o", str(target), *tf.sysconfig.get_link_flags()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise BuildError(
            f"{compiler} failed: {errors[0].strip()}\nThe command: {' '.join(command)}"
        )


def _compiler() -> str:
    """The compiler that `$CXX` names, that which Python was built with, or g++."""
    configured = (sysconfig.get_config_var("CXX") or "").split()[:1]
    names = [os.environ["CXX"]] if "CXX" in os.environ else [*configured, "g++", "clang++"]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise BuildError(
            f"There is no C++ compiler. Looked for: {', '.join(names)}. Install one "
            "(Debian: apt-get install g++), or name it in the environment: CXX=clang++."
        )
    return found
