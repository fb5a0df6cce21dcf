"""Small random models around one operator, and the interpreter in its three kernel sets, for the
kernel tests."""

from collections.abc import Sequence
from typing import Any

from ai_edge_litert import interpreter as litert
import numpy as np
import pytest

from tflite_export import deployed as deployed_lib
from tflite_export.flatbuffer import writer
from tflite_export.kernels import KERNELS
from tflite_export.twin import integer_twin as twin_lib

XNNPACK = litert.OpResolverType.AUTO
BUILTIN = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
REFERENCE = litert.OpResolverType.BUILTIN_REF
KERNEL_SET = {"single": XNNPACK, "double": REFERENCE}
Tensor = deployed_lib.Tensor


def activation(
    name: str, shape: Sequence[int], scale: float = 0.05, zero_point: int = 0, dtype: str = "int8"
) -> Tensor:
    """An activation tensor's record."""
    return Tensor(name, tuple(shape), dtype, np.float32(scale), zero_point)


def constant(
    name: str, data: np.ndarray, scale: np.ndarray | float | None = None, **fields: Any
) -> Tensor:
    """A constant tensor's record."""
    dtype = fields.pop("dtype", str(data.dtype))
    scale = None if scale is None else np.asarray(scale, np.float32)
    return Tensor(name, data.shape, dtype, scale, data=data, **fields)


def one_operator(
    kind: str, inputs: Sequence[Tensor], output: Tensor | Sequence[Tensor], **options: Any
) -> deployed_lib.DeployedModel:
    """A model of a single operator."""
    outputs = [output] if isinstance(output, Tensor) else list(output)
    operator = deployed_lib.Operator(
        kind, tuple(t.name for t in inputs), tuple(t.name for t in outputs), options
    )
    return deployed_lib.DeployedModel(
        tensors={t.name: t for t in [*inputs, *outputs]},
        operators=(operator,),
        inputs=tuple(t.name for t in inputs if t.data is None),
        outputs=tuple(t.name for t in outputs),
    )


def kernel_of(model: deployed_lib.DeployedModel, rounding: str = "single") -> Any:
    """The kernel of the model's one operator."""
    (operator,) = model.operators
    return KERNELS[operator.kind](operator, model.tensors, rounding)


def refusal(model: deployed_lib.DeployedModel, rounding: str = "single") -> str:
    """What is said of the model's one operator, which has no kernel."""
    with pytest.raises(ValueError) as error:
        kernel_of(model, rounding)
    return str(error.value)


def interpret(
    model: deployed_lib.DeployedModel, inputs: dict[str, np.ndarray], kernels: Any
) -> dict[str, np.ndarray]:
    """All activation tensors of the model's file, run by the interpreter with the given kernel
    set."""
    interpreter = litert.Interpreter(
        model_content=writer.to_bytes(model),
        experimental_op_resolver_type=kernels,
        experimental_preserve_all_tensors=True,
    )
    details = {entry["name"]: entry["index"] for entry in interpreter.get_tensor_details()}
    for name, codes in inputs.items():
        interpreter.resize_tensor_input(details[name], codes.shape)
    interpreter.allocate_tensors()
    for name, codes in inputs.items():
        interpreter.set_tensor(details[name], codes)
    interpreter.invoke()
    names = [name for name, tensor in model.tensors.items() if tensor.data is None]
    return {name: interpreter.get_tensor(details[name]) for name in names}


def random_codes(
    rng: np.random.Generator, model: deployed_lib.DeployedModel, batch: int
) -> dict[str, np.ndarray]:
    """Uniform codes for every input of the model (normal floats for a float32 input)."""
    inputs = {}
    for name in model.inputs:
        tensor = model.tensors[name]
        shape = (batch, *tensor.shape[1:])
        if tensor.dtype == "float32":
            inputs[name] = rng.normal(0, 3, shape).astype(np.float32)
        else:
            info = np.iinfo(tensor.dtype)
            inputs[name] = rng.integers(info.min, info.max, shape, endpoint=True).astype(
                tensor.dtype
            )
    return inputs


def mismatches(
    model: deployed_lib.DeployedModel,
    inputs: dict[str, np.ndarray],
    rounding: str,
    kernels: Any = None,
) -> tuple[int, int, int]:
    """Differing codes, all codes, and the largest difference, of the twin against the interpreter
    over the outputs."""
    expected = interpret(model, inputs, KERNEL_SET[rounding] if kernels is None else kernels)
    actual = twin_lib.IntegerTwin(model, rounding).run_codes(inputs)
    differing = total = worst = 0
    for name in model.outputs:
        left, right = actual[name].numpy(), expected[name]
        assert left.shape == right.shape, (left.shape, right.shape)
        gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
        differing, total, worst = (
            differing + int((gap > 0).sum()),
            total + gap.size,
            max(worst, float(gap.max())),
        )
    return differing, total, worst


def assert_exact(
    model: deployed_lib.DeployedModel, inputs: dict[str, np.ndarray], roundings=("single", "double")
) -> None:
    """The twin equals the interpreter on every code, in both roundings."""
    for rounding in roundings:
        differing, total, worst = mismatches(model, inputs, rounding)
        assert differing == 0, f"{rounding}: {differing} of {total} codes differ, by up to {worst}"
        assert total > 0
