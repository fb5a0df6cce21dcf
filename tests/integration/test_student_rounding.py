"""The student's pooling is the phone's: code for code on XNNPACK, at every width."""

import numpy as np
import pytest

from tests.integration.exactness import randomize, student_of
from tests.tflite_export.kernels import kernel_cases
from tf_fpq.keras_compat import keras
from tflite_export.lowering import builder

layers = keras.layers


def network() -> keras.Model:
    """A pooling of the image, whose codes have any zero point, and one behind a ReLU."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.AveragePooling2D(2, name="pool")(image)
    x = layers.ReLU(name="relu")(layers.Conv2D(6, 3, padding="same", name="conv")(x))
    x = layers.AveragePooling2D(2, name="late_pool")(x)
    return keras.Model(image, layers.Conv2D(2, 1, name="head")(x))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_pooling_of_two_by_two_is_xnnpacks_on_every_code(bits):
    keras.utils.set_random_seed(bits)
    student = student_of(randomize(network(), bits), bits, bits)
    builder.round_biases(student)
    images = np.random.default_rng(bits).normal(0.3, 1.5, (64, 8, 8, 3)).astype(np.float32)
    codes = {name: value.numpy() for name, value in builder.student_codes(student)(images).items()}
    pools = ["image_quantize_1", "relu_quantize_1"]
    sources = ["image_quantize", "relu_quantize"]
    deployed = builder.deploy(student)
    # A clipped image is the output of a MAXIMUM: what the file is given lies before it.
    given = {deployed.inputs[0]: codes["image_quantize"].astype(np.int8)}
    file = kernel_cases.interpret(deployed, given, kernel_cases.XNNPACK)
    differing = [int(np.sum(codes[name] != file[name])) for name in (*sources, *pools)]
    assert differing == [0, 0, 0, 0]
    ties = np.mean(np.mod(codes["image_quantize"].reshape(64, 4, 2, 4, 2, 3).sum((2, 4)), 4) == 2)
    assert ties > 0.15
