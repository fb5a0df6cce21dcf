r"""Measures latency, size and memory of models on the CPU.

  tf-fpq benchmark FLOAT.keras STUDENT.keras [OTHER.tflite ...] \
      [--kernels=xnnpack,builtin] [--threads=2] [--json]

The first model is what the others are compared with.

A float .keras model is converted to a float .tflite; a student is exported with int8 weights, and
with packed INT4 weights too where they fit; a .tflite file is taken as it is (then no TensorFlow is
needed). Each runs in a process of its own.

Exit code: 0, or 2 if a model cannot be loaded or run.
"""

import pathlib
import tempfile

from absl import flags

from tflite_export import command_line
from tflite_export.runtimes import latency

_KERNELS = flags.DEFINE_list("kernels", ["xnnpack"], "Kernel sets: xnnpack, builtin, reference.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the kernels.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 100, "Timed runs.", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 10, "Runs before them.", lower_bound=0)
_TRUST = flags.DEFINE_bool("trust", False, command_line.TRUST)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON line.")


def main(arguments: list[str]) -> int:
    """Measures."""
    if not arguments:
        raise ValueError(
            "Expected arguments: MODEL.keras or MODEL.tflite. Received: none. See --help."
        )
    models: dict[str, str | bytes] = {}
    for path in arguments:
        models |= {path: path} if path.endswith(".tflite") else _from_keras(path)
    measurements = latency.compare(
        models,
        kernels=_KERNELS.value,
        threads=_THREADS.value,
        runs=_RUNS.value,
        warmup=_WARMUP.value,
    )
    if _JSON.value:
        command_line.print_json(
            {"measurements": [measurement.to_dict() for measurement in measurements]}
        )
    else:
        print(latency.text(measurements))
    return 0


def _from_keras(path: str) -> dict[str, bytes]:
    """Contents of the .tflite files of a float model or a student, by label."""
    from tf_fpq.student_layers.quantized_layers import QuantizedLayer

    model = command_line.load_keras(path, trust=_TRUST.value)
    name = pathlib.Path(path).stem
    if not any(isinstance(layer, QuantizedLayer) for layer in model.layers):
        return {f"{name} float32": _convert_float(model)}
    from tflite_export import exported_model

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "model.tflite"
        for weights in ("int8", "int4"):
            try:
                exported_model.export(model, target, weights=weights)
            except ValueError:
                if weights == "int8":
                    raise
                continue  # no weight fits 4 bits
            found[f"{name} {weights}"] = target.read_bytes()
    return found


def _convert_float(model: object) -> bytes:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


if __name__ == "__main__":
    command_line.start(main)
