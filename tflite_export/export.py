r"""Writes a trained student as a .tflite file.

  tf-fpq export STUDENT.keras OUTPUT.tflite \
      [--weights=int4] [--input_type=float32] [--target=tflite_2_14] \
      [--labels=labels.txt] [--mean=127.5 --std=127.5] [--json]

STUDENT is what `tf_fpq.quantize_model` made and training left, saved with
`student.save("x.keras")`. Its integers become the file's integers; batch norms are folded. Prove it
afterwards with `tf-fpq verify`.

With --target the file is made for it, or refused with what to change, one line each.

Exit code: 0 written, 2 the student cannot be loaded or exported, or the path cannot be written
(nothing is left behind).

This is a program; the function is `tflite_export.export`.
"""

from absl import flags

from tflite_export import command_line, targets

if __name__ not in ("__main__", "__mp_main__"):
    # Imported, it would hide the function `tflite_export.export`.
    raise ImportError(
        "tflite_export.export is a program (python -m tflite_export.export) and a function, not a"
        " module to import."
    )

_TARGET = flags.DEFINE_enum(
    "target", None, list(targets.TARGETS), "Where the file shall run; see docs/targets.md."
)
_INPUT_TYPE = flags.DEFINE_enum(
    "input_type",
    None,
    ["int8", "uint8", "float32"],
    "Type of the file's input; without it the target's, or int8.",
)
_OUTPUT_TYPE = flags.DEFINE_enum(
    "output_type", None, ["int8", "uint8", "float32"], "Type of the file's output, likewise."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    "int8",
    ["int8", "int4"],
    "int8: containers at every bit width, equal on every phone. int4: packed where codes fit, half"
    " the bytes, but convolutions then round differently across processors.",
)
_LABELS = flags.DEFINE_string(
    "labels", None, "Text file with one class name a line, embedded as TFLite metadata."
)
_MEAN = flags.DEFINE_list(
    "mean", None, "Mean of the pixels (0..255), one number or one per channel; with --std."
)
_STD = flags.DEFINE_list(
    "std", None, "Standard deviation, likewise: x = (pixel - mean) / std, as TFLite metadata."
)
_TRUST = flags.DEFINE_bool("trust", False, command_line.TRUST)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON line.")


def main(arguments: list[str]) -> int:
    """Exports."""
    source, path = command_line.positional(arguments, ["student.keras", "output.tflite"])
    labels = None if _LABELS.value is None else command_line.load_labels(_LABELS.value)
    normalization = _normalization()
    student = command_line.load_keras(source, trust=_TRUST.value)
    from tflite_export import exported_model

    exported = exported_model.export(
        student,
        path,
        target=_TARGET.value,
        input_type=_INPUT_TYPE.value,
        output_type=_OUTPUT_TYPE.value,
        weights=_WEIGHTS.value,
        labels=labels,
        normalization=normalization,
    )
    stays = exported_model.unpacked_weights(exported.deployed) if _WEIGHTS.value == "int4" else []
    if _JSON.value:
        command_line.print_json(
            {
                "path": exported.path,
                "bytes": exported.bytes,
                "model": exported.name,
                "weights": exported.weights,
                "input_type": exported.input_type,
                "output_type": exported.output_type,
                "int8_weights": stays,
                "labels": exported.metadata.labels,
                "mean": exported.metadata.mean,
                "std": exported.metadata.std,
            }
        )
        return 0
    print(
        f"{exported.path}: {exported.bytes:,} bytes, {len(exported.file_model.operators)} operators"
    )
    if stays:
        print(f"weights that stay int8: {', '.join(stays)}")
    return 0


def _normalization() -> tuple[list[float], list[float]] | None:
    if (_MEAN.value is None) != (_STD.value is None):
        raise ValueError(
            f"--mean and --std go together. Received: --mean={_MEAN.value}, --std={_STD.value}."
        )
    return (
        None
        if _MEAN.value is None
        else (_numbers("mean", _MEAN.value), _numbers("std", _STD.value))
    )


def _numbers(flag: str, parts: list[str]) -> list[float]:
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise ValueError(
            f"--{flag} must be one number, or one per channel by commas. Received:"
            f" {','.join(parts)}."
        ) from error


if __name__ == "__main__":
    command_line.start(main)
