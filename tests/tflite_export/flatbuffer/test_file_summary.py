import dataclasses

import pytest

from tests.tflite_export import small_network
from tflite_export.flatbuffer import file_summary


def test_costs_of_operators_are_counted_by_hand():
    costs = {c.tensor: c for c in file_summary.operator_costs(small_network.residual_network())}
    weighted = {name: cost for name, cost in costs.items() if cost.weight_bits is not None}
    assert {name: (c.weight_bits, c.weight_bytes, c.macs) for name, c in weighted.items()} == {
        "stem": (4, 8 * 3 * 3 * 3, 8 * 8 * 8 * 27),
        "depthwise": (4, 3 * 3 * 8, 8 * 8 * 8 * 9),
        "project": (4, 8 * 8, 8 * 8 * 8 * 8),
        "logits": (4, 10 * 8, 10 * 8),
    }
    free = [cost for cost in costs.values() if cost.weight_bits is None]
    assert len(free) == 5 and all(cost.macs == cost.weight_bytes == 0 for cost in free)


@pytest.mark.parametrize("damage", ["an unknown rank", "no weights"])
def test_weights_that_the_graph_does_not_tell_are_no_error(damage):
    """A scalar stands for a rank that is unknown until the network runs."""
    network = small_network.residual_network()
    *others, logits = (o for o in network.operators if o.kind == "FULLY_CONNECTED")
    weights = network.tensors[logits.inputs[1]]
    if damage == "no weights":
        bare = dataclasses.replace(logits, inputs=logits.inputs[:1])
        assert file_summary._macs(bare, network.tensors) == 0
    else:
        scalar = dataclasses.replace(weights, shape=(), data=None)
        tensors = {**network.tensors, weights.name: scalar}
        assert file_summary._macs(logits, tensors) == 10
    assert not others and file_summary._macs(logits, network.tensors) == 10 * 8
