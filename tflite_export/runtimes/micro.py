"""A `.tflite` file on TensorFlow Lite for Microcontrollers.

The package `tflite-micro` must be installed.

TFLM shares the reference kernels' arithmetic but for FULLY_CONNECTED: there it multiplies by a
fixed-point multiplier with double rounding, where LiteRT's reference kernel rounds once in float64,
so that codes may differ by 1 LSB.
"""

import json
import os

import numpy as np

from tflite_export.errors import InterpreterError
from tflite_export.flatbuffer import reader
from tflite_export.runtimes import litert, other_process

# Ample for networks of a phone; the arena is allocated, not filled.
ARENA_BYTES = 64 * 2**20

# TFLM ends the process on a file it does not like, or an arena that is too small. (It spells
# "intrepreter_config" so.)
_RUN = """
import json, sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
names, arena = json.loads(sys.argv[1]), int(sys.argv[2])
codes, outputs = np.load(sys.argv[3]), sys.argv[4]
config = runtime.InterpreterConfig.kPreserveAllTensors
micro = runtime.Interpreter.from_bytes(
    sys.stdin.buffer.read(), arena_size=arena, intrepreter_config=config
)
found = {name: [] for name in names}
for image in range(len(codes)):
    micro.set_input(codes[image : image + 1], 0)
    micro.invoke()
    for index, name in enumerate(names):
        found[name].append(np.array(micro.get_output(index)))
np.savez(outputs, **{name: np.concatenate(parts) for name, parts in found.items()})
"""


def is_installed() -> bool:
    """Whether `tflite-micro` can be imported."""
    try:
        from tflite_micro.python.tflite_micro import runtime  # noqa: F401
    except ImportError:
        return False
    return True


class MicroInterpreter:
    """A file on TFLM, in a process of its own.

    It is a runtime for `verify(..., runtimes=[MicroInterpreter(path)])`.

    Attributes:
      name: "tflm".
    """

    name = "tflm"

    def __init__(self, model: str | os.PathLike[str] | bytes, *, arena_bytes: int = ARENA_BYTES):
        """Reads a file.

        Args:
          model: Path or contents.
          arena_bytes: Memory for activations.

        Raises:
          InterpreterError: If `tflite-micro` is not installed or the file cannot be read.
          ValueError: If it is no whole `.tflite` file.
        """
        if not is_installed():
            raise InterpreterError(
                "TensorFlow Lite for Microcontrollers is not installed: pip install --pre"
                " tflite-micro."
            )
        self._contents = litert.read_bytes(model)
        self._records = reader.from_bytes(self._contents)
        self._arena_bytes = arena_bytes

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for a batch by tensor name; as `litert.Interpreter.run`.

        Raises:
          InterpreterError: If TFLM refuses the file or crashes on it.
        """
        arguments = [json.dumps(self._records.outputs), str(self._arena_bytes)]

        def run(codes: str, outputs: str) -> None:
            litert.run_isolated(
                _RUN, [*arguments, codes, outputs], self._contents, "the file with TFLM"
            )

        return other_process.exchange(other_process.to_input(batch, self._records), run)
