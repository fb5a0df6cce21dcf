"""EWGS' scaling factors from the Hessian.

J. Lee, D. Kim, B. Ham, CVPR 2021, arXiv 2104.00903, section 3.3. For each quantized tensor

    delta = (Tr(H) / N) / G,      G = 3 std(g)

with the gradient `g` and the Hessian `H` of the loss by the tensor's `N` quantized values, in units
of its range (`x_q` from 0 to 1). A negative delta is set to 0.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras, switched
from tf_fpq.quantizers.base import Variables
from tf_fpq.quantizers.ewgs import EwgsQuantizer
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer


def update_deltas(
    student: keras.Model,
    images: Any,
    labels: Any,
    loss: Callable[[Any, Any], Any],
    *,
    probes: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Sets `delta` of every `EwgsQuantizer` of `student` from the Hessian of the loss on one batch.

    Note: the authors' code estimates one trace after another, with up to 50 random vectors each.
    Here one Rademacher vector spans all tensors, and each takes its own part of `v * Hv`, whose
    expectation is its own trace, because the parts of `v` are independent. The student runs with
    `training=False`, so that its batch norms stay as they are.

    Args:
      student: A model with `EwgsQuantizer`s.
      images: One batch.
      labels: Its labels.
      loss: `loss(labels, predictions)`, such as a `keras.losses.Loss`.
      probes: Number of random vectors; the default is chosen here for its price, eight
        Hessian-vector products.
      seed: Seed of the random vectors.

    Returns:
      The new deltas by the names of their variables.

    Raises:
      ValueError: If the student has no `EwgsQuantizer`, `probes` is below 1, or the loss is not
        finite.
    """
    quantizers = list(_ewgs_quantizers(student))
    if not quantizers:
        raise ValueError(
            f"student {student.name!r} has no EwgsQuantizer; quantize with quantizer='ewgs'."
        )
    if probes < 1:
        raise ValueError(f"probes must be at least 1. Received: probes={probes}.")
    generator = np.random.default_rng(seed)
    images, labels = tf.nest.map_structure(tf.convert_to_tensor, (images, labels))
    deltas: dict[int, list[float]] = {}
    owners: dict[int, tf.Variable] = {}
    for _ in range(probes):
        for variable, gradient, curvature in _probe(
            student, quantizers, images, labels, loss, generator
        ):
            spread = (
                3.0 * float(np.std(gradient))
                if np.size(gradient) > 1
                else 3.0 * float(abs(np.mean(gradient)))
            )
            deltas.setdefault(id(variable), []).append(curvature / spread if spread > 0 else 0.0)
            owners[id(variable)] = variable
    result = {}
    for key, variable in owners.items():
        variable.assign(max(float(np.mean(deltas[key])), 0.0))
        result[variable.name] = float(variable.numpy())
    return result


def _probe(
    student: keras.Model,
    quantizers: list[EwgsQuantizer],
    images: Any,
    labels: Any,
    loss: Any,
    generator: Any,
) -> Iterator[tuple[tf.Variable, np.ndarray, float]]:
    """Yields `delta`, gradient and `v * Hv / N` of every quantized tensor, for one random `v`."""
    offsets: list[tf.Tensor] = []
    owners: list[tf.Variable] = []
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape(watch_accessed_variables=False) as inner:

            def watch(
                quantizer: EwgsQuantizer, outputs: tf.Tensor, variables: Variables
            ) -> tf.Tensor:
                """Adds zeros, in units of the range, to be differentiated by."""
                offset = tf.zeros_like(outputs)
                inner.watch(offset)
                outer.watch(offset)
                offsets.append(offset)
                owners.append(variables["delta"])
                step_size, _ = quantizer.grid(variables)
                span = tf.stop_gradient(step_size) * float(
                    quantizer.spec.qmax - quantizer.spec.qmin
                )
                return outputs + offset * tf.cast(span, outputs.dtype)

            with switched(quantizers, watch=watch):
                value = tf.reduce_mean(loss(labels, student(images, training=False)))
        gradients = inner.gradient(value, offsets, unconnected_gradients="zero")
        vectors = [
            tf.constant(generator.choice([-1.0, 1.0], offset.shape), offset.dtype)
            for offset in offsets
        ]
        product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
    if not np.isfinite(float(value)):
        raise ValueError(
            f"The loss of student {student.name!r} on this batch is {float(value)}; its Hessian"
            " means nothing."
        )
    curved = outer.gradient(product, offsets, unconnected_gradients="zero")
    for variable, gradient, vector, product_part in zip(
        owners, gradients, vectors, curved, strict=True
    ):
        yield variable, gradient.numpy(), float(tf.reduce_mean(vector * product_part))


def _ewgs_quantizers(student: keras.Model) -> Iterator[EwgsQuantizer]:
    for layer in student.layers:
        if isinstance(layer, QuantizeActivation):
            candidates = [layer.quantizer]
        elif isinstance(layer, QuantizedLayer):
            candidates = [quantizer for _, _, quantizer, _ in layer.quantized_weights()]
        else:
            candidates = []
        yield from (candidate for candidate in candidates if isinstance(candidate, EwgsQuantizer))


class EwgsDeltaUpdate(keras.callbacks.Callback):
    """Sets the deltas from the Hessian before every `every`-th epoch.

    In the first epoch all deltas keep their start.

    The first argument of `fit` may be the student or a `QatModel` that trains it.
    """

    def __init__(
        self,
        student: keras.Model,
        images: Any,
        labels: Any,
        loss: Any,
        *,
        every: int = 10,
        probes: int = 8,
    ):
        """Creates the callback.

        Args:
          student: The model whose deltas are set.
          images: The batch on which the Hessian is measured.
          labels: Its labels.
          loss: The training loss, `loss(labels, predictions)`.
          every: Epochs between two updates.
          probes: Random vectors of an update.

        Raises:
          ValueError: If `every` is below 1.
        """
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1. Received: every={every}.")
        self.student, self.images, self.labels, self.loss = student, images, labels, loss
        self.every, self.probes = every, probes

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Updates the deltas if it is time."""
        if epoch and epoch % self.every == 0:
            update_deltas(
                self.student, self.images, self.labels, self.loss, probes=self.probes, seed=epoch
            )
