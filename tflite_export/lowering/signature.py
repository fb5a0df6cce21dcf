"""Names of a file's inputs and outputs, as TensorFlow's converter gives them.

They are those of the Keras model.
"""

from typing import Any

from tf_fpq import graph
from tf_fpq.student_layers.quantized_layers import QuantizeActivation


def keys(student: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs, and of the layers whose outputs the student's outputs are.

    The student's own output layers are the quantizers behind these, `logits_quantize` for `logits`.
    An activation that was split off its layer, `logits_softmax`, counts as that layer.
    """
    producers = {id(output): call for call in graph.calls(student) for output in call.outputs}
    taken: set[str] = set()
    outputs = []
    for tensor in student.outputs:
        outputs.append(graph.unique_name(_layer_name(tensor, producers), taken))
    return tuple(student.input_names), tuple(outputs)


def _layer_name(tensor: Any, producers: dict[int, graph.Call]) -> str:
    """Name of the layer that computes `tensor`, for those who know the float model."""
    call = _behind_quantizers(producers[id(tensor)], producers)
    before = producers.get(id(call.inputs[0])) if call.inputs else None
    if before is not None:
        owner = _behind_quantizers(before, producers).name
        activation = getattr(call.layer, "activation", None)
        if call.name == f"{owner}_{getattr(activation, '__name__', '')}":
            return owner
    return call.name


def _behind_quantizers(call: graph.Call, producers: dict[int, graph.Call]) -> graph.Call:
    """The call itself, or the first one before it that is no quantizer."""
    while isinstance(call.layer, QuantizeActivation) and id(call.inputs[0]) in producers:
        call = producers[id(call.inputs[0])]
    return call
