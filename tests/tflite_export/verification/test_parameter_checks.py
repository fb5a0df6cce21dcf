"""The file's codes are the student's own, whatever layout and padding TFLite has for them."""

import dataclasses

import numpy as np
import pytest

import tf_fpq
from tf_fpq.keras_compat import keras
from tflite_export.lowering import builder
from tflite_export.verification import parameter_checks

layers = keras.layers


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
