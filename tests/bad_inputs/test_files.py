"""Files that are no models, no images, no labels, no results: one line that names the file."""

import functools
import json
import pathlib
import zipfile

import h5py
import numpy as np
import pytest

from experiments.results_file import ResultsFile
from tests.bad_inputs.checks import refuses, warns
from tf_fpq.conversion import loading
import tflite_export
from tflite_export import command_line
from tflite_export.flatbuffer import file_summary
from tflite_export.verification import report


def contents(data):
    return lambda path, made: path.write_bytes(data)


def part_of(name, share):
    def make(path, made):
        data = (made.folder / name).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return make


def folder(path, made):
    path.mkdir()


def absent(path, made):
    pass


def archive(**members):
    def make(path, made):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name.replace("__", "."), data)

    return make


def student_with(member, change):
    """A student's file with one member changed, or without it."""

    def make(path, made):
        with zipfile.ZipFile(made.folder / "student.keras") as source:
            members = {name: source.read(name) for name in source.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                if name != member:
                    file.writestr(name, data)
                elif change is not None:
                    file.writestr(name, change(data))

    return make


def hdf5(**attributes):
    def make(path, made):
        with h5py.File(path, "w") as file:
            file.attrs.update(attributes)

    return make


def numpy_file(save, *arrays, **named):
    def make(path, made):
        with path.open("wb") as file:
            save(file, *arrays, **named)

    return make


TFLITE = {
    "empty": (contents(b""), "is not a TFLite file"),
    "text": (contents(b"hello there, no model"), "is not a TFLite file"),
    "archive": (archive(a="b"), "is not a TFLite file"),
    "identifier alone": (contents(b"\x1c\0\0\0TFL3"), "not a whole|truncated|not a TFLite"),
    "zeros behind it": (contents(b"\x1c\0\0\0TFL3" + bytes(99)), "not a whole|truncated|no "),
    "half": (part_of("small.tflite", 0.5), "truncated|not a whole"),
    "all but the end": (part_of("small.tflite", 0.99), "truncated|not a whole"),
    "folder": (folder, "Is a directory|Cannot read|directory"),
    "absent": (absent, "No such file|Cannot read"),
}


@pytest.mark.parametrize(("make", "message"), TFLITE.values(), ids=TFLITE.keys())
@pytest.mark.parametrize(
    "use",
    [
        tflite_export.read,
        file_summary.inspect_file,
        lambda path: tflite_export.compare_files(path, path, verbose=0),
    ],
    ids=["read", "inspect", "compare"],
)
def test_no_tflite_file(made, tmp_path, make, message, use):
    path = tmp_path / "x.tflite"
    make(path, made)
    refuses(functools.partial(use, path), f"(x.tflite.*({message})|({message}).*x.tflite)")


@pytest.mark.parametrize("data", [b"", b"hello there, no model", b"PK\x03\x04" + bytes(99)])
def test_no_metadata_in_what_is_no_tflite_file(tmp_path, data):
    (tmp_path / "x.tflite").write_bytes(data)
    refuses(
        lambda: tflite_export.read_metadata(tmp_path / "x.tflite"), "x.tflite' is not a TFLite file"
    )


KERAS = {
    "empty": (contents(b""), "is no model file"),
    "text": (contents(b"a text"), "is no model file"),
    "archive of something": (archive(readme="x"), "Cannot load|damaged"),
    "half an archive": (part_of("student.keras", 0.5), "is no model file|Cannot load|damaged"),
    "metadata list": (archive(metadata__json="[1]", config__json="{}"), "is a list, not an object"),
    "metadata broken": (archive(metadata__json="{", config__json="{}"), "cannot be read"),
    "no configuration": (student_with("config.json", None), "Cannot load|damaged"),
    "no weights": (student_with("model.weights.h5", None), "Cannot load|damaged"),
    "weights are text": (student_with("model.weights.h5", lambda data: b"text"), "Cannot load"),
    "half of the weights": (
        student_with("model.weights.h5", lambda data: data[: len(data) // 2]),
        "Cannot load",
    ),
    "configuration list": (student_with("config.json", lambda data: b"[1, 2]"), "Cannot load"),
    "configuration broken": (student_with("config.json", lambda data: data[:99]), "Cannot load"),
    "unknown class": (
        student_with("config.json", lambda data: data.replace(b"QuantizeActivation", b"Unheard")),
        "Cannot load",
    ),
    "1 GB of zeros": (archive(metadata__json=bytes(2 * 10**7)), "damaged.*claims 20,000,000"),
    "HDF5 without a model": (hdf5(title="data"), "Cannot load"),
    "HDF5 configuration broken": (hdf5(model_config="{"), "damaged|Cannot load"),
    "HDF5 configuration list": (hdf5(model_config="[1]"), "damaged|Cannot load"),
    "folder": (folder, "is a folder|No such file"),
    "absent": (absent, "No model file|No such file"),
}


@pytest.mark.parametrize(("make", "message"), KERAS.values(), ids=KERAS.keys())
@pytest.mark.parametrize("use", [loading.load_model, command_line.load_keras])
def test_no_keras_file(made, tmp_path, make, message, use):
    path = tmp_path / "x.keras"
    make(path, made)
    refuses(functools.partial(use, str(path)), f"({message}).*x.keras|x.keras.*({message})")


HUGE = b"\x93NUMPY\x01\x00\x76\x00" + (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }".ljust(117)
    + b"\n"
)
IMAGES = {
    "empty": (contents(b""), "is no NumPy file"),
    "text": (contents(b"1, 2, 3"), "is no NumPy file"),
    "JPEG": (contents(b"\xff\xd8\xff\xe0" + bytes(99)), "is no NumPy file"),
    "one number": (numpy_file(np.save, np.float32(1)), "must be an array of images"),
    "objects": (
        numpy_file(np.save, np.array([{}], object), allow_pickle=True),
        "damaged or holds no numbers: it holds Python objects",
    ),
    "half": (contents(b"\x93NUMPY\x01\x00\x76\x00{'des"), "damaged or holds no numbers"),
    "huge claim": (contents(HUGE + bytes(16)), "damaged or holds no numbers"),
    "only labels": (numpy_file(np.savez, labels=np.arange(3)), "has no array 'images'"),
    "no arrays": (numpy_file(np.savez), "has no array 'images'"),
    "damaged archive": (contents(b"PK\x03\x04" + bytes(99)), "damaged or holds no numbers"),
    "absent": (absent, "No such file"),
    "folder": (folder, "Is a directory"),
}


@pytest.mark.parametrize(("make", "message"), IMAGES.values(), ids=IMAGES.keys())
def test_no_images(made, tmp_path, make, message):
    path = tmp_path / "x.npy"
    make(path, made)
    refuses(lambda: command_line.load_images(str(path)), f"x.npy.*{message}|{message}.*x.npy")


def test_labels_that_are_no_text(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00cat")
    refuses(
        lambda: command_line.load_labels(str(tmp_path / "labels.txt")), "labels.txt.* no UTF-8 text"
    )


def test_a_report_of_another_schema():
    refuses(lambda: report.Report.from_dict({"schema": 99}), "has another schema")


@pytest.mark.parametrize("line", ['{"seed": 1, "acc', "[1", "7", "\x00\x00"])
def test_a_line_of_results_that_is_none(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"seed": 0}) + "\n" + line)
    file = ResultsFile(path, lambda row: str(row["seed"]))
    warns(file.rows, "rows.jsonl, line 2 is no whole row")


@pytest.mark.parametrize("target", ["no_such_folder/x.tflite", "a_folder", "a_file/x.tflite"])
def test_a_path_that_cannot_be_written(made, tmp_path, target):
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_file").touch()
    refuses(
        lambda: tflite_export.export(made.small, tmp_path / target, round_biases=False),
        "Cannot write .*" + pathlib.Path(target).name,
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a_file", "a_folder"]
