r"""Our files in the runtimes of others: does it load, and does it compute the same codes?

A trained W8A8 network for 16x16 RGB images is exported twice for each client, with one scale for
its Dense layer and with one per output; what a target refuses is written with the current runtime's
profile all the same, to see what the client says. Each client runs in an environment of its own,
made in --envs at the first run with the versions of experiments/evidence/client_list.py. Codes are
compared with LiteRT's here, on each of its kernel sets, over 360 images.

The Task Library needs the system's libusb-1.0; tflite-runtime and tflite-support need Python 3.11.

Examples:

  All clients (ten minutes, most of it downloads), and the table.
    python -m experiments.evidence.clients --envs=/tmp/clients \
        --json=experiments/results/clients.jsonl --markdown=docs/targets.md

  Two of them.
    python -m experiments.evidence.clients --envs=/tmp/clients --clients=tflite_runtime,task_library

Exit code: 0, or 1 if a client refuses a file that was made for it, or computes other codes.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
import warnings

from absl import app, flags
import numpy as np

from experiments import records
from experiments.evidence import client_list, clients_network
from tf_fpq import programs
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export.runtimes import litert

FLAGS = flags.FLAGS
SECTION = ("<!-- table: made by experiments.evidence.clients -->", "<!-- end of table -->")
DENSE = ("one scale", "per channel")
TIMEOUT_SECONDS = 600

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs the clients that the flags name."""
    if len(argv) > 1 or not FLAGS.envs:
        raise app.UsageError("Flags only, and --envs=FOLDER among them.")
    chosen = [client_list.CLIENTS[name] for name in FLAGS.clients]
    students = {dense: clients_network.student(dense == DENSE[1]) for dense in DENSE}
    rows = []
    for client in chosen:
        python = environment(client, pathlib.Path(FLAGS.envs))
        for dense, student in students.items():
            rows.append(measure(client, python, student, dense))
            print(summary(rows[-1]), flush=True)
    if FLAGS.json:
        rows = merged(pathlib.Path(FLAGS.json), rows)
    if FLAGS.markdown:
        records.write_section(pathlib.Path(FLAGS.markdown), SECTION, table(rows))
    return int(any(failed(row) for row in rows))


def environment(client: client_list.Client, folder: pathlib.Path) -> str:
    """The Python of the client's environment, which is made if it is not there.

    Raises:
      RuntimeError: If pip cannot install it.
    """
    place = folder / client.name
    python, done = place / "bin" / "python", place / "requirements.txt"
    wanted = "\n".join(client.requirements)
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    pip = subprocess.run(
        [*command, *client.requirements], capture_output=True, text=True, check=False
    )
    if pip.returncode:
        raise RuntimeError(f"pip cannot install {client.requirements}: {pip.stderr.strip()}")
    done.write_text(wanted)
    return str(python)


def measure(client: client_list.Client, python: str, student: keras.Model, dense: str) -> Row:
    """One client on one file."""
    images, _ = clients_network.pixels()
    images = images[-clients_network.TEST_IMAGES :]
    row: Row = {"client": client.name, "package": client.package, "dense": dense}
    with tempfile.TemporaryDirectory() as folder:
        exported, row["target"] = export(student, client, os.path.join(folder, "model.tflite"))
        interpreter = litert.Interpreter(exported.path)
        values = clients_network.preprocessed(images)
        source = images if client.scores else interpreter.to_input(values)
        found = run(client, python, exported.path, source, folder)
        row.update(loads=found["error"] is None, **{k: found[k] for k in ("error", "note")})
        if found["output"] is not None:
            row.update(differences(client, exported, found["output"], values))
    return {**row, "commit": records.commit()}


def export(
    student: keras.Model, client: client_list.Client, path: str
) -> tuple[tflite_export.ExportedModel, str]:
    """The file for the client's target and the target's name; for "litert" where it is refused."""
    texts = {}
    if client.scores:
        texts = {
            "labels": clients_network.LABELS,
            "normalization": clients_network.NORMALIZATION,
            "input_type": "float32",
            "output_type": "uint8",
        }
    try:
        return tflite_export.export(student, path, target=client.target, **texts), client.target
    except ValueError:
        return tflite_export.export(student, path, target="litert", **texts), "litert"


