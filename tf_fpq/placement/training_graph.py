"""The student as it runs in training: with noise put in, features in view, and work left out that
changes nothing.
"""

from collections.abc import Collection
import math
from typing import Any

import numpy as np

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras
from tf_fpq.methods.feature_perturbation import FeaturePerturbation, NoiseInserter
from tf_fpq.placement.quantized_layers import QuantizeActivation
from tf_fpq.quantizers import LsqQuantizer


def training_graph(
    student: keras.Model,
    perturbation: FeaturePerturbation | None = None,
    shown: Collection[str] = (),
    *,
    merge_relus: bool = True,
) -> keras.Model:
    """The student with noise at its convolutions' inputs and features in view; it shares the
    student's layers.

    Args:
      student: The student.
      perturbation: The noise, or None.
      shown: Names of the calls (see `graph.Call`) whose outputs are features.
      merge_relus: Leave out each ReLU whose only reader is a quantizer that clips at zero itself:
        outputs and gradients are the same, bit for bit, and two passes over memory are saved.

    Returns:
      A model with outputs `{"predictions": ..., "features": {name: output}}`.
    """
    readers = graph.readers(student)
    noisy = perturbation is not None and perturbation.probability > 0
    inserter = NoiseInserter(perturbation, readers) if noisy else None
    features: dict[str, Any] = {}

    def make_call(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = graph.call_name(call)
        if merge_relus and name not in shown and _is_merged_relu(call, readers):
            return args[0]
        if inserter and roles.is_convolution(call.layer):
            args = (inserter.perturbed(args[0], name), *args[1:])
        value = call.layer(*args, **kwargs)
        if name in shown:
            features[name] = value
        if inserter:
            inserter.record(call, args[0], value)
        return value

    inputs = [
        keras.Input(t.shape[1:], dtype=t.dtype, name=n)
        for t, n in zip(student.inputs, student.input_names)
    ]
    predictions = graph.replay(student, inputs, make_call)
    return keras.Model(
        inputs if len(inputs) > 1 else inputs[0], {"predictions": predictions, "features": features}
    )


def _is_merged_relu(call: graph.Call, readers: dict[int, list[graph.Call]]) -> bool:
    """Whether `call` is a ReLU that the LSQ quantizer behind it makes superfluous: no code below 0,
    zero point 0.

    The zero point is frozen, and it stays 0 when such a tensor is calibrated again: it has no
    negative values.
    """
    following = readers.get(id(call.outputs[0]), [])
    relu = isinstance(call.layer, keras.layers.ReLU | keras.layers.Activation)
    if not relu or roles.clamp(call.layer) != (0.0, math.inf) or len(following) != 1:
        return False
    reader = following[0].layer
    if not isinstance(reader, QuantizeActivation) or type(reader.quantizer) is not LsqQuantizer:
        return False
    return reader.quantizer.spec.qmin == 0 and not np.any(
        reader.variables_of_quantizer["zero_point"].numpy()
    )
