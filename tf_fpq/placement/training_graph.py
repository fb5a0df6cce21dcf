"""The student as it runs in training.

Its methods have changed it, features are in view, and work that changes nothing is left out.
"""

from collections.abc import Callable, Collection, Sequence
import math
from typing import Any

from tf_fpq import graph, roles
from tf_fpq.graph import MakeCall
from tf_fpq.keras_compat import keras
from tf_fpq.placement.feature_taps import FeatureTap

Rewrite = Callable[[keras.Model, MakeCall], MakeCall]


def training_graph(
    student: keras.Model,
    rewrites: Sequence[Rewrite] = (),
    shown: Collection[str] = (),
    *,
    merge_relus: bool = True,
) -> keras.Model:
    """The student as its methods change it, with features in view. It shares the student's layers.

    Args:
      student: The student.
      rewrites: `rewrite(student, make)` of each method, see `methods.base.Method.rewrite`. Each
        wraps what those before it have made.
      shown: Names of the calls (see `graph.Call`) whose outputs are features.
      merge_relus: Leave out each ReLU that is read only by layers that clip at zero themselves:
        outputs and gradients are the same, bit for bit, and two passes over memory are saved.

    Returns:
      A model with outputs `{"predictions": ..., "features": {name: output}}`.
    """
    make: graph.MakeCall = graph.make_call
    for rewrite in rewrites:
        make = rewrite(student, make)
    features: dict[str, Any] = {}

    def make_shown(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = make(call, args, kwargs)
        if call.name not in shown:
            return value
        features[call.name] = value
        return FeatureTap(call.name)(value)

    inputs = _new_inputs(student)
    predictions = graph.replay(student, inputs, make_shown)
    model = _model(inputs, {"predictions": predictions, "features": features})
    return _without_merged_relus(model) if merge_relus else model


def _without_merged_relus(model: keras.Model) -> keras.Model:
    """`model`, whose calls are all made, without the ReLUs that their readers absorb."""
    readers = graph.readers(model)
    outputs = {id(tensor) for tensor in model.outputs}
    merged = {
        call.name
        for call in graph.calls(model)
        if id(call.outputs[0]) not in outputs
        and _is_relu(call.layer)
        and all(
            getattr(reader.layer, "absorbs_relu", False) for reader in readers[id(call.outputs[0])]
        )
    }
    if not merged:
        return model

    def make(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if call.name in merged else graph.make_call(call, args, kwargs)

    inputs = _new_inputs(model)
    return _model(inputs, graph.replay(model, inputs, make))


def _is_relu(layer: keras.layers.Layer) -> bool:
    relu = isinstance(layer, keras.layers.ReLU | keras.layers.Activation)
    return relu and roles.clamp(layer) == (0.0, math.inf)


def _new_inputs(model: keras.Model) -> list[Any]:
    return [
        keras.Input(t.shape[1:], dtype=t.dtype, name=n)
        for t, n in zip(model.inputs, model.input_names)
    ]


def _model(inputs: list[Any], outputs: Any) -> keras.Model:
    return graph.functional(inputs if len(inputs) > 1 else inputs[0], outputs)
