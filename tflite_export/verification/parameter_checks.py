"""Trained integers = exported integers.

The constants of a file are compared with the student's, tensor by tensor.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import reader
from tflite_export.verification.report import Failure

# From Keras' layout to TFLite's, output channels last and first, by the operator that reads the
# weights.
_OUT_FIRST = {"CONV_2D": (3, 0, 1, 2), "TRANSPOSE_CONV": (2, 0, 1, 3), "FULLY_CONNECTED": (1, 0)}

# Sums that twice as wide codes would bring to 2^30 may force narrower ones. That is half of int32:
# chosen here, with a factor of 2 to spare for what rounding adds (`Kernel._powers`).
_LARGE_SUM = 2**29


def compare(
    expected: deployed_lib.DeployedModel, found: deployed_lib.DeployedModel
) -> tuple[Failure, ...]:
    """What in a file is not as it was exported.

    There is one failure per difference, and tensors come in execution order.

    Compared are shape, type, scale, zero point, axis and contents of every tensor, bit for bit, and
    the operators with their options, inputs and outputs.
    """
    failures = _operator_failures(expected, found)
    for name in _in_order(expected):
        if name in found.tensors:
            pair = (_only(expected.tensors[name]), _only(found.tensors[name]))
            lines = reader.differences(*pair)
            failures += [
                Failure("parameters", name, text + _where(*pair, name, text.split()[0]))
                for text in (_plain(line, name) for line in lines)
            ]
        else:
            failures.append(Failure("parameters", name, "is not in the file"))
    failures += [
        Failure("parameters", n, "is in the file only")
        for n in found.tensors
        if n not in expected.tensors
    ]
    return tuple(failures)


def same_graph(expected: deployed_lib.DeployedModel, found: deployed_lib.DeployedModel) -> bool:
    """Whether both have the same tensors by name, shape and type, and the same operators.

    Their codes then compare.
    """

    def signature(model: deployed_lib.DeployedModel) -> Any:
        tensors = {
            name: (tuple(t.shape), t.dtype, t.data is None) for name, t in model.tensors.items()
        }
        return (
            tensors,
            [(o.kind, o.inputs, o.outputs) for o in model.operators],
            model.inputs,
            model.outputs,
        )

    return signature(expected) == signature(found)


def constants(model: deployed_lib.DeployedModel) -> list[str]:
    """Names of the constant tensors."""
    return [name for name, tensor in model.tensors.items() if tensor.data is not None]


def shared_constants(
    left: deployed_lib.DeployedModel, right: deployed_lib.DeployedModel
) -> set[str]:
    """Names of what is a constant in both: what a comparison of two files compares."""
    return {*constants(left)} & {*constants(right)}


def student_weights(
    student: Any, found: deployed_lib.DeployedModel
) -> tuple[tuple[Failure, ...], tuple[str, ...]]:
    """Compares the student's own quantizer codes with the weights of a file.

    They are equal up to the sign that a batch norm's gamma gives a channel, and to one power of two
    that fills the container. A channel is stored with fewer bits, its codes rounded, only beside a
    bias with which sums fill int32 (`lowering/kernel.py`).

    This does not go through the exporter's fold: it is the second opinion on it.

    Returns:
      Failures, and a note for each weight whose layout this check does not know.
    """
    from tf_fpq import graph, roles
    from tf_fpq.student_layers.quantized_layers import QuantizedLayer

    readers = {name: operator for operator in found.operators for name in operator.inputs}
    failures, notes = [], []
    calls = [call for call in graph.calls(student) if isinstance(call.layer, QuantizedLayer)]
    for call in calls:
        for _, weight, quantizer, variables in call.layer.quantized_weights():
            name = f"{call.name}_kernel"
            kind = readers[name].kind if name in readers else ""
            if kind in (*_OUT_FIRST, "DEPTHWISE_CONV_2D"):
                codes = quantizer.codes(weight, variables).numpy()
                if kind == "TRANSPOSE_CONV":
                    codes = _up_to(codes, roles.inner(call.layer).strides)
                *_, bias = readers[name].inputs
                constants = (found.tensors[n].constant for n in (name, bias))
                failures += _weight_failures(name, kind, codes, *constants)
            else:
                notes.append(f"The codes of {call.name!r} were compared through the exporter only.")
    return tuple(failures), tuple(notes)


def _up_to(codes: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Codes `[height, width, ...]` with zeros behind them up to the strides."""
    missing = np.subtract(strides, codes.shape[:2]).clip(0)
    return np.pad(codes, [*((0, n) for n in missing), (0, 0), (0, 0)])


def _weight_failures(
    name: str, kind: str, codes: np.ndarray, stored: np.ndarray, bias: np.ndarray
) -> list[Failure]:
    trained = _channels(codes, kind, trained=True)
    return _channel_failures(name, trained, _channels(stored, kind, trained=False), bias)


