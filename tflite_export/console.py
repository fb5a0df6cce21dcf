"""The program `tf-fpq`: one command for each program of the two packages.

Needs no TensorFlow itself; `tf-fpq inspect` starts in half a second.
"""

from collections.abc import Sequence
import importlib
import importlib.metadata
import runpy
import sys

from tflite_export import command_line

# The command, the module that is the program, and what it is for.
COMMANDS = {
    "check": ("tf_fpq.check", "what quantization would do with every layer of a saved model"),
    "export": ("tflite_export.export", "write a trained student as a .tflite file"),
    "verify": ("tflite_export.verify", "prove that the file computes what was trained"),
    "benchmark": ("tflite_export.benchmark", "latency, size and memory of models on this CPU"),
    "inspect": ("tflite_export.inspect", "tensors, scales and operators in .tflite files"),
}

_EXAMPLE = """Examples:
  tf-fpq check float.keras --rules='stem|logits=W8A8' --rules='.*=W4A4'
  tf-fpq export student.keras model.tflite
  tf-fpq verify student.keras model.tflite --images=test.npz --save=report.html

`tf-fpq COMMAND --help` has a command's arguments and exit codes. Without installation the commands
are `python -m tf_fpq.check`, `python -m tflite_export.verify` and so on. What TensorFlow logs is
silenced; `TF_CPP_MIN_LOG_LEVEL=0 tf-fpq ...` shows it."""


def usage() -> str:
    """What `tf-fpq --help` prints."""
    lines = [f"  {name:<11}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: tf-fpq COMMAND [ARGUMENTS]", "", *lines, "", _EXAMPLE])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, as `python -m` runs its module.

    Args:
      arguments: Those behind the program's name; None takes the command line's.

    Returns:
      The exit code of help and of mistakes; a command ends the process with its own.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("help", "--help", "-h", "-help"):
        print(usage())
        return 0
    if name in ("version", "--version"):
        print(importlib.metadata.version("tf_fpq"))
        return 0
    if name not in COMMANDS:
        print(f"{usage()}\n\nerror: No such command. Received: {name!r}.", file=sys.stderr)
        return command_line.EXIT_ERROR
    module, _ = COMMANDS[name]
    if module.startswith("tf_fpq."):  # the others import it when they load a model
        with command_line.tensorflow_silenced():
            importlib.import_module("tf_fpq")
    sys.argv[1:] = rest[:-1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
