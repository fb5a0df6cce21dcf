"""SAM, sharpness-aware minimization.

P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, *Sharpness-Aware Minimization for Efficiently
Improving Generalization*, ICLR 2021, arXiv 2010.01412, eq. 2-3 and algorithm 1.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any

import tensorflow as tf

from tf_fpq import distributed
from tf_fpq.keras_compat import keras, register, untracked
from tf_fpq.methods.base import Gradients, Method
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.student_layers.quantized_layers import quantizer_variables


@register
class SharpnessAwareMinimization(Method):
    """Takes the gradient of the whole loss at the worst nearby weights instead of at the weights.

        w <- w - lr * gradient(w + rho * g / ||g||),      g = gradient(w)

    A step has two forward and backward passes. The losses that are logged are means over both.

    Note: latent weights are perturbed (the float ones that the optimizer moves), and not the
    quantizers' step sizes. Moving statistics of batch norms are those of the first pass. Noise of
    `FeaturePerturbation` is drawn anew in the second. Under `tf.distribute` `g` is the gradient of
    the global batch.

        model = tf_fpq.QatModel(student, methods=[tf_fpq.SharpnessAwareMinimization(rho=0.05)])
    """

    coefficients = ("rho",)

    def __init__(self, rho: float = 0.05, name: str = "sam", **kwargs: Any):
        """Creates the method.

        Args:
          rho: Radius of the neighbourhood; 0.05 is the paper's default.
          name: Name of the method.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `rho` is negative.
        """
        super().__init__(name=name, **kwargs)
        check_not_negative("rho", rho)
        self.rho = rho

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Chooses the weights that are perturbed."""
        super().attach(student, teacher)
        untracked(
            self,
            _fixed={id(variable) for variable in quantizer_variables(student)},
            _statistics=student.non_trainable_weights,
        )

    def gradients(
        self, variables: Sequence[tf.Variable], compute: Callable[[], Gradients]
    ) -> Gradients:
        """Two passes: predictions of the first, at the weights, and gradients of the second."""
        first = compute()
        with self.perturbed(variables, first.values):
            return Gradients(first.predictions, compute().values)

    @contextlib.contextmanager
    def perturbed(
        self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor | None]
    ) -> Iterator[None]:
        """Within the context the weights are `w + rho * g / ||g||`.

        After it the weights and the moving statistics are what they were, also after an error.
        """
        chosen = [
            (v, g)
            for v, g in zip(variables, gradients)
            if g is not None and id(v) not in self._fixed
        ]
        moved = [variable for variable, _ in chosen]
        summed = distributed.sum_over_replicas(
            [tf.convert_to_tensor(gradient) for _, gradient in chosen]
        )
        # 1e-12 is far below any norm that matters: zeros move nothing, instead of making NaN.
        scale = self.coefficient("rho") / (tf.linalg.global_norm(summed) + 1e-12)
        kept = [*moved, *self._statistics]
        saved = [tf.identity(variable) for variable in kept]
        distributed.assign(
            moved, [variable + scale * gradient for variable, gradient in zip(moved, summed)]
        )
        try:
            yield
        finally:
            distributed.assign(kept, saved)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "rho": self.rho}
