import dataclasses
import inspect
import pathlib

import numpy as np
import pytest

from tests.tflite_export import small_network
from tflite_export import deployed
from tflite_export.flatbuffer import file_summary, writer
from tflite_export.lowering import io_types
from tflite_export.runtimes import litert
from tflite_export.verification import file_pair, parameter_checks

DATA = pathlib.Path(__file__).parents[1] / "data"
NETWORK = small_network.residual_network()


def written(tmp_path, name, network=NETWORK):
    path = tmp_path / name
    writer.write(network, path)
    return path


def compare(left, right, *args, **arguments):
    return file_pair.compare_files(
        left, right, *args, **{"verbose": 0, "tensor_images": 8, **arguments}
    )


def changed(name, data):
    tensor = dataclasses.replace(NETWORK.tensors[name], data=data)
    return dataclasses.replace(NETWORK, tensors={**NETWORK.tensors, name: tensor})


def test_a_file_equals_itself(tmp_path):
    report = compare(
        written(tmp_path, "a.tflite"),
        written(tmp_path, "b.tflite"),
        kernels=("xnnpack", "reference"),
    )
    assert report.passed and report.images == file_pair.RANDOM_IMAGES
    assert ("left xnnpack", "right xnnpack") in report.agreeing()
    assert ("left reference", "right reference") in report.agreeing()
    # Tensors between are those of the first kernel set.
    assert {(c.left, c.right) for c in report.tensors} == {("left xnnpack", "right xnnpack")}
    assert "bit for bit" in report.notes[0]


def test_random_images_are_all_codes_of_the_inputs_grid():
    tensor = NETWORK.tensors[NETWORK.inputs[0]]
    images = file_pair._random(np.random.default_rng(0), (tensor, tensor))
    assert images.shape == (file_pair.RANDOM_IMAGES, *tensor.shape[1:])
    codes = np.unique(np.rint(images / tensor.one_scale + tensor.one_zero_point))
    np.testing.assert_array_equal(codes, np.arange(-128, 128))


def test_random_images_without_a_grid_are_what_any_network_takes():
    """Numbers from 0 to 1, and as indices or counts the integers 0 and 1."""
    for dtype, least in (("float32", 300), ("int32", 2)):
        tensor = deployed.Tensor("x", (1, 4), dtype)
        values = np.unique(file_pair._random(np.random.default_rng(0), (tensor, tensor)))
        assert values.dtype.kind == np.dtype(dtype).kind
        assert len(values) >= least and 0 <= values.min() and values.max() <= 1


def test_the_first_tensor_that_differs_is_named(tmp_path):
    codes = NETWORK.tensors["project/weights"].data.copy()
    codes[2] = -codes[2]
    report = compare(
        written(tmp_path, "a.tflite"),
        written(tmp_path, "b.tflite", changed("project/weights", codes)),
    )
    assert not report.passed
    constant, output = report.failures
    assert constant.tensor == "project/weights" and "data differs in" in constant.message
    assert output.tensor == "project" and "budget 0" in output.message
    assert report.first_diverging("left", "right") == "project"
    relaxed = compare(
        tmp_path / "a.tflite",
        tmp_path / "b.tflite",
        max_lsb=None,
        min_top1_agreement=0.0,
        allow_other_constants=True,
    )
    assert "project/weights: data differs in" in relaxed.notes[0]
    assert relaxed.passed and relaxed.outputs[0].differing == report.outputs[0].differing > 0


def test_outputs_of_other_types_are_compared_by_value(tmp_path):
    left = written(tmp_path, "a.tflite")
    images = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)).astype(np.float32)
    for output_type in ("uint8", "float32"):
        right = written(
            tmp_path, f"{output_type}.tflite", io_types.with_io(NETWORK, "float32", output_type)
        )
        assert compare(left, right, images).passed
        assert compare(right, left, images).passed


@pytest.mark.parametrize("name", ["stem/bias", "project/bias", "logits/bias"])
def test_a_constant_that_no_image_reaches_is_named(tmp_path, name):
    """A bias moved by one step; on this one image no output code changes."""
    data = NETWORK.tensors[name].data.copy()
    data[0] += 1
    left, right = written(tmp_path, "a.tflite"), written(tmp_path, "b.tflite", changed(name, data))
    image = np.zeros((1, 8, 8, 3), np.float32)
    report = compare(left, right, image)
    assert report.outputs[0].differing == 0
    (failure,) = report.failures
    assert (failure.check, failure.tensor) == ("parameters", name)
    assert f"first at [0]: {data[0] - 1} expected, {data[0]} found" in failure.message
    assert compare(left, right, image, allow_other_constants=True).passed