def _channel_failures(
    name: str, trained: np.ndarray, stored: np.ndarray, bias: np.ndarray
) -> list[Failure]:
    """A failure if a file's codes are not the trained ones, up to what the exporter may do.

    A channel may be negated, or all zero where it is a constant. All may be multiplied by one power
    of two, or one by a lower power where its sums fill int32. Nothing else is allowed.
    """
    if trained.shape != stored.shape:
        return [
            Failure(
                "parameters",
                name,
                f"has {stored.shape} codes; the student's kernel has {trained.shape}",
            )
        ]
    stored = stored.astype(np.int16)
    powers = np.arange(-7, 7)  # codes of 2 bits in 8, and of 8 in one
    candidates = np.stack([np.rint(trained * 2.0**power).astype(np.int16) for power in powers])
    matches = (candidates == stored).all(2) | (candidates == -stored).all(2) | ~stored.any(1)
    # The power from 0 on by which most channels match; a lower one may serve a channel of its own.
    best = int(np.where(powers < 0, -1, matches.sum(1)).argmax())
    sums = np.abs(bias.astype(np.int64)) + 255 * np.abs(stored.astype(np.int64)).sum(1)
    narrower = matches[:best].any(0) & (sums >= _LARGE_SUM)
    bad = np.flatnonzero(~(matches[best] | narrower)).tolist()
    if not bad:
        return []
    first, *_ = bad
    wrong = int((candidates[best, first] != stored[first]).sum())
    message = (
        f"codes are not the student's in {len(bad)} channels; first channel {first}, {wrong} codes"
    )
    return [Failure("parameters", name, message)]


def _channels(codes: np.ndarray, kind: str, *, trained: bool) -> np.ndarray:
    """Codes as `[channels, codes of the channel]` in TFLite's order."""
    if kind == "DEPTHWISE_CONV_2D":
        channels = codes.shape[2] * codes.shape[3] if trained else codes.shape[3]
        return codes.reshape(-1, channels).T
    codes = codes.transpose(_OUT_FIRST[kind]) if trained else codes
    return codes.reshape(len(codes), -1)


def _where(
    a: deployed_lib.DeployedModel, b: deployed_lib.DeployedModel, name: str, field: str
) -> str:
    """The first place where scales or contents differ, as text; empty for other fields."""
    if field not in ("data", "scale"):
        return ""
    left, right = (getattr(model.tensors[name], field) for model in (a, b))
    if left is None or right is None or np.shape(left) != np.shape(right):
        return ""
    left, right = np.atleast_1d(left), np.atleast_1d(right)
    different = np.argwhere(left != right).tolist()
    if not different:  # of another type, e.g. float16, but of the same value
        return ""
    place, *_ = different
    at = tuple(place)
    return f"; first at {place}: {left[at]:.9g} expected, {right[at]:.9g} found"


def _operator_failures(
    expected: deployed_lib.DeployedModel, found: deployed_lib.DeployedModel
) -> list[Failure]:
    """Differences of name, borders and operators, each operator's under its output's name."""
    bare = (dataclasses.replace(model, tensors={}, operators=()) for model in (expected, found))
    failures = [Failure("parameters", found.name, line) for line in reader.differences(*bare)]
    if len(expected.operators) != len(found.operators):
        message = f"{len(found.operators)} operators; {len(expected.operators)} were exported"
        failures.append(Failure("parameters", found.name, message))
    for pair in zip(expected.operators, found.operators, strict=False):
        lines = reader.differences(
            *(deployed_lib.DeployedModel({}, (operator,), (), ()) for operator in pair)
        )
        own, _ = pair
        output, *_ = own.outputs
        failures += [Failure("parameters", output, line) for line in lines]
    return failures


def _only(tensor: deployed_lib.Tensor) -> deployed_lib.DeployedModel:
    return deployed_lib.DeployedModel({tensor.name: tensor}, (), (), ())


def _in_order(model: deployed_lib.DeployedModel) -> list[str]:
    """Tensor names in the order in which operators touch them."""
    touched = (
        name for operator in model.operators for name in (*operator.inputs, *operator.outputs)
    )
    return [
        name
        for name in dict.fromkeys([*model.inputs, *touched, *model.tensors])
        if name in model.tensors
    ]


def _plain(line: str, name: str) -> str:
    return line.removeprefix(f"tensor {name!r}: ")


def summary(failures: Sequence[Failure]) -> str:
    """The first failure as one sentence, and how many follow."""
    first, *others = failures
    more = f" (and {len(others)} more)" if others else ""
    return f"{first.check}: {first.tensor}: {first.message}{more}"
