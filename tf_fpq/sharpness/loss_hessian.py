"""The Hessian of a model's loss by its kernels, as products with vectors.

The loss is the plain task loss over given images with `training=False`: batch norms use their
moving statistics, and no method adds anything. Of a student it is the loss as quantized, by its
latent kernels: rounding passes gradients straight through, `x + stop_gradient(round(x) - x)`, so
that second derivatives exist. Biases, batch norms and step sizes are not varied, so that float
networks and students have the same space.

Vectors are flat float32 tensors, the kernels one behind the other.
"""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.native import tracing
from tf_fpq.student_layers.quantized_layers import quantizer_variables

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Mean cross entropy of class numbers and logits, the default loss.

    Two equal logits give ln 2 = 0.693:

        tf_fpq.sharpness.cross_entropy(tf.constant([1]), tf.constant([[0.0, 0.0]]))
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int64), logits)
    return tf.reduce_mean(losses)


def kernels(model: keras.Model) -> list[tf.Variable]:
    """Trainable variables of rank 2 or more that belong to no quantizer, in the model's order.

    Sharpness is measured in them, and in nothing else:

        print([kernel.name for kernel in tf_fpq.sharpness.kernels(student)])
    """
    fixed = {id(variable) for variable in quantizer_variables(model)}
    return [
        variable
        for variable in model.trainable_weights
        if variable.shape.rank >= 2 and id(variable) not in fixed
    ]


class LossHessian:
    """Loss, gradient and Hessian of one model on fixed images.

        hessian = tf_fpq.sharpness.LossHessian(student, images, labels)
        print(hessian.loss())

    Attributes:
      model: The model.
      variables: Its kernels.
      size: Number of their elements, the length of a vector.
    """

    def __init__(
        self,
        model: keras.Model,
        images: Any,
        labels: Any,
        loss: Loss = cross_entropy,
        *,
        batch_size: int = 256,
    ):
        """Prepares the images.

        Args:
          model: A float model or a student, which is measured as it is when asked.
          images: Array of images, preprocessed as for training.
          labels: Their labels.
          loss: `loss(labels, predictions)`, a mean over images.
          batch_size: Images at once. The result does not depend on it but for rounding.

        Raises:
          ValueError: If there are no images, not as many labels, or the model has no kernels.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if not len(images) or len(images) != len(labels):
            raise ValueError(
                "images and labels must be of one length, at least 1. Received:"
                f" {len(images)} images, {len(labels)} labels."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}.")
        self.model = model
        self.variables = kernels(model)
        if not self.variables:
            raise ValueError(f"model {model.name!r} has no trainable kernels to vary.")
        self.size = sum(int(variable.shape.num_elements()) for variable in self.variables)
        self._loss = loss
        self._batches = [
            (tf.constant(images[i : i + batch_size]), tf.constant(labels[i : i + batch_size]))
            for i in range(0, len(images), batch_size)
        ]
        self._shares = [len(batch) / len(images) for batch, _ in self._batches]
        self._value = tf.function(self._value_of_batch)
        self._product = tf.function(self._product_of_batch)

    def loss(self) -> float:
        """The loss at the kernels' present values."""
        return float(self._mean(self._value))

    def gradient(self) -> tf.Tensor:
        """The gradient as a vector."""
        return self._mean(self._gradient_of_batch)

    def product(self, vector: tf.Tensor) -> tf.Tensor:
        """The Hessian times a vector."""
        return self._mean(lambda images, labels: self._product(images, labels, vector))

    def _mean(self, function: Callable[..., tf.Tensor]) -> tf.Tensor:
        parts = [
            share * function(*batch)
            for share, batch in zip(self._shares, self._batches, strict=True)
        ]
        return tf.add_n(parts)

    def _value_of_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        # The quantizers' plain formulas: the fused kernels do not sum in the same order.
        with tracing.plain_formula():
            return self._loss(labels, self.model(images, training=False))

    def _gradient_of_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = self._value_of_batch(images, labels)
        return self._flat(tape.gradient(value, self.variables, unconnected_gradients="zero"))

    def _product_of_batch(
        self, images: tf.Tensor, labels: tf.Tensor, vector: tf.Tensor
    ) -> tf.Tensor:
        with tf.GradientTape() as outer:
            gradient = self._gradient_of_batch(images, labels)
            along = tf.tensordot(gradient, tf.stop_gradient(vector), 1)
        return self._flat(outer.gradient(along, self.variables, unconnected_gradients="zero"))

    def _flat(self, parts: list[tf.Tensor]) -> tf.Tensor:
        return tf.concat([tf.reshape(tf.convert_to_tensor(part), [-1]) for part in parts], axis=0)

    def split(self, vector: Any) -> list[np.ndarray]:
        """A vector as arrays in the shapes of the kernels."""
        sizes = [int(variable.shape.num_elements()) for variable in self.variables]
        parts = np.split(np.asarray(vector, np.float32), np.cumsum(sizes)[:-1])
        return [
            part.reshape(variable.shape.as_list())
            for part, variable in zip(parts, self.variables, strict=True)
        ]

    @contextlib.contextmanager
    def moved(self, vector: Any) -> Iterator[None]:
        """Within the context the kernels are `w + vector`; after it, to the bit what they were."""
        before = [variable.numpy() for variable in self.variables]
        try:
            for variable, old, part in zip(self.variables, before, self.split(vector), strict=True):
                variable.assign(old + part)
            yield
        finally:
            for variable, old in zip(self.variables, before, strict=True):
                variable.assign(old)
