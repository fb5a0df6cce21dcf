"""The student layer by layer, each on codes that it is given.

Here is also the student with every value moved by a float ulp.

A float network and an integer one part at rounding ties, one code in 10^5, and every operator
behind amplifies that: two correct computations of one deep network soon have different codes nearly
everywhere. So a student layer is judged by what it makes of the codes that the file had before it
("teacher forcing"), and how far whole networks may part is measured on the student itself.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tflite_export.lowering.kernel import INT8_MAX

# `x * (1 + 2^-23)` is the next float32 after x, or the one after that.
ONE_ULP = np.float32(1 + 2.0**-23)

Values = Mapping[str, Any]
Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class StudentLayer:
    """The calls of a student from grid to grid.

    One is, for example, convolution, batch norm, ReLU and the `QuantizeActivation` that ends it. It
    runs eagerly, so memory is that of one layer.

    Attributes:
      name: Name of the last call, which is that of the deployed tensor.
      sources: Names of the deployed tensors that it reads; empty for a model input.
      inputs: Positions of the model inputs that it reads.
    """

    name: str
    sources: tuple[str, ...]
    inputs: tuple[int, ...]
    _calls: tuple[graph.Call, ...]
    # By `id` of a symbolic tensor: its name in `sources`, or its position among the inputs.
    _grids: Mapping[int, str]
    _positions: Mapping[int, int]
    _target: int

    def values(self, given: Values, images: Arrays) -> tf.Tensor:
        """What the layer computes, as float32.

        Args:
          given: Values of its `sources` by name, float32.
          images: The model's inputs.
        """
        return self._computed(self._calls, given, images)[self._target]

    def unrounded(self, given: Values, images: Arrays) -> tf.Tensor:
        """What the layer's quantizer, its last call, rounds; arguments as of `values`."""
        *before, last = self._calls
        (tensor, *_), _ = last.arguments(self._computed(before, given, images))
        return tensor

    def rounded(self, unrounded: tf.Tensor) -> tf.Tensor:
        """What the layer's quantizer makes of a tensor."""
        return self._quantizer(unrounded, training=False)

    def codes(self, unrounded: tf.Tensor) -> np.ndarray:
        """The int8 codes that the layer's quantizer gives a tensor."""
        # The highest code of every grid is the container's highest.
        offset = float(INT8_MAX - self._quantizer.quantizer.spec.qmax)
        return (self._quantizer.codes(unrounded) + offset).numpy().astype(np.int8)

    def codes_towards(
        self, wanted: np.ndarray, unrounded: tf.Tensor, slack: np.ndarray
    ) -> np.ndarray:
        """The codes nearest to `wanted` that values at most `slack` steps away round to.

        A worked number: with a slack of 0.01 the values 2.495 and 2.45, both of code 2, come as
        near to code 3 as 3 and 2.

        Args:
          wanted: int8 codes of the layer's shape.
          unrounded: What the layer's quantizer rounds.
          slack: float32 steps, a scalar or one for each channel of the last axis.
        """
        step_size, _ = self._quantizer.quantizer.grid(self._quantizer.variables_of_quantizer)
        move = tf.reshape(step_size, ()) * slack
        return np.clip(wanted, self.codes(unrounded - move), self.codes(unrounded + move))

    @property
    def _quantizer(self) -> QuantizeActivation:
        *_, last = self._calls
        return last.layer

    def _computed(
        self, calls: Sequence[graph.Call], given: Values, images: Arrays
    ) -> dict[int, Any]:
        """What calls make, and what the layer reads, by `id` of the symbolic tensor."""
        found: dict[int, Any] = {
            key: tf.convert_to_tensor(given[name]) for key, name in self._grids.items()
        }
        found |= {key: tf.constant(images[index]) for key, index in self._positions.items()}
        for call in calls:
            args, kwargs = call.arguments(found)
            if call.layer._expects_training_arg:
                kwargs = {**kwargs, "training": False}
            outputs = tf.nest.flatten(call.layer(*args, **kwargs))
            found |= {id(t): value for t, value in zip(call.outputs, outputs, strict=True)}
        return found


def student_layers(student: keras.Model) -> tuple[StudentLayer, ...]:
    """The layers of a student in execution order."""
    makers = _Makers(student)
    return tuple(
        makers.layer(call.name, output)
        for call in makers.order
        if isinstance(call.layer, QuantizeActivation)
        for output in call.outputs
    )


class Moved:
    """The student with each value that is about to be rounded moved by one float ulp.

    That shows what chaos alone makes of it.
    """

    def __init__(self, student: keras.Model):
        """Shares the student's layers."""
        makers = _Makers(student)
        self._layers = student_layers(student)
        # From the last grids to the outputs: nothing, or a reshape.
        self._ends = [makers.layer("(output)", tensor) for tensor in student.outputs]

    def __call__(self, images: Arrays) -> list[np.ndarray]:
        """The outputs as float32 arrays, for one array of each input."""
        values: dict[str, Any] = {}
        left = collections.Counter(
            name for layer in (*self._layers, *self._ends) for name in layer.sources
        )
        for layer in self._layers:
            unrounded = layer.unrounded(values, images)
            values[layer.name] = layer.rounded(unrounded * ONE_ULP)
            left.subtract(layer.sources)
            values = {name: value for name, value in values.items() if left[name]}
        return [end.values(values, images).numpy() for end in self._ends]


class _Makers:
    """Which call makes which tensor of a student."""

    def __init__(self, student: keras.Model):
        self.order = tuple(graph.calls(student))
        self._calls = {id(tensor): call for call in self.order for tensor in call.outputs}
        self._inputs = {id(tensor): index for index, tensor in enumerate(student.inputs)}

    def layer(self, name: str, target: Any) -> StudentLayer:
        """The calls that make `target`, back to other grids than `name` or the model's inputs.

        There are none if `target` is another grid's.
        """
        calls, grids, inputs, left = set(), {}, {}, [target]
        while left:
            tensor = left.pop()
            call = self._calls.get(id(tensor))
            if call is None:
                inputs[id(tensor)] = self._inputs[id(tensor)]
            elif isinstance(call.layer, QuantizeActivation) and call.name != name:
                grids[id(tensor)] = call.name
            elif call.name not in calls:
                calls.add(call.name)
                left += call.inputs
        return StudentLayer(
            name,
            tuple(call.name for call in self.order if call.name in grids.values()),
            tuple(inputs.values()),
            tuple(call for call in self.order if call.name in calls),
            grids,
            inputs,
            id(target),
        )
