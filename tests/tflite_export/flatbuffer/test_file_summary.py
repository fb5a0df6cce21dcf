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
