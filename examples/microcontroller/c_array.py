r"""Writes a .tflite file as C++ for TensorFlow Lite for Microcontrollers.

  python -m examples.microcontroller.c_array MODEL.tflite OUTPUT

OUTPUT.cc holds the file as an array in flash. OUTPUT.h declares it, says which codes go in and come
out, and registers the operators that the file has and no others. Needs no TensorFlow.

Exit code: 0 written, 2 the file cannot be read or does not run on TensorFlow Lite Micro.
"""

import os
import pathlib

from tflite_export import command_line, targets
from tflite_export.deployed import Tensor
from tflite_export.flatbuffer import file_summary

# Kinds whose method of MicroMutableOpResolver is not the kind in camel case.
_METHODS = {"PADV2": "AddPadV2"}


def method_of(kind: str) -> str:
    """The method that registers an operator: "DEPTHWISE_CONV_2D" is "AddDepthwiseConv2D"."""
    parts = [part if part[0].isdigit() else part.capitalize() for part in kind.split("_")]
    return _METHODS.get(kind, "Add" + "".join(parts))


def header(summary: file_summary.Summary, guard: str) -> str:
    """The declarations."""
    kinds = sorted({operator.kind for operator in summary.model.operators})
    adds = [f"  TF_LITE_ENSURE_STATUS(resolver.{method_of(kind)}());" for kind in kinds]
    lines = [
        f"// {os.path.basename(summary.path)}: {summary.bytes:,} bytes, {summary.macs:,}"
        " multiply-adds.",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        '#include "tensorflow/lite/c/common.h"',
        "",
        "extern const unsigned char kModel[];",
        f"constexpr int kModelBytes = {summary.bytes};",
        f"constexpr int kModelOperators = {len(kinds)};",
        "// The largest sum of activations alive at once; the arena holds more beside them.",
        f"constexpr int kModelActivationBytes = {summary.arena_bytes};",
        *_border("Input", summary.model.tensors[summary.model.inputs[0]]),
        *_border("Output", summary.model.tensors[summary.model.outputs[0]]),
        "",
        "template <typename Resolver>",
        "TfLiteStatus AddModelOperators(Resolver& resolver) {",
        *adds,
        "  return kTfLiteOk;",
        "}",
        "",
        f"#endif  // {guard}",
    ]
    return "\n".join([*lines, ""])


def _border(name: str, tensor: Tensor) -> list[str]:
    elements = 1
    for size in tensor.shape:
        elements *= size
    return [
        f"// {name}: value = k{name}Scale * (code - k{name}ZeroPoint).",
        f"constexpr int k{name}Elements = {elements};",
        f"constexpr float k{name}Scale = {float(tensor.one_scale):.9g}f;",
        f"constexpr int k{name}ZeroPoint = {tensor.one_zero_point};",
    ]


def source(contents: bytes, include: str) -> str:
    """The definition of the array."""
    rows = [
        "  " + ", ".join(f"0x{byte:02x}" for byte in contents[start : start + 12]) + ","
        for start in range(0, len(contents), 12)
    ]
    lines = [
        f'#include "{include}"',
        "",
        "alignas(16) const unsigned char kModel[] = {",
        *rows,
        "};",
    ]
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    """Writes both files."""
    path, output = command_line.positional(arguments, ["model.tflite", "output"])
    summary = file_summary.inspect_file(path)
    if found := targets.violations(summary.model, targets.find("tflm"), summary.metadata):
        raise ValueError("; ".join(map(str, found)))
    stem = pathlib.Path(output)
    guard = "".join(c if c.isalnum() else "_" for c in stem.name.upper()) + "_H_"
    stem.with_suffix(".h").write_text(header(summary, guard))
    stem.with_suffix(".cc").write_text(source(pathlib.Path(path).read_bytes(), f"{stem.name}.h"))
    print(f"{stem}.h, {stem}.cc: {summary.bytes:,} bytes of model")
    return 0


if __name__ == "__main__":
    command_line.start(main)
