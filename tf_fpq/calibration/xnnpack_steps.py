"""Step sizes that one integer operator can combine.

XNNPACK refuses operators whose scales are too far apart: a sum of a tensor in steps of 0.3 and one
in steps of 1e-8, say, which a network has where a branch is next to nothing (ConvNeXt's layer scale
starts at 1e-6). Such a branch is below one step of the sum whatever its own step is, so a larger
step loses nothing.
"""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.conversion.normalization import ChannelMean
from tf_fpq.keras_compat import keras
from tf_fpq.roles import Role
from tf_fpq.student_layers.quantized_layers import QuantizeActivation

# XNNPACK's limits, lowest ratio taken and lowest no longer taken: of step / output step for each
# operand of a sum, and of step * step / output step for a product. A kernel's products have the
# upper one. The exporter checks the same (`tflite_export/kernels/xnnpack_limits.py`).
SUM_LIMITS, PRODUCT_LIMITS = (2.0**-10, 2.0**8), (2.0**-16, 2.0**8)
# What is left of both ends for training, which moves steps. Chosen here: a training that moves the
# ratio of two steps by more than a factor of 2 is told so by the exporter.
_ROOM = 2.0
LOWEST_OF_SUM, LOWEST_OF_PRODUCT = SUM_LIMITS[0] * _ROOM, PRODUCT_LIMITS[0] * _ROOM
HIGHEST = SUM_LIMITS[1] / _ROOM
# A round raises the operators in the order of the graph, so a raised output reaches all that read
# it in the same round. A raised operand may push the operator that made it out of its limits, which
# only the next round sees. Chosen here: that three times, and a round that finds nothing.
_ROUNDS = 4
# Steps are set this much above a limit, so that one that is computed in float64 does not miss it in
# float32. Chosen here: any factor above a few roundings of 2^-24 would do.
_ABOVE_LIMIT = 1.001


@dataclasses.dataclass(frozen=True)
class _Operator:
    """An operator without trained weights: its grids, and whether it multiplies."""

    layer: keras.layers.Layer
    sources: tuple[QuantizeActivation, ...]
    output: QuantizeActivation


def raise_small_steps(student: keras.Model) -> list[str]:
    """Raises step sizes that are too small beside those of the same operator.

    The zero points stay. A worked number: a branch in steps of 1e-8 is added to one in steps of
    0.3, with a sum in steps of 0.3. XNNPACK takes operands from 2^-10 of the sum's step on, and
    `_ROOM` doubles that, so the branch gets steps of 0.3 * 2^-9 * 1.001 = 5.9e-4.

    Args:
      student: A calibrated student. Kernels with trained weights are left alone: the exporter names
        those that do not fit.

    Returns:
      Names of the activation quantizers whose step was raised.
    """
    operators = _operators(student)
    raised: dict[str, None] = {}
    grids = {grid for operator in operators for grid in (*operator.sources, operator.output)}
    before = [(variable, variable.numpy()) for grid in grids for variable in grid.variables]
    with contextlib.suppress(OverflowError):
        for _ in range(_ROUNDS):
            changed = [quantizer.name for operator in operators for quantizer in _fit(operator)]
            raised.update(dict.fromkeys(changed))
            if not changed:
                return list(raised)
    # Grids that raise each other in a circle: the exporter names the operator that does not fit.
    for variable, value in before:
        variable.assign(value)
    return []


def _operators(student: keras.Model) -> list[_Operator]:
    """The operators that combine grids as they are: sums, products and means over channels."""
    grids: dict[int, QuantizeActivation] = {}
    pending: dict[int, tuple[keras.layers.Layer, tuple[QuantizeActivation, ...]]] = {}
    found = []
    for call in graph.calls(student):
        first, output = id(call.inputs[0]), id(call.outputs[0])
        kind = roles.role(roles.inner(call.layer))
        if isinstance(call.layer, QuantizeActivation) and call.layer.quantizer.has_grid:
            grids[output] = call.layer
            if first in pending:
                found.append(_Operator(*pending[first], call.layer))
        elif kind is Role.ARITHMETIC or type(call.layer) is ChannelMean:
            if all(id(tensor) in grids for tensor in call.inputs):
                pending[output] = (call.layer, tuple(grids[id(tensor)] for tensor in call.inputs))
        elif first in pending:
            pending[output] = pending[first]
        elif first in grids and kind in (Role.SAME_GRID, Role.AVERAGE, Role.JOINT_GRID):
            grids[output] = grids[first]
    return found


def _fit(operator: _Operator) -> list[QuantizeActivation]:
    """Raises what is too small in one operator."""
    steps, output = [_step(source) for source in operator.sources], _step(operator.output)
    if type(operator.layer) is ChannelMean:
        products, lowest = [steps[0] / operator.layer.input_shape[-1]], 0.0
    elif type(operator.layer) is keras.layers.Multiply:
        products, lowest = [np.prod(steps)], LOWEST_OF_PRODUCT
    else:
        products, lowest = steps, LOWEST_OF_SUM
    raised = []
    if max(products) / output > HIGHEST and operator.output not in operator.sources:
        raised += _raise(operator.output, max(products) / HIGHEST)
        output = _step(operator.output)
    if type(operator.layer) is keras.layers.Multiply:
        factor = lowest * output / products[0]
        smaller = operator.sources[int(np.argmin(steps))]
        return raised + (_raise(smaller, min(steps) * factor) if factor > 1 else [])
    for source, step in zip(operator.sources, steps, strict=True):
        if step < lowest * output:
            raised += _raise(source, lowest * output)
    return raised


def _step(quantizer: QuantizeActivation) -> float:
    return float(tf.reshape(quantizer.quantizer.grid(quantizer.variables_of_quantizer)[0], ()))


def _raise(quantizer: QuantizeActivation, step_size: float) -> list[QuantizeActivation]:
    """Sets a step, unless TFLite prescribes the grid; returns the quantizer if the step rose.

    Raises:
      OverflowError: For a step beyond float32.
    """
    if step_size > np.finfo(np.float32).max / 2:
        raise OverflowError(f"{quantizer.name}: {step_size}")
    variables: Any = quantizer.variables_of_quantizer
    before, zero_point = _step(quantizer), quantizer.quantizer.grid(variables)[1]
    raised = np.asarray(step_size * _ABOVE_LIMIT, np.float32)
    quantizer.quantizer.set_grid(variables, raised, np.asarray(zero_point))
    return [quantizer] if _step(quantizer) > before else []