def test_a_changed_grid_or_option_of_the_same_graph_is_a_failure(tmp_path):
    left = written(tmp_path, "a.tflite")
    softmax = dataclasses.replace(NETWORK.operators[-1], options={"beta": 1.000001})
    beta = dataclasses.replace(NETWORK, operators=(*NETWORK.operators[:-1], softmax))
    report = compare(left, written(tmp_path, "b.tflite", beta))
    assert [f.check for f in report.failures] == ["parameters"] and "beta" in str(report.failures)
    other_name = written(tmp_path, "n.tflite", dataclasses.replace(NETWORK, name="other"))
    assert compare(left, other_name).passed, "the name of a graph is no part of what it computes"


@pytest.mark.parametrize(("count", "more"), [(1, 0), (2, 0), (3, 1)])
def test_some_differences_are_listed_and_the_rest_is_counted(monkeypatch, count, more):
    monkeypatch.setattr(file_pair, "MAX_NOTES", 2)
    names = list(parameter_checks.constants(NETWORK))[:count]
    tensors = {name: changed(name, NETWORK.tensors[name].data + 1).tensors[name] for name in names}
    other = dataclasses.replace(NETWORK, tensors={**NETWORK.tensors, **tensors})
    failures, notes = file_pair._parameters(NETWORK, other, True)
    assert not failures
    assert [note.split(":")[0] for note in notes[: count - more]] == names[: count - more]
    assert notes[count - more :] == (f"{more} more differences of constants and operators.",) * more


def test_only_constants_that_both_files_have_are_counted(tmp_path):
    """The border's operators make another graph, whose constants are still those of the first."""
    left = written(tmp_path, "a.tflite")
    right = written(tmp_path, "b.tflite", io_types.with_io(NETWORK, "float32", "float32"))
    assert compare(left, right).parameters == len(parameter_checks.constants(NETWORK)) == 10


def test_float_files_are_compared_by_value(tmp_path):
    floats = written(tmp_path, "f.tflite", io_types.with_io(NETWORK, "float32", "float32"))
    assert compare(floats, floats).passed
    codes = NETWORK.tensors["project/weights"].data.copy()
    codes[2] = -codes[2]
    network = io_types.with_io(changed("project/weights", codes), "float32", "float32")
    other = written(tmp_path, "g.tflite", network)
    images = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)).astype(np.float32)
    report = compare(floats, other, images, allow_other_constants=True)
    values = [
        litert.Interpreter(path).run(images)["probabilities_float32"] for path in (floats, other)
    ]
    largest = np.abs(values[0].astype(float) - values[1]).max()
    (found,) = report.outputs
    assert found.max_abs == pytest.approx(largest) and largest > 0
    assert found.differing == (values[0] != values[1]).sum() and found.codes == 200
    noise = np.square(values[0].astype(float) - values[1]).sum()
    assert found.sqnr_db == pytest.approx(
        10 * np.log10(np.square(values[1]).sum() / noise), rel=1e-5
    )
    assert "output values differ" in report.failures[0].message
    allowed = {"allow_other_constants": True, "min_top1_agreement": 0.0}
    assert compare(floats, other, images, max_abs=float(largest), **allowed).passed
    assert "max difference" in str(report)


def test_files_of_others_pair(tmp_path):
    """TensorFlow's float and int8 files and ai-edge-quantizer's, of one network."""
    images = np.random.default_rng(2).normal(0, 1, (96, 8, 8, 2)).astype(np.float32)
    left, ptq = DATA / "float.tflite", DATA / "ptq_int8.tflite"
    foreign = DATA / "ai_edge_quantizer_int8.tflite"
    for right in (ptq, foreign):
        report = compare(left, right, images, max_lsb=8, min_top1_agreement=0.9)
        assert report.passed and report.outputs[0].differing, str(report)
        assert report.parameters == 9 and report.outputs[0].max_abs is None
    report = compare(ptq, foreign, images, max_lsb=4, min_top1_agreement=0.9)
    assert any("data differs" in failure.message for failure in report.failures)
    assert compare(DATA / "lstm.tflite", DATA / "lstm.tflite").passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_top1_agreement": float("nan")}, "min_top1_agreement must be between 0 and 1"),
        ({"min_top1_agreement": 1.5}, "min_top1_agreement must be between 0 and 1"),
        ({"kernels": ()}, "kernels must be some of"),
        ({"kernels": ("gpu",)}, "kernels must be some of"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, message):
    path = written(tmp_path, "a.tflite")
    with pytest.raises(ValueError, match=message):
        compare(path, path, **arguments)


