"""How the command line programs start. Needs no TensorFlow, and not the rest of this package."""

from collections.abc import Callable
import sys
from typing import Any

from absl import app

_HELP = ("help", "helpshort", "helpfull", "helpxml", "?")


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a program as `absl.app.run` does, but for the exit code of `--help`: it is 0.

    absl prints the help and exits with 1, as if asking for it were a mistake.

    Args:
      main: Called with the program's name and its positional arguments; what it returns is the exit
        code, None being 0.
    """
    asked = any(argument.lstrip("-") in _HELP for argument in sys.argv[1:] if argument[:1] == "-")
    try:
        app.run(main)
    except SystemExit:
        if asked:
            sys.exit(0)
        raise
