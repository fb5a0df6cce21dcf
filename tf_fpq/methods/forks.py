"""Forks before quantizers whose output convolutions and others read.

A convolution's view of such a tensor seldom has a gradient by what the quantizer reads. A `Fork`
lets it say so by a single zero (`no_gradient`).
"""

import functools
from typing import Any

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.graph import Call, MakeCall
from tf_fpq.keras_compat import keras
from tf_fpq.native import tracing
from tf_fpq.placement.convolution_inputs import Source
from tf_fpq.student_layers.quantized_layers import QuantizeActivation


def no_gradient(source: tf.Tensor) -> tf.Tensor:
    """Stands for the gradient of a fork's output where there is none: one zero.

    XLA, and a GPU, which has no need of it, get zeros in the shape of `source`.
    """
    if source.shape.rank == 4 and tracing.on_cpu_kernels():
        return tf.zeros([1, 1, 1, 1])
    return tf.zeros_like(source)


class Fork(keras.layers.Layer):
    """Its input, once for the quantizer and once for each view that a convolution has of it.

    In nine steps of ten a view has no gradient by the tensor before the quantizer. Zeros in its
    shape would be made, held and added. In their place the view returns one zero, and the fork
    passes the quantizer's gradient on as it is.

    Attributes:
      absorbs_relu: A ReLU before this layer is superfluous, as the quantizer's.
    """

    def __init__(self, quantize: QuantizeActivation, views: int, **kwargs: Any):
        """Creates the layer.

        Args:
          quantize: The layer that quantizes the first output.
          views: How many more outputs there are.
          **kwargs: Arguments of `keras.layers.Layer`.
        """
        super().__init__(**{"dtype": "float32", **kwargs})
        self.absorbs_relu = quantize.absorbs_relu
        self.views = views

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        """`1 + views` times `inputs`."""

        @tf.custom_gradient
        def forked(x: tf.Tensor):
            return [tf.identity(x) for _ in range(1 + self.views)], _sum_without_zeros

        return forked(inputs)


def _sum_without_zeros(whole: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """`whole` plus those of `others` that are not a single zero."""
    for other in others:
        if other.shape == whole.shape and whole.shape.is_fully_defined():
            whole += other
            continue
        shape = whole.shape
        is_whole = tf.equal(tf.size(other), tf.size(whole))
        whole = tf.cond(is_whole, functools.partial(tf.add, whole, other), lambda w=whole: w)
        whole.set_shape(shape)
    return whole


class Forks:
    """A `MakeCall` that puts a `Fork` before each quantizer that convolutions and others read."""

    def __init__(self, student: keras.Model, make: MakeCall, method: str):
        """Prepares the forks of a student.

        Args:
          student: The student that is replayed.
          make: Makes a call.
          method: Name of the method that takes views, for the layers' names.
        """
        self._make, self._method = make, method
        self._readers = graph.readers(student)
        self._own: dict[str, Any] = {}

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the call, a quantizer's on the first output of its fork."""
        if isinstance(call.layer, QuantizeActivation) and not call.layer.quantizer.observes:
            readers = self._readers.get(id(call.outputs[0]), [])
            names = [reader.name for reader in readers if roles.is_convolution(reader.layer)]
            if names and len(readers) > 1:
                name = f"{call.name}_{self._method}_fork"
                first, *own = Fork(call.layer, len(names), name=name)(args[0])
                self._own.update(zip(names, own, strict=True))
                args = (first, *args[1:])
        return self._make(call, args, kwargs)

    def take(self, source: Source) -> Any | None:
        """The output that was made for the convolution; None if there is no fork."""
        return self._own.get(source.convolution) if len(source.raw) == 1 else None
