"""From a float model to an interpreter: student, deployed model, integer twin and file, and where
their codes must be equal."""

from typing import Any
import warnings

import numpy as np

from tests.tflite_export.kernels import kernel_cases
import tf_fpq
from tf_fpq.keras_compat import keras
from tflite_export.lowering import builder
from tflite_export.twin import integer_twin

layers = keras.layers


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives batch norms statistics as after a training, with gammas of both signs, and biases other
    than zero."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            kind, value = variable.name.split("/")[-1].split(":")[0], variable.numpy()
            if kind == "gamma":
                value = rng.uniform(0.5, 1.5, value.shape) * np.where(
                    rng.random(value.shape) < 0.3, -1, 1
                )
            elif kind == "moving_variance":
                value = rng.uniform(0.5, 2, value.shape)
            elif kind in ("beta", "moving_mean", "bias"):
                value = rng.normal(0, 0.3, value.shape)
            values.append(value)
        layer.set_weights(values)
    return model


def images_for(model: keras.Model, count: int = 8, seed: int = 0) -> Any:
    """Normal values for every input of a model."""
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(0, 1, (count, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def student_of(
    model: keras.Model, weight_bits: int = 8, activation_bits: int = 8, first_last: str = ""
) -> keras.Model:
    """A calibrated student; layers that match `first_last` have 8 bits."""
    rules = [tf_fpq.QuantRule(".*", weight_bits=weight_bits, activation_bits=activation_bits)]
    student = tf_fpq.quantize_model(
        model, [tf_fpq.QuantRule(first_last), *rules] if first_last else rules
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensors that are constant here
        tf_fpq.calibrate(student, images_for(model), verbose=0)
    return student


def assert_twin_is_interpreter(
    student: keras.Model, images: Any, roundings: tuple[str, ...] = ("single", "double")
) -> Any:
    """Twin and interpreter agree on every code of every tensor both have, and on all outputs.
    Returns the deployed model."""
    deployed = builder.deploy(student)
    # The output shape of TRANSPOSE_CONV is a constant: such a file runs one image at a time.
    one_by_one = any(operator.kind == "TRANSPOSE_CONV" for operator in deployed.operators)
    for rounding in roundings:
        twin = integer_twin.IntegerTwin(deployed, rounding)
        codes = {name: value.numpy() for name, value in twin.quantize(images).items()}
        codes = {name: value.astype(deployed.tensors[name].dtype) for name, value in codes.items()}
        count = 2 if one_by_one else len(next(iter(codes.values())))
        codes = {name: value[:count] for name, value in codes.items()}
        size = 1 if one_by_one else count
        batches = [
            {name: value[at : at + size] for name, value in codes.items()}
            for at in range(0, count, size)
        ]
        files = [
            kernel_cases.interpret(deployed, batch, kernel_cases.KERNEL_SET[rounding])
            for batch in batches
        ]
        computed = {name: value.numpy() for name, value in twin.run_codes(codes).items()}
        for name in deployed.outputs:
            found = np.concatenate([file[name] for file in files])
            assert found.shape == computed[name].shape, (rounding, name)
            wrong = [
                key
                for key in computed
                if not np.array_equal(computed[key], np.concatenate([f[key] for f in files]))
            ]
            assert np.array_equal(found, computed[name]), (
                f"{rounding}: {name} differs; tensors that differ: {wrong}"
            )
    return deployed


def student_lsb(
    student: keras.Model, images: Any, rounding: str = "single"
) -> dict[str, np.ndarray]:
    """By tensor, how far the student's codes are from the twin's."""
    computed = integer_twin.IntegerTwin(builder.deploy(student), rounding).codes(images)
    return {
        name: np.abs(value.numpy() - computed[name].numpy())
        for name, value in builder.student_codes(student)(images).items()
    }
