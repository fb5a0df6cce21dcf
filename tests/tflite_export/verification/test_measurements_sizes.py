"""On how many images what is run, and what the values of a border or a model become."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from tflite_export import deployed as deployed_lib
from tflite_export.verification import measurements

SCORES = deployed_lib.Tensor("scores", (1, 3), "int8", np.float32(0.5), -1)
VALUES = deployed_lib.Tensor("values", (1, 2), "int8", np.float32(0.25), 3)
IMAGES = np.arange(10.0).reshape(5, 2)


def test_codes_inside_the_border_are_int8():
    signed, unsigned = np.int8([-128, 5]), np.uint8([0, 133, 255])
    assert measurements._inner_codes(signed, SCORES) is signed
    assert measurements._inner_codes(unsigned, SCORES).tolist() == [-128, 5, 127]
    assert measurements._inner_codes(np.float32([0.5, 1.0, 99]), VALUES).tolist() == [5, 7, 127]
    floats = np.float64([-0.25])
    assert measurements._inner_codes(floats, VALUES).tolist() == [2]


@pytest.mark.parametrize(
    ("codes", "expected"), [(4096, (128, 64, 16384, 512)), (2**21, (4, 32, 32, 64))]
)
def test_sizes_follow_the_largest_tensor_and_all_activations(codes, expected):
    def tensor(name, size, **more):
        return deployed_lib.Tensor(name, (1, size), "int8", **more)

    tensors = {
        "a": tensor("a", codes),
        "b": tensor("b", 1),
        "w": tensor("w", 2**26, data=np.zeros(1, np.int8)),
    }
    model = deployed_lib.DeployedModel(tensors, (), (), ())
    found = measurements.Sizes.of(model, None, None, None, 7)
    assert found.runtime_images == 7
    del tensors["b"]
    found = measurements.Sizes.of(model, None, None, None, 7)
    batch, tensor_images, reference, moved = expected
    assert found == measurements.Sizes(batch, tensor_images, reference, 7, moved)


def test_a_huge_network_is_run_on_a_few_images_one_by_one():
    tensors = {"a": deployed_lib.Tensor("a", (1, 2**25), "int8")}
    model = deployed_lib.DeployedModel(tensors, (), (), ())
    found = measurements.Sizes.of(model, None, None, None, 0)
    assert found == measurements.Sizes(1, 4, 4, 0, 32)
    assert measurements.Sizes.of(model, 7, 8, 9, 0) == measurements.Sizes(7, 8, 9, 0, 32)
    assert measurements.Sizes(1, 2, 3, 4).moved_images == 512
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.batch_size = 2


def test_a_model_is_called_at_inference_with_batches_of_any_size():
    calls = []

    def model(x, training):
        calls.append((x.shape.as_list() if isinstance(x, tf.Tensor) else len(x), training))
        return {"b": x * 2, "a": x + 1}

    model.inputs = [types.SimpleNamespace(shape=(None, 2))]
    run = measurements._traced_model(model)
    for images in (IMAGES[:3], IMAGES):
        first, second = run((images.astype(np.float32),))
        assert first.tolist() == (images + 1).tolist() and second.tolist() == (images * 2).tolist()
    assert calls == [([None, 2], False)]


def test_a_model_of_several_inputs_gets_a_list():
    run = measurements._traced(
        lambda parts: [parts[0] - parts[1]], [tf.TensorSpec((None,)), tf.TensorSpec((None,))]
    )
    (found,) = run((np.float32([3, 5]), np.float32([1, 1])))
    assert found.numpy().tolist() == [2, 4]


def test_python_conditions_on_tensors_are_compiled_unless_there_are_none(monkeypatch):
    def magnitude(x):
        if tf.reduce_sum(x) < 0:
            x = -x
        return x

    run = measurements._traced(magnitude, [tf.TensorSpec((None,))])
    assert run((np.float32([-3]),)).numpy().tolist() == [3]
    seen = {}
    monkeypatch.setattr(
        measurements, "_traced", lambda function, specs, **more: seen.update(specs=specs, **more)
    )
    x = deployed_lib.Tensor("x", (1, 2), "int8", np.float32(1))
    model = deployed_lib.DeployedModel({"x": x}, (), ("x",), ("x",))
    measurements._traced_twin(types.SimpleNamespace(deployed=model), ["scores"])
    assert seen == {"specs": [tf.TensorSpec((None, 2), tf.int8)], "autograph": False}
