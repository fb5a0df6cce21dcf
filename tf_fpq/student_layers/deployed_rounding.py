"""The student rounds as the phone does.

The layer here brings what an operator computes in float32 into the cell that its integer kernel
rounds to.

A quantizer rounds `y / s` half to even. An integer kernel has its own rule: a pooling rounds the
mean of raw codes away from zero, a LeakyReLU multiplies by 8 bits. So between an operator and its
quantizer stands a `DeployedRounding`, which moves `y` where both disagree, and nothing elsewhere.
The quantizer, and noise before it, need not know.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import register
from tf_fpq.quantizers import numerics
from tf_fpq.roles import Role
from tf_fpq.student_layers import operator_arithmetic
from tf_fpq.student_layers.operator_arithmetic import Grid, Operands
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, StudentLayer

_MOVE_CODES = (Role.SAME_GRID, Role.JOINT_GRID)


def source_of(tensor: Any) -> QuantizeActivation | None:
    """The layer on whose grid a symbolic tensor lies, also behind layers that only move codes."""
    layer = graph.producer(tensor)
    if isinstance(layer, QuantizeActivation):
        return layer if layer.quantizer.has_grid else None
    if roles.role(layer) in _MOVE_CODES:
        return source_of(graph.sources(tensor)[0])
    return None


def arithmetic_of(computed: Any, read: Sequence[Any]) -> operator_arithmetic.Arithmetic | None:
    """How the kernel rounds that makes the symbolic tensor `computed` of those in `read`.

    None if it has no rule of its own, or reads a tensor on no grid. A tensor that is made of itself
    moves to another grid.
    """
    found: operator_arithmetic.Arithmetic | None = operator_arithmetic.requantize
    if computed is not read[0]:
        found = operator_arithmetic.of(graph.producer(computed))
    on_grids = found is not None and all(source_of(tensor) is not None for tensor in read)
    return found if on_grids else None


@register
class DeployedRounding(StudentLayer):
    """Moves an operator's float output into the cell of the code that the phone gives it.

    `rounding([y, *x])` is `y`, which the operator computed for `x`, or where the integer kernel
    rounds it to another code than the student would, the nearest value that rounds to that code.
    The gradient is that of `y`. While the quantizer behind it or one before it observes, `y` passes
    as it is.

    Note: A quantizer that moves its range in training (`MinMaxQuantizer`) does so when it is
    called, which is after this layer. A training step may then meet a tie that the deployed grid
    does not have.

    The operator and both grids are those around the layer in the model that it was made for, built
    or loaded: the graph says which, no config repeats it.
    """

    def __init__(self, **kwargs: Any):
        """Creates the layer, in float32 whatever the global policy."""
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Returns the first tensor, rounded as deployed."""
        y, *others = inputs
        output = graph.first_reader(self)
        if self.symbolic or not isinstance(output, QuantizeActivation) or output.observing:
            return y
        computed, *read = graph.first_inputs(self)
        arithmetic, sources = arithmetic_of(computed, read), [source_of(tensor) for tensor in read]
        # No kernel reads float values, which is what comes out of a quantizer that observes.
        if arithmetic is None or any(source and source.observing for source in sources):
            return y
        values = tuple(tf.stop_gradient(x) for x in others)
        value = values[0] if computed is read[0] else tf.stop_gradient(y)
        grids = tuple(Grid.of(source) for source in sources if source is not None)
        operator = graph.producer(computed)
        moved = arithmetic(Operands(operator, values, value, grids, Grid.of(output)))
        return numerics.straight_through(y, moved)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of `y`."""
        return input_shape[0]
