import io
import warnings
import zipfile

import numpy as np
import pytest

from tests.tflite_export import small_network, small_student
import tflite_export
from tflite_export.flatbuffer import file_summary, metadata, reader, writer
from tflite_export.runtimes import litert

NETWORK = small_network.residual_network()
LABELS = [f"class {index}" for index in range(10)]


def written(network=NETWORK, **arguments):
    made = metadata.make(network, **arguments)
    return metadata.append_files(writer.to_bytes(network, metadata.entries(network, made)), made)


def test_what_is_written_is_read_back():
    data = written(labels=LABELS, normalization=([1.0, 2.0, 3.5], 64))
    assert metadata.read_metadata(data) == metadata.Metadata(
        tuple(LABELS), (1.0, 2.0, 3.5), (64.0, 64.0, 64.0)
    )
    assert metadata.read_metadata(written(normalization=(0, 255))) == metadata.Metadata(
        None, (0.0,), (255.0,)
    )
    assert metadata.read_metadata(written(labels=["Größe", *LABELS[1:]])).labels[0] == "Größe"
    assert metadata.read_metadata(
        written()
    ) == metadata.Metadata() and written() == writer.to_bytes(NETWORK)


def test_the_file_is_a_model_and_an_archive_and_the_network_unchanged():
    data = written(labels=LABELS)
    assert zipfile.ZipFile(io.BytesIO(data)).read("labels.txt").decode().split("\n") == LABELS
    assert zipfile.ZipFile(io.BytesIO(data)).infolist()[0].compress_type == zipfile.ZIP_STORED
    assert reader.differences(reader.from_bytes(data), NETWORK) == []
    image = np.random.default_rng(0).integers(-128, 128, (3, 8, 8, 3)).astype(np.int8)
    plain, labelled = (litert.Interpreter(d).run(image) for d in (writer.to_bytes(NETWORK), data))
    for name, codes in plain.items():
        np.testing.assert_array_equal(labelled[name], codes)


def test_the_same_network_gives_the_same_bytes():
    assert written(labels=LABELS, normalization=(0, 1)) == written(
        labels=LABELS, normalization=(0, 1)
    )


def test_the_flatbuffer_follows_the_schema():
    """Fields by the published schema, walked by hand: root -> subgraph 0 -> input 0 -> process unit
    0 -> options."""
    buffer = metadata.entries(NETWORK, metadata.make(NETWORK, normalization=(127.5, 127.5)))[
        "TFLITE_METADATA"
    ]
    assert buffer[4:8] == b"M001"

    def number(at, kind="<i4"):
        return int(np.frombuffer(buffer, kind, 1, at)[0])

    def follow(at):
        return at + number(at, "<u4")

    def field(table, index):
        vtable = table - number(table)
        assert 4 + 2 * index < number(vtable, "<u2"), "field beyond the table"
        offset = number(vtable + 4 + 2 * index, "<u2")
        assert offset, "field is absent"
        return table + offset

    subgraph = follow(follow(field(follow(0), 3)) + 4)
    tensor = follow(follow(field(subgraph, 2)) + 4)
    assert buffer[field(follow(field(tensor, 3)), 0)] == 2  # ImageProperties
    unit = follow(follow(field(tensor, 4)) + 4)
    assert buffer[field(unit, 0)] == 1  # NormalizationOptions
    for index, value in ((0, 127.5), (1, 127.5)):
        vector = follow(field(follow(field(unit, 1)), index))
        assert number(vector) == 1 and np.frombuffer(buffer, "<f4", 1, vector + 4)[0] == value
    highest = follow(field(follow(field(tensor, 5)), 0))
    assert np.frombuffer(buffer, "<f4", 1, highest + 4)[0] == 1.0  # (255 - 127.5) / 127.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": LABELS[:9]}, ValueError, "one per class, 10. Received: 9 labels"),
        ({"labels": "abcdefghij"}, TypeError, "list of strings"),
        ({"labels": [*LABELS[:9], "two\nlines"]}, ValueError, "one line of text"),
        ({"labels": [*LABELS[:9], " "]}, ValueError, "one line of text"),
        ({"normalization": (0, 0)}, ValueError, "positive number"),
        ({"normalization": ([0, 1], 1)}, ValueError, r"one per channel \(3\)"),
        ({"normalization": (float("nan"), 1)}, ValueError, "mean of the normalization"),
        ({"normalization": (0, 1, 2)}, ValueError, "a pair"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        metadata.make(NETWORK, **arguments)


def test_damaged_metadata_is_a_clear_error(tmp_path):
    made = metadata.make(NETWORK, labels=LABELS)
    without_archive = writer.to_bytes(NETWORK, metadata.entries(NETWORK, made))
    with pytest.raises(ValueError, match="damaged metadata: BadZipFile"):
        metadata.read_metadata(without_archive)
    with pytest.raises(ValueError, match="damaged metadata"):
        metadata.read_metadata(
            writer.to_bytes(NETWORK, {metadata.NAME: b"\x08\0\0\0M001\xff\xff\xff\xff"})
        )
    with pytest.raises(ValueError, match="identifier"):
        metadata.read_metadata(writer.to_bytes(NETWORK, {metadata.NAME: b"12345678"}))


def test_an_export_carries_them(tmp_path):
    path, labels = tmp_path / "x.tflite", ["a", "b", "c", "d", "e"]
    exported = tflite_export.export(
        small_student.student(),
        path,
        input_type="float32",
        labels=labels,
        normalization=(127.5, [60, 70]),
    )
    expected = metadata.Metadata(tuple(labels), (127.5, 127.5), (60.0, 70.0))
    assert exported.metadata == tflite_export.read_metadata(path) == expected
    assert tflite_export.open_exported(small_student.student(), path).metadata == expected
    assert exported.bytes == path.stat().st_size
    summary = file_summary.inspect_file(path)
    assert summary.to_dict()["metadata"] == {
        "labels": tuple(labels),
        "mean": (127.5, 127.5),
        "std": (60.0, 70.0),
    }
    assert (
        "labels: a, b, c, d, e" in summary.text()
        and "(pixel - [127.5, 127.5]) / [60.0, 70.0]" in summary.text()
    )
    images = small_student.images()[:8]
    assert tflite_export.verify(
        small_student.student(), exported, images, kernels=("xnnpack",), verbose=0
    ).passed


def test_a_refused_label_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="one per class, 5"):
        tflite_export.export(small_student.student(), tmp_path / "x.tflite", labels=["a"])
    assert not list(tmp_path.iterdir())


def test_uint8_codes_that_are_not_the_pixels_are_warned_of(tmp_path):
    student = small_student.student()
    grid = tflite_export.export(student, tmp_path / "x.tflite").deployed.tensors["image_quantize"]
    scale = float(np.reshape(grid.scale, ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = (grid.zero_point + 128, 1 / scale)  # pixel = code
        for input_type, normalization in (("uint8", same), ("float32", (0, 255))):
            tflite_export.export(
                student,
                tmp_path / "x.tflite",
                input_type=input_type,
                output_type="uint8",
                normalization=normalization,
            )
    with pytest.warns(UserWarning, match="uint8 codes are not the pixels"):
        tflite_export.export(
            student, tmp_path / "x.tflite", input_type="uint8", normalization=(0, 255)
        )
