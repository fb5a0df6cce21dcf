"""SFP, stochastic feature perturbation: uniform noise at the inputs of convolutions.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian Matrix*, arXiv 2503.11159
(2025), eq. 9 and 14. Noise of zero mean penalises the trace of the Hessian (eq. 7-8); in several layers at once it is biased
(Prop. 1), hence a draw per layer.
"""

from collections.abc import Collection
from typing import Any
import zlib

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.layers import QuantizeActivation
from tf_fpq.method import Method
from tf_fpq.roles import Role

POSITIONS = ("pre", "post")


@register
class FeaturePerturbation(Method):
    """Perturbs the input of every convolution of the student, each with probability `p` in a training step (eq. 9, 14):

        x <- x + d,    d ~ U[-s/2, +s/2] elementwise

    with `s` the step size of that input's grid. Nothing happens at inference, and a residual branch that reads the same tensor
    sees it clean.

    Note: The paper leaves open where the noise enters. `position="pre"` adds it before the activation's quantizer, where it
    acts as stochastic rounding inside the clipping range; "post" adds it to the quantized tensor. There is no gradient to `s`
    through the noise, and one draw decides for the whole batch of a layer (under `tf.distribute`, of a replica).
    """

    coefficients = ("probability",)

    def __init__(
        self, probability: float = 0.1, position: str = "pre", seed: int | None = None, name: str = "sfp", **kwargs: Any
    ):
        """Creates the method.

        Args:
          probability: Chance `p` that a convolution's input is perturbed in a step, 0 to 1. The paper's best is 0.1.
          position: "pre" or "post": before or after the quantizer of that input.
          seed: Seed of the draws; None follows `keras.utils.set_random_seed`.
          name: Name of the method.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `probability` or `position` is out of range.
        """
        super().__init__(name=name, **kwargs)
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must be between 0 and 1. Received: probability={probability}.")
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {', '.join(POSITIONS)}. Received: position={position!r}.")
        self.probability = probability
        self.position = position
        self.seed = seed

    def perturb(self, tensor: tf.Tensor, quantize: QuantizeActivation, name: str) -> tf.Tensor:
        """`tensor` plus noise, or `tensor` itself where the draw says no; the gradient is the identity.

        Args:
          tensor: What the noise is added to.
          quantize: The quantizing layer, for the step size.
          name: Name of the place, which makes its draws independent of those elsewhere.
        """
        step_size = quantize.quantizer.grid(quantize.variables_of_quantizer)[0]
        probability = self.coefficient("probability")

        @tf.custom_gradient
        def add_noise(x: tf.Tensor):
            drawn = tf.random.uniform([], seed=self._seed_of(name, 0)) < probability
            return tf.cond(drawn, lambda: x + self._noise(x, step_size, name), lambda: x), lambda upstream: upstream

        return add_noise(tensor)

    def _noise(self, x: tf.Tensor, step_size: tf.Tensor, name: str) -> tf.Tensor:
        noise = tf.random.uniform(tf.shape(x), -0.5, 0.5, seed=self._seed_of(name, 1))
        return tf.cast(noise * tf.stop_gradient(step_size), x.dtype)

    def _seed_of(self, name: str, use: int) -> int | None:
        """Operations that are given the same seed would draw the same numbers."""
        return None if self.seed is None else (zlib.crc32(f"{name}/{use}".encode()) + self.seed) % 2**31

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {
            **super().get_config(),
            "probability": self.probability,
            "position": self.position,
            "seed": self.seed,
        }


class PerturbedInput(keras.layers.Layer):
    """A convolution's own view of a quantized tensor: perturbed in training, the quantized tensor at inference.

    The noise is gated where the tensor is, before or after its quantizer, so that a step whose draw says no does no work for it:
    for "pre" this layer quantizes in place of the tensor's own quantizer, which then remains only for other readers.
    """

    def __init__(self, perturbation: FeaturePerturbation, quantize: QuantizeActivation, **kwargs: Any):
        """Creates the layer; see `FeaturePerturbation.perturb`."""
        super().__init__(**kwargs)
        # Past Keras' tracking: both belong to other models.
        vars(self)["perturbation"] = perturbation
        vars(self)["quantize"] = quantize

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """The perturbed tensor of the unquantized one ("pre"), or of the quantized one ("post")."""
        if training:
            inputs = self.perturbation.perturb(inputs, self.quantize, self.name)
        if self.perturbation.position == "post":
            return inputs
        return self.quantize.quantizer(inputs, training, self.quantize.variables_of_quantizer)


class NoiseInserter:
    """Finds the quantizer behind a convolution's input and puts noise there, while a student is replayed.

    Between quantizer and convolution there may be layers that keep the grid (padding, max pooling): they are called once more,
    on the perturbed tensor.
    """

    def __init__(self, perturbation: FeaturePerturbation):
        self._perturbation = perturbation
        self._sources: dict[int, tuple[keras.layers.Layer, Any, Any]] = {}

    def record(self, layer: keras.layers.Layer, source: Any, value: Any) -> None:
        """Remembers that `value` came out of `layer(source)`."""
        if isinstance(layer, QuantizeActivation) or roles.role(layer) is Role.SAME_GRID:
            self._sources[id(value)] = (layer, source, value)

    def perturbed(self, value: Any, name: str) -> Any:
        """`value` with noise for the convolution `name`, or as it is if it does not come from a quantizer."""
        if id(value) not in self._sources:
            return value
        layer, source, _ = self._sources[id(value)]
        if isinstance(layer, QuantizeActivation):
            view = PerturbedInput(self._perturbation, layer, name=f"{name}_{self._perturbation.name}")
            return view(source if self._perturbation.position == "pre" else value)
        return layer(self.perturbed(source, name))


def training_graph(
    student: keras.Model, perturbation: FeaturePerturbation | None = None, shown: Collection[str] = ()
) -> keras.Model:
    """The student with noise at its convolutions' inputs and features in view; it shares the student's layers.

    Args:
      student: The student.
      perturbation: The noise, or None.
      shown: Names of the calls (see `graph.call_name`) whose outputs are features.

    Returns:
      A model with outputs `{"predictions": ..., "features": {name: output}}`.
    """
    inserter = NoiseInserter(perturbation) if perturbation is not None and perturbation.probability > 0 else None
    features: dict[str, Any] = {}

    def make_call(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = graph.call_name(call)
        if inserter and roles.is_convolution(call.layer):
            args = (inserter.perturbed(args[0], name), *args[1:])
        value = call.layer(*args, **kwargs)
        if name in shown:
            features[name] = value
        if inserter:
            inserter.record(call.layer, args[0], value)
        return value

    inputs = [keras.Input(t.shape[1:], dtype=t.dtype, name=n) for t, n in zip(student.inputs, student.input_names)]
    predictions = graph.replay(student, inputs, make_call)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], {"predictions": predictions, "features": features})
