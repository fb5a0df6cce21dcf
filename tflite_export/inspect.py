"""Shows what is in .tflite files: tensors, scales, zero points, operators, sizes.

  tf-fpq inspect MODEL.tflite [MORE.tflite ...] [--target=vela] [--json]

Needs no TensorFlow. `bits` is the width of the narrowest grid that holds a weight's codes: a W4
model shows 4 in int8 containers. With --json one line per file.

With --target, instead, what of each file does not run there, with the way out.

Exit code: 0, 1 if a file violates the target, 2 if a file cannot be read.
"""

import dataclasses

from absl import flags

from tflite_export import command_line, targets
from tflite_export.flatbuffer import file_summary

_TARGET = flags.DEFINE_enum(
    "target", None, list(targets.TARGETS), "Where the files shall run; see docs/targets.md."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON line per file.")


def main(arguments: list[str]) -> int:
    """Inspects."""
    if not arguments:
        raise ValueError("Expected arguments: MODEL.tflite. Received: none. See --help.")
    violated = False
    for path in arguments:
        summary = file_summary.inspect_file(path)
        if _TARGET.value is not None:
            violated |= _check(summary, targets.find(_TARGET.value))
        elif _JSON.value:
            command_line.print_json(summary.to_dict())
        else:
            print(summary.text())
    return command_line.EXIT_FAILED if violated else 0


def _check(summary: file_summary.Summary, target: targets.Target) -> bool:
    """Prints what a file violates, and returns whether it is anything."""
    found = targets.violations(summary.model, target, summary.metadata)
    if _JSON.value:
        violations = [dataclasses.asdict(violation) for violation in found]
        command_line.print_json(
            {"path": summary.path, "target": target.name, "violations": violations}
        )
    else:
        verdict = f"{len(found)} violations" if found else "nothing to change"
        print(f"{summary.path} on {target.title}: {verdict}")
        print("".join(f"  {violation}\n" for violation in found), end="")
    return bool(found)


if __name__ == "__main__":
    command_line.start(main)
