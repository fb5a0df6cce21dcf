"""EfficientNet-Lite0 takes PyTorch's tensors by their names, all of them and no others."""

import numpy as np
import pytest

from experiments.efficientnet_lite0 import network


@pytest.fixture(scope="module")
def model():
    return network.build()


def torch_weights(model):
    """Tensors in PyTorch's layout that hold the model's own weights."""
    found = {}
    for layer in model.layers:
        for name, array in zip(
            network._torch_names(layer.name) if layer.weights else [], layer.get_weights()
        ):
            depthwise = "depthwise_conv" in name
            if array.ndim == 4:
                array = array.transpose(2, 3, 0, 1) if depthwise else array.transpose(3, 2, 0, 1)
            found[name] = array.T if array.ndim == 2 else array
    return found


def test_it_has_the_published_size(model):
    assert model.output_shape == (None, 1000)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trained == 4_652_008


def test_weights_go_where_they_belong(model):
    weights = torch_weights(model)
    assert len(weights) == 5 * 49 + 2  # 49 convolutions with four numbers a channel, and the Dense
    again = network.build(weights)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_missing_and_unknown_tensors_are_named(model):
    weights = torch_weights(model)
    with pytest.raises(ValueError, match="does not: \\['extra'\\]"):
        network.build({**weights, "extra": np.zeros(1)})
    del weights["_blocks.3._bn1.bias"]
    with pytest.raises(ValueError, match="_blocks.3._bn1.bias.*'block3_depthwise_bn'"):
        network.build(weights)
