"""The file's codes are the student's own, whatever layout and padding TFLite has for them."""

import dataclasses

import numpy as np
import pytest

from tests.tflite_export import small_student
import tf_fpq
from tf_fpq.keras_compat import keras
from tflite_export import deployed as deployed_lib
from tflite_export.lowering import builder
from tflite_export.verification import parameter_checks
from tflite_export.verification.report_records import Failure

layers = keras.layers


@pytest.mark.parametrize(
    ("kind", "channel"),
    [
        ("CONV_2D", lambda codes, o: codes[..., o]),
        ("TRANSPOSE_CONV", lambda codes, o: codes[:, :, o]),
        ("DEPTHWISE_CONV_2D", lambda codes, o: codes[:, :, o // 5, o % 5]),
        ("FULLY_CONNECTED", lambda codes, o: codes[0, 0, :, o]),
    ],
)
def test_the_codes_of_a_channel_of_the_student_are_in_the_files_order(kind, channel):
    codes = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    given = codes[0, 0] if kind == "FULLY_CONNECTED" else codes
    kind = "".join([*kind])  # as read from a file: equal to the literal, not the same object
    found = parameter_checks._channels(given, kind, trained=True)
    assert len(found) == {"TRANSPOSE_CONV": 4, "DEPTHWISE_CONV_2D": 20}.get(kind, 5)
    for index, values in enumerate(found):
        assert values.tolist() == channel(codes, index).ravel().tolist()


def test_the_codes_of_a_channel_of_a_file_are_in_its_order():
    depthwise = np.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    found = parameter_checks._channels(depthwise, "DEPTHWISE_CONV_2D", trained=False)
    assert found.tolist() == [depthwise[..., channel].ravel().tolist() for channel in range(4)]
    weights = np.arange(2 * 3 * 4).reshape(2, 1, 3, 4)
    for kind in ("CONV_2D", "TRANSPOSE_CONV"):
        found = parameter_checks._channels(weights, kind, trained=False)
        assert found.tolist() == weights.reshape(2, 12).tolist()


@pytest.mark.parametrize(
    ("strides", "size"), [((2, 2), (2, 3)), ((3, 4), (3, 4)), ((1, 1), (2, 3)), ((3, 1), (3, 3))]
)
def test_a_kernel_has_zeros_behind_it_up_to_the_strides(strides, size):
    codes = np.arange(1, 1 + 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    found = parameter_checks._up_to(codes, strides)
    assert found.shape == (*size, 4, 5) and np.count_nonzero(found) == codes.size
    np.testing.assert_array_equal(found[:2, :3], codes)


def channels_of(trained, stored, bias=0):
    """What is said of a file's codes `[channels, codes]`; the bias is that of every channel."""
    trained, stored = np.float32(trained), np.int8(stored)
    failures = parameter_checks._channel_failures(
        "w", trained, stored, np.full(len(stored), bias, np.int32)
    )
    assert all((f.check, f.tensor) == ("parameters", "w") for f in failures)
    return [f.message for f in failures]


@pytest.mark.parametrize("power", range(7))
def test_codes_may_fill_the_container_be_negated_and_be_all_zero(power):
    trained = np.array([[-2, 1, 0], [1, -1, 1], [1, 1, -1]])
    signs = np.array([[1], [-1], [0]])
    assert channels_of(trained, trained * 2**power * signs) == []


def test_codes_of_2_bits_fill_a_byte_by_64_at_most():
    assert channels_of([[-1, -1]], [[-128, -128]]) == [
        "codes are not the student's in 1 channels; first channel 0, 2 codes"
    ]


def test_wrong_codes_are_counted_in_the_first_bad_channel():
    trained = np.array([[1, 2, 3], [4, 5, 6], [-1, 3, -3], [1, 1, 0], [7, 7, 7]])
    stored = 2 * trained
    assert channels_of(trained, stored) == []
    stored[1] = [8, 11, 13]
    stored[2] = [-3, 0, 0]
    stored[4] = [1, 1, 1]
    assert channels_of(trained, stored) == [
        "codes are not the student's in 3 channels; first channel 1, 2 codes"
    ]


@pytest.mark.parametrize(
    "wrong", [[-1, -2, 0], [1, 2, 0], [1, -2, 0], [3, 6, 9], [-1, -1, -1], [1, 1, 1], [0, 0, 3]]
)
def test_other_codes_are_wrong_whatever_their_signs(wrong):
    assert channels_of([[1, 2, 3]], [wrong])


def test_codes_are_held_against_the_power_by_which_most_channels_match():
    assert channels_of([[1, 2, 3]], [[2, 4, 6]]) == []
    text = "codes are not the student's in {} channels; first channel {}, {} codes"
    # Of none: against the codes as they are.
    assert channels_of([[1, 2, 3]], [[1, 2, 0]]) == [text.format(1, 0, 1)]
    # Halving all is no power that fills anything.
    assert channels_of([[2, 4], [6, 8]], [[1, 2], [3, 4]]) == [text.format(2, 0, 2)]
    assert channels_of([[1, 2], [3, 4], [5, 6]], [[1, 2], [6, 8], [10, 12]]) == [
        text.format(1, 0, 2)
    ]
    assert channels_of([[1, 2], [3, 4]], [[1, 2], [6, 8]]) == [text.format(1, 1, 2)]


def test_codes_of_other_numbers_are_told_by_their_shapes():
    assert channels_of([[1, 2, 3]], [[1, 2]]) == [
        "has (1, 2) codes; the student's kernel has (1, 3)"
    ]
    assert channels_of([[1, 2]], [[1, 2], [1, 2]]) == [
        "has (2, 2) codes; the student's kernel has (1, 2)"
    ]


@pytest.mark.parametrize(
    ("trained", "narrow", "total"),
    [([127, -100], [1, -1], 2), ([127, -100], [32, -25], 57), ([127, 5], [-64, -2], 66)],
)
def test_a_channel_has_narrower_codes_only_where_its_sums_fill_int32(trained, narrow, total):
    """Half of int32, or a quarter of it before the codes were halved."""
    pair = [[3, 5], [7, 9], trained]
    for sign in (1, -1):
        bias = sign * (2**29 - 255 * total)
        full = [[3, 5], [7, 9], narrow]
        (said,) = channels_of(pair, full, bias - sign)
        assert said == "codes are not the student's in 1 channels; first channel 2, 2 codes"
        assert channels_of(pair, full, bias) == []


def test_a_wider_channel_of_its_own_is_wrong_whatever_its_sums():
    assert channels_of([[3, 5], [7, 9], [5, 6]], [[3, 5], [7, 9], [10, 12]], 2**30)


GRID = deployed_lib.Tensor("y", (1, 4), "int8", np.float32(0.5), 3)


def model(**changes):
    """x -> TANH -> y, and a constant `w` that a second operator adds."""
    tensors = {
        "x": dataclasses.replace(GRID, name="x"),
        "y": GRID,
        "w": deployed_lib.Tensor(
            "w", (2, 2), "int8", np.float32([0.5, 0.25]), 0, 0, np.int8([[1, 2], [3, 4]])
        ),
        "z": dataclasses.replace(GRID, name="z"),
    }
    operators = (
        deployed_lib.Operator("TANH", ("x",), ("y",)),
        deployed_lib.Operator("ADD", ("y", "w"), ("z",), {"activation": "NONE"}),
    )
    same = deployed_lib.DeployedModel(tensors, operators, ("x",), ("z",), "net")
    return dataclasses.replace(same, **changes)


def with_tensor(name, **changes):
    tensors = model().tensors
    return model(tensors={**tensors, name: dataclasses.replace(tensors[name], **changes)})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (model(), []),
        (model(name="other"), [("other", "name: net != other")]),
        (with_tensor("y", zero_point=4), [("y", "zero_point 3 != 4")]),
        (
            with_tensor("y", scale=np.float32(0.75)),
            [("y", "scale differs in 1 of 1 values; first at [0]: 0.5 expected, 0.75 found")],
        ),
        (
            with_tensor("w", data=np.int8([[1, 2], [5, 7]])),
            [("w", "data differs in 2 of 4 values; first at [1, 0]: 3 expected, 5 found")],
        ),
        (
            with_tensor("w", scale=np.float32([0.5, 0.125])),
            [("w", "scale differs in 1 of 2 values; first at [1]: 0.25 expected, 0.125 found")],
        ),
        (with_tensor("w", data=None), [("w", "data is in one model only")]),
        (with_tensor("w", scale=np.float64([0.5, 0.25])), [("w", "scale differs")]),
        (with_tensor("w", data=np.int8([[1, 2]])), [("w", "data differs")]),
        (
            model(tensors={"y": GRID, "q": GRID}),
            [(name, "is not in the file") for name in ("x", "w", "z")]
            + [("q", "is in the file only")],
        ),
        (model(operators=model().operators[:1]), [("net", "1 operators; 2 were exported")]),
        (
            model(operators=(*model().operators, *model().operators[:1])),
            [("net", "3 operators; 2 were exported")],
        ),
    ],
)
def test_every_difference_is_told_with_its_tensor_in_execution_order(found, expected):
    failures = parameter_checks.compare(model(), found)
    assert all(f.check == "parameters" for f in failures)
    assert [f.tensor for f in failures] == [tensor for tensor, _ in expected]
    for failure, (_, message) in zip(failures, expected, strict=True):
        assert failure.message.startswith(message)
        assert ("first at" in failure.message) == ("first at" in message)


def test_operators_are_compared_in_pairs_under_the_output_of_the_expected_one():
    tanh, add = model().operators
    other = model(operators=(tanh, dataclasses.replace(add, kind="SUB", outputs=("x",))))
    (failure,) = parameter_checks.compare(model(), other)
    assert failure.tensor == "z" and failure.message.startswith("operator 0: ")
    (failure,) = parameter_checks.compare(other, model())
    assert failure.tensor == "x"


def test_tensors_come_in_the_order_in_which_operators_touch_them():
    tensors = {name: GRID for name in ("unused", "z", "w", "y", "x")}
    assert parameter_checks._in_order(model(tensors=tensors)) == ["x", "y", "w", "z", "unused"]
    assert parameter_checks._in_order(model(tensors={"z": GRID})) == ["z"]


@pytest.mark.parametrize(
    "other",
    [
        with_tensor("y", shape=(1, 5)),
        with_tensor("y", dtype="uint8"),
        with_tensor("w", data=None),
        model(tensors={**model().tensors, "q": GRID}),
        model(inputs=("w",)),
        model(outputs=("y",)),
        model(operators=model().operators[:1]),
        model(operators=(model().operators[0], deployed_lib.Operator("ADD", ("y", "x"), ("z",)))),
        model(operators=(model().operators[0], deployed_lib.Operator("SUB", ("y", "w"), ("z",)))),
    ],
)
def test_another_graph_has_other_tensors_operators_or_borders(other):
    assert not parameter_checks.same_graph(model(), other)
    assert not parameter_checks.same_graph(other, model())


def test_the_same_graph_may_have_other_numbers():
    other = with_tensor("w", data=np.int8([[0, 0], [0, 0]]), scale=np.float32([1, 2]))
    assert parameter_checks.same_graph(model(), model(name="other"))
    assert parameter_checks.same_graph(model(), other)


def test_constants_are_the_tensors_with_contents():
    assert parameter_checks.constants(model()) == ["w"]
    more = with_tensor("y", data=np.int8([[1, 2, 3, 4]]))
    assert parameter_checks.constants(more) == ["y", "w"]
    assert parameter_checks.shared_constants(model(), more) == {"w"}
    assert parameter_checks.shared_constants(more, with_tensor("w", data=None)) == set()


def test_a_summary_is_the_first_failure_and_how_many_follow():
    failures = [Failure("twin", "a", "is wrong"), Failure("student", "b", "is too")]
    assert parameter_checks.summary(failures[:1]) == "twin: a: is wrong"
    assert parameter_checks.summary([*failures, *failures]) == "twin: a: is wrong (and 3 more)"


@pytest.mark.parametrize("size", [(3, 1), (1, 3), (2, 2)])
def test_a_transposed_kernel_below_its_strides_has_zeros_up_to_them(size):
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3))
    network = keras.Model(image, layers.Conv2DTranspose(5, size, 2, name="up")(image))
    student = tf_fpq.quantize_model(network, [tf_fpq.QuantRule(".*", weight_bits=4)])
    tf_fpq.calibrate(student, np.random.default_rng(0).normal(size=(8, 4, 4, 3)), verbose=0)
    deployed = builder.deploy(student)
    assert parameter_checks.student_weights(student, deployed) == ((), ())
    kernel = deployed.tensors["up_kernel"]
    codes = kernel.constant.copy()
    codes[2, 0, 0, 1] += 1
    other = {**deployed.tensors, "up_kernel": dataclasses.replace(kernel, data=codes)}
    (failure,), _ = parameter_checks.student_weights(
        student, dataclasses.replace(deployed, tensors=other)
    )
    assert failure.message.endswith("in 1 channels; first channel 2, 1 codes")


def test_weights_of_an_operator_that_this_check_does_not_know_are_noted():
    student = small_student.student()
    deployed = builder.deploy(student)
    first, *others = [o for o in deployed.operators if "stem_kernel" in o.inputs]
    assert not others
    unknown = tuple(
        dataclasses.replace(o, kind="BATCH_MATMUL") if o is first else o for o in deployed.operators
    )
    codes = deployed.tensors["depthwise_kernel"].constant
    tensors = {
        **deployed.tensors,
        "depthwise_kernel": dataclasses.replace(
            deployed.tensors["depthwise_kernel"], data=codes[..., ::-1]
        ),
        "logits_kernel": dataclasses.replace(
            deployed.tensors["logits_kernel"],
            data=deployed.tensors["logits_kernel"].constant[:, 1:],
        ),
    }
    failures, notes = parameter_checks.student_weights(
        student, dataclasses.replace(deployed, operators=unknown, tensors=tensors)
    )
    assert notes == ("The codes of 'stem' were compared through the exporter only.",)
    assert [f.tensor for f in failures] == ["depthwise_kernel", "logits_kernel"]
    assert failures[1].message == "has (5, 5) codes; the student's kernel has (5, 6)"
