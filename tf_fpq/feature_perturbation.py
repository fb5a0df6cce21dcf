"""SFP, stochastic feature perturbation: uniform noise at the inputs of convolutions.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian Matrix*, arXiv 2503.11159
(2025), eq. 9 and 14. Noise of zero mean penalises the trace of the Hessian (eq. 7-8); in several layers at once it is biased
(Prop. 1), hence a draw per layer.
"""

from typing import Any

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
    through the noise, and one draw decides for the whole batch of a layer.
    """

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

    def perturb(self, raw: tf.Tensor, quantized: tf.Tensor, quantize: QuantizeActivation) -> tf.Tensor:
        """The perturbed quantized tensor, or `quantized` itself where the draw says no.

        Args:
          raw: The tensor before its quantizer.
          quantized: `quantize(raw)`.
          quantize: The quantizing layer, for the step size and for the "pre" position.
        """
        draw = tf.random.uniform([], seed=self.seed)
        return tf.cond(draw < self.probability, lambda: self._noisy(raw, quantized, quantize), lambda: quantized)

    def _noisy(self, raw: tf.Tensor, quantized: tf.Tensor, quantize: QuantizeActivation) -> tf.Tensor:
        step_size = tf.stop_gradient(quantize.quantizer.grid(quantize.variables_of_quantizer)[0])
        noise = tf.random.uniform(tf.shape(quantized), -0.5, 0.5, seed=self.seed) * step_size
        noise = tf.cast(noise, quantized.dtype)
        return (
            quantize.quantizer(raw + noise, True, quantize.variables_of_quantizer)
            if self.position == "pre"
            else quantized + noise
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {
            **super().get_config(),
            "probability": self.probability,
            "position": self.position,
            "seed": self.seed,
        }


class PerturbedInput(keras.layers.Layer):
    """A convolution's own view of a quantized tensor: `[raw, quantized]` in, perturbed in training, `quantized` at inference."""

    def __init__(self, perturbation: FeaturePerturbation, quantize: QuantizeActivation, **kwargs: Any):
        """Creates the layer; see `FeaturePerturbation.perturb`."""
        super().__init__(**kwargs)
        self.perturbation = perturbation
        self.quantize = quantize

    def call(self, inputs: list[tf.Tensor], training: Any = None) -> tf.Tensor:
        """The perturbed tensor in training, the quantized one otherwise."""
        raw, quantized = inputs
        return self.perturbation.perturb(raw, quantized, self.quantize) if training else quantized


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
            return PerturbedInput(self._perturbation, layer, name=f"{name}_{self._perturbation.name}")([source, value])
        return layer(self.perturbed(source, name))


def training_graph(student: keras.Model, perturbation: FeaturePerturbation | None) -> keras.Model:
    """The student with noise at its convolutions' inputs and its features in view; it shares the student's layers.

    Returns:
      A model with outputs `{"predictions": ..., "features": {convolution: output}}`.
    """
    inserter = NoiseInserter(perturbation) if perturbation is not None and perturbation.probability > 0 else None
    features: dict[str, Any] = {}

    def make_call(call: graph.Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        convolution = roles.is_convolution(call.layer)
        name = graph.call_name(call)
        if convolution and inserter:
            args = (inserter.perturbed(args[0], name), *args[1:])
        value = call.layer(*args, **kwargs)
        if convolution:
            features[name] = value
        if inserter:
            inserter.record(call.layer, args[0], value)
        return value

    inputs = [
        keras.Input(tensor=None, shape=t.shape[1:], dtype=t.dtype, name=n)
        for t, n in zip(student.inputs, student.input_names)
    ]
    predictions = graph.replay(student, inputs, make_call)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], {"predictions": predictions, "features": features})