def run(
    client: client_list.Client, python: str, model: str, source: np.ndarray, folder: str
) -> dict[str, Any]:
    """What the client's script saves and prints, or its last line where it fails."""
    paths = [os.path.join(folder, name) for name in ("source.npy", "result.npy")]
    np.save(paths[0], source)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", client.script, model, *paths],
        capture_output=True,
        text=True,
        env=environ,
        cwd=folder,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    error = (lines or [f"exit code {done.returncode}"])[-1] if done.returncode else None
    output = np.load(paths[1]) if os.path.exists(paths[1]) else None
    return {"output": output, "error": error, "note": done.stdout.strip()}


def differences(
    client: client_list.Client,
    exported: tflite_export.ExportedModel,
    output: np.ndarray,
    values: np.ndarray,
) -> Row:
    """How the client's codes differ from LiteRT's, by kernel set."""
    (name,) = exported.file_model.outputs
    grid = exported.file_model.tensors[name]
    codes = output.astype(np.int64)
    if client.scores:
        codes = np.rint(output / np.float64(grid.scale)).astype(np.int64) + grid.zero_point
    row: Row = {"images": len(codes), "codes": int(codes.size)}
    for kernels in litert.KERNEL_SETS:
        expected = litert.Interpreter(exported.path, kernels).run(values)[name].astype(np.int64)
        row[f"differing_{kernels}"] = int((codes != expected).sum())
        row[f"max_lsb_{kernels}"] = int(np.abs(codes - expected).max())
    return row


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a file that was made for its client does not run there, or computes otherwise."""
    client = client_list.CLIENTS[row["client"]]
    meant = row["target"] == client.target
    wrong = row.get(f"differing_{client.kernels}", 0) > client.allowed * row.get("codes", 0)
    return meant and (not row["loads"] or wrong)


def merged(path: pathlib.Path, rows: Sequence[Row]) -> list[Row]:
    """Writes the rows into a file in place of older ones of the same client and file, and returns
    all of them in the order of the clients.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    found = {(row["client"], row["dense"]): row for row in [*map(json.loads, lines), *rows]}
    order = [(client, dense) for client in client_list.CLIENTS for dense in DENSE]
    kept = [found[key] for key in order if key in found]
    records.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def summary(row: Mapping[str, Any]) -> str:
    """A row in one line."""
    return f"{row['package']}, Dense {row['dense']}: {_loads(row)}; {_codes(row)}; {row['note']}"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| client | target | Dense layer | loads | codes that differ | it says |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        client = client_list.CLIENTS[row["client"]]
        cells = (
            f"{client.title} ({row['package']})",
            f"`{client.target}`",
            row["dense"],
            _loads(row),
            _codes(row),
            _plain(row["error"] or row["note"] or "-"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in rows))
    return "\n".join([*lines, "", f"Commit {commits}."])


def _plain(text: str) -> str:
    """What a client said, as a cell: bars would end it, and two brackets in a row are a link."""
    return text.replace("|", "/").replace("] [", "], [")


def _loads(row: Mapping[str, Any]) -> str:
    refused = "" if row["target"] == client_list.CLIENTS[row["client"]].target else ", as foretold"
    return "yes" if row["loads"] else f"no{refused}"


def _codes(row: Mapping[str, Any]) -> str:
    if "codes" not in row:
        return "-"
    kernels = client_list.CLIENTS[row["client"]].kernels
    differing, most = row[f"differing_{kernels}"], row[f"max_lsb_{kernels}"]
    text = f"{differing} of {row['codes']:,} ({kernels})"
    return text + (f", at most {most} LSB" if differing else "")


def _define_flags() -> None:
    flags.DEFINE_string("envs", None, "Folder of the clients' environments; kept for the next run.")
    flags.DEFINE_list("clients", ",".join(client_list.CLIENTS), "Clients to run.")
    flags.DEFINE_string("json", None, "File of the rows; those of the same clients are replaced.")
    flags.DEFINE_string("markdown", None, "File whose table is written anew.")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _define_flags()
    programs.run(main)