def test_labels_give_accuracies(tmp_path):
    path = written(tmp_path, "a.tflite")
    images = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)).astype(np.float32)
    report = compare(path, path, (images, np.zeros(20, int)))
    assert report.accuracy["left"] == report.accuracy["right"]


def test_files_that_do_not_pair_are_refused(tmp_path):
    left = written(tmp_path, "a.tflite")
    message = r"outputs of the files have different shapes. Received: \[\(10,\)\] and \[\(4,\)\]"
    with pytest.raises(ValueError, match=message):
        compare(left, written(tmp_path, "b.tflite", small_network.residual_network(classes=4)))
    (tmp_path / "bad.tflite").write_bytes(b"PK\x03\x04rest of it")
    with pytest.raises(ValueError, match="not a TFLite file"):
        compare(left, tmp_path / "bad.tflite")


def test_inspection_counts_by_hand(tmp_path):
    summary = file_summary.inspect_file(written(tmp_path, "a.tflite"))
    # stem 8*8*8 outputs x 27, depthwise x 9, pointwise x 8, dense 10 outputs x 8
    assert summary.macs == 512 * (27 + 9 + 8) + 80
    # ADD: stem, project and its output of 512 bytes each; the padded 10*10*8 and its 512 source
    # come to less.
    assert summary.arena_bytes == 3 * 512
    assert summary.weight_bits["stem/weights"] == 4
    weights = 8 * 27 + 9 * 8 + 64 + 80
    biases, constants = 4 * (8 + 8 + 8 + 10), 4 * (8 + 2)
    assert summary.constant_bytes == weights + biases + constants
    assert summary.to_dict()["bytes"] == (tmp_path / "a.tflite").stat().st_size
    assert (
        "DEPTHWISE_CONV_2D" in summary.text()
        and "value = 0.00392157 * (code + 128)" in summary.text()
    )


def test_the_defaults_ask_for_equality_on_xnnpack():
    parameters = inspect.signature(file_pair.compare_files).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert defaults == {
        "images": None,
        "kernels": ("xnnpack",),
        "tensor_images": 64,
        "batch_size": 128,
        "max_lsb": 0,
        "max_abs": 0.0,
        "min_top1_agreement": 0.995,
        "allow_other_constants": False,
        "verbose": 1,
    }


def test_a_report_says_what_was_compared(tmp_path, monkeypatch):
    sizes = []
    original = litert.Interpreter.tensors

    def tensors(self, batch):
        sizes.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(litert.Interpreter, "tensors", tensors)
    left, right = written(tmp_path, "a.tflite"), written(tmp_path, "b.tflite")
    report = compare(left, right, tensor_images=20)
    assert (report.model, report.path) == (f"{left} against {right}", str(right))
    assert report.bytes == right.stat().st_size
    assert (report.images, report.tensor_images, report.parameters) == (100, 20, 10)
    assert report.operators[0] == ("CONV_2D", "stem") and len(report.operators) == 9
    assert report.notes == (
        "The files hold the same network, bit for bit.",
        "Random codes as images; 100 of them.",
    )
    assert sizes == [16, 16, 4, 4]
    written_tensors = [name for _, name in report.operators]
    assert [c.tensor for c in report.tensors] == ["image", *written_tensors]
    probed = []
    monkeypatch.setattr(litert, "probe", lambda *arguments: probed.append(arguments))
    images = np.zeros((5, 8, 8, 3), np.float32)
    few = compare(left, right, images, tensor_images=8, batch_size=2)
    assert (few.images, few.tensor_images) == (5, 5) and few.notes == report.notes[:1]
    # A file that crashes the interpreter does so in a process of its own first.
    assert probed == [(path.read_bytes(), ("xnnpack",), str(path)) for path in (left, right)]
    none = compare(left, right, images, tensor_images=0)
    assert (none.tensors, none.tensor_images) == ((), 0)


def test_constants_of_one_file_only_are_noted_behind_those_of_both():
    right = changed("stem/bias", NETWORK.tensors["stem/bias"].data + 1)
    tensors = dict(right.tensors)
    del tensors["logits/bias"]
    extra = dataclasses.replace(NETWORK.tensors["pads"], name="extra")
    right = dataclasses.replace(
        right, tensors={**tensors, "extra": extra, "more": dataclasses.replace(extra, name="more")}
    )
    found, notes = file_pair._parameters(NETWORK, right, False)
    assert found == ()
    assert notes[0].startswith("stem/bias: data differs in 8 of 8 values")
    assert notes[1:] == (
        "logits/bias: is not in the file",
        "extra: is in the file only",
        "more: is in the file only",
        "Not compared: constants that one file has only, 1 of the left one and 2 of the right one.",
    )
