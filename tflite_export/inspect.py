"""Shows what is in .tflite files: tensors, scales, zero points, operators, sizes.

  python -m tflite_export.inspect MODEL.tflite [MORE.tflite ...] [--json]

Needs no TensorFlow. `bits` is the width of the narrowest grid that holds a weight's codes: a W4
model shows 4 in int8 containers. With --json one line per file.

Exit code: 0, or 2 if a file cannot be read.
"""

from absl import app, flags

from tflite_export import command_line
from tflite_export.flatbuffer import file_summary

_JSON = flags.DEFINE_bool("json", False, "Print one JSON line per file.")


def main(arguments: list[str]) -> int:
    """Inspects."""
    if not arguments:
        raise ValueError("Expected arguments: MODEL.tflite. Received: none. See --help.")
    for path in arguments:
        summary = file_summary.inspect_file(path)
        if _JSON.value:
            command_line.print_json(summary.to_dict())
        else:
            print(summary.text())
    return 0


if __name__ == "__main__":
    app.run(command_line.run(main))
