"""SFP, stochastic feature perturbation: uniform noise at the inputs of convolutions.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian
Matrix*, arXiv 2503.11159 (2025), eq. 9 and 14. Noise of zero mean penalises the trace of the
Hessian (eq. 7-8); in several layers at once it is biased (Prop. 1), hence a draw per layer.
"""

from collections.abc import Mapping
from typing import Any
import zlib

import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.keras_compat import keras, register
from tf_fpq.methods.base import Method
from tf_fpq.placement.quantized_layers import QuantizeActivation
from tf_fpq.roles import Role

POSITIONS = ("pre", "post")


@register
class FeaturePerturbation(Method):
    """Perturbs the input of every convolution of the student, each with probability `p` in a
    training step (eq. 9, 14):

        x <- x + d,    d ~ U[-s/2, +s/2] elementwise

    with `s` the step size of that input's grid. Nothing happens at inference, and a residual branch
    that reads the same tensor sees it clean.

    Note: The paper leaves open where the noise enters. `position="pre"` adds it before the
    activation's quantizer, where it acts as stochastic rounding inside the clipping range; "post"
    adds it to the quantized tensor. There is no gradient to `s` through the noise, and one draw
    decides for the whole batch of a layer (under `tf.distribute`, of a replica).
    """

    coefficients = ("probability",)

    def __init__(
        self,
        probability: float = 0.1,
        position: str = "pre",
        seed: int | None = None,
        name: str = "sfp",
        **kwargs: Any,
    ):
        """Creates the method.

        Args:
          probability: Chance `p` that a convolution's input is perturbed in a step, 0 to 1. The
            paper's best is 0.1.
          position: "pre" or "post": before or after the quantizer of that input.
          seed: Seed of the draws; None follows `keras.utils.set_random_seed`.
          name: Name of the method.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `probability` or `position` is out of range.
        """
        super().__init__(name=name, **kwargs)
        if not 0.0 <= probability <= 1.0:
            raise ValueError(
                f"probability must be between 0 and 1. Received: probability={probability}."
            )
        if position not in POSITIONS:
            raise ValueError(
                f"position must be one of {', '.join(POSITIONS)}. Received: position={position!r}."
            )
        self.probability = probability
        self.position = position
        self.seed = seed

    def perturb(self, tensor: tf.Tensor, quantize: QuantizeActivation, name: str) -> tf.Tensor:
        """`tensor` plus noise, or `tensor` itself where the draw says no; the gradient is the
        identity.

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
            return (
                tf.cond(drawn, lambda: x + self._noise(x, step_size, name), lambda: x),
                lambda upstream: upstream,
            )

        return add_noise(tensor)

    def choose(
        self, raw: tf.Tensor, quantized: tf.Tensor, quantize: QuantizeActivation, name: str
    ) -> tf.Tensor:
        """`raw` plus noise, quantized, or `quantized` where the draw says no; arguments as
        `perturb`.
        """
        variables = quantize.variables_of_quantizer
        step_size = quantize.quantizer.grid(variables)[0]
        drawn = tf.random.uniform([], seed=self._seed_of(name, 0)) < self.coefficient("probability")
        return tf.cond(
            drawn,
            lambda: quantize.quantizer(raw + self._noise(raw, step_size, name), True, variables),
            lambda: quantized,
        )

    def _noise(self, x: tf.Tensor, step_size: tf.Tensor, name: str) -> tf.Tensor:
        noise = tf.random.uniform(tf.shape(x), -0.5, 0.5, seed=self._seed_of(name, 1))
        return tf.cast(noise * tf.stop_gradient(step_size), x.dtype)

    def _seed_of(self, name: str, use: int) -> int | None:
        """Operations that are given the same seed would draw the same numbers."""
        return (
            None
            if self.seed is None
            else (zlib.crc32(f"{name}/{use}".encode()) + self.seed) % 2**31
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
    """A convolution's own view of a quantized tensor: perturbed in training, the quantized tensor
    at inference.

    A step whose draw says no does no work for it. Where the convolution is the only reader, noise
    is gated before ("pre") or behind ("post") the tensor's only quantizer. Where others read the
    clean tensor, "pre" takes both tensors and quantizes once more, but only when it is drawn.
    """

    def __init__(
        self, perturbation: FeaturePerturbation, quantize: QuantizeActivation, **kwargs: Any
    ):
        """Creates the layer; see `FeaturePerturbation.perturb`."""
        super().__init__(**{"dtype": "float32", **kwargs})
        # Past Keras' tracking: both belong to other models.
        vars(self)["perturbation"] = perturbation
        vars(self)["quantize"] = quantize

    def call(self, inputs: Any, training: Any = None) -> tf.Tensor:
        """The perturbed tensor of `raw` or `[raw, quantized]` ("pre"), or of the quantized one
        ("post").
        """
        if self.perturbation.position == "post":
            return (
                self.perturbation.perturb(inputs, self.quantize, self.name) if training else inputs
            )
        if isinstance(inputs, list | tuple):
            raw, quantized = inputs
            return (
                self.perturbation.choose(raw, quantized, self.quantize, self.name)
                if training
                else quantized
            )
        raw = self.perturbation.perturb(inputs, self.quantize, self.name) if training else inputs
        return self.quantize.quantizer(raw, training, self.quantize.variables_of_quantizer)


class NoiseInserter:
    """Finds the quantizer behind a convolution's input and puts noise there, while a student is
    replayed.

    Between quantizer and convolution there may be layers that keep the grid (padding, max pooling):
    they are called once more, on the perturbed tensor.
    """

    def __init__(self, perturbation: FeaturePerturbation, readers: Mapping[int, list[graph.Call]]):
        self._perturbation = perturbation
        self._readers = readers
        self._sources: dict[int, tuple[graph.Call, Any, Any]] = {}

    def record(self, call: graph.Call, source: Any, value: Any) -> None:
        """Remembers that `value` came out of `call` on `source`."""
        if isinstance(call.layer, QuantizeActivation) or roles.role(call.layer) is Role.SAME_GRID:
            self._sources[id(value)] = (call, source, value)

    def perturbed(self, value: Any, name: str) -> Any:
        """`value` with noise for the convolution `name`, or as it is if it does not come from a
        quantizer.
        """
        if id(value) not in self._sources:
            return value
        call, source, _ = self._sources[id(value)]
        if not isinstance(call.layer, QuantizeActivation):
            return call.layer(self.perturbed(source, name))
        view = PerturbedInput(
            self._perturbation, call.layer, name=f"{name}_{self._perturbation.name}"
        )
        if self._perturbation.position == "post":
            return view(value)
        alone = len(self._readers.get(id(call.outputs[0]), ())) == 1
        return view(source if alone else [source, value])
