"""SFP, stochastic feature perturbation: uniform noise at the inputs of convolutions.

J. Pang, T. Cai, *Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian
Matrix*, arXiv 2503.11159 (2025), eq. 9 and 14. Noise of zero mean penalises the trace of the
Hessian (eq. 7-8); in several layers at once it is biased (Prop. 1), hence a draw per layer.
"""

import functools
import random
from typing import Any
import zlib

import tensorflow as tf

from tf_fpq import distributed
from tf_fpq.autograph import translated
from tf_fpq.graph import MakeCall
from tf_fpq.keras_compat import keras, register, untracked
from tf_fpq.methods import forks
from tf_fpq.methods.base import Method, Step
from tf_fpq.native import noise, tracing
from tf_fpq.placement.convolution_inputs import ConvolutionInputs, Join, Source
from tf_fpq.student_layers.quantized_layers import QuantizeActivation

POSITIONS = ("pre", "post")


@register
class FeaturePerturbation(Method):
    """Perturbs the inputs of the student's convolutions in training (eq. 9, 14).

        x <- x + d,    d ~ U[-s/2, +s/2] elementwise

    `s` is the step size of the input's grid. Each convolution's input is perturbed with probability
    `p` in a step. Nothing happens at inference, and a residual branch that reads the same tensor
    sees it clean. So do the other readers of a concatenation: each
    convolution behind it perturbs a view of its own, on the grid that the joined tensors share.

    A draw depends on the seed, the convolution's name, the number of forward passes so far and the
    replica, and on nothing else. The seed and the number of passes are variables of the method, so
    a training that goes on from a checkpoint repeats the draws of one that was never interrupted.

    A worked number: with a step of 0.2 noise moves a value by up to 0.1. The value 0.34 would round
    to 0.4. With noise before the quantizer it is 0.24 to 0.44, so it becomes 0.2 in three of ten
    draws and 0.4 in the others.

    Note: The paper leaves open where the noise enters. `position="pre"` adds it before the
    activation's quantizer, where it acts as stochastic rounding inside the clipping range. "post"
    adds it to the quantized tensor. There is no gradient to `s` through the noise, and one draw
    decides for the whole batch of a layer (under `tf.distribute`, of a replica). Zeros that a
    `ZeroPadding2D` puts around the tensor get no noise, as those of a convolution's own padding.

        model = tf_fpq.QatModel(student, methods=[tf_fpq.FeaturePerturbation(probability=0.1)])
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
            paper's best is 0.1. `callbacks.Schedule` may change it, also from 0.
          position: "pre" or "post": before or after the quantizer of that input.
          seed: Seed of the draws, 0 to 2^31 - 1; None draws one, which follows
            `keras.utils.set_random_seed`.
          name: Name of the method.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `probability`, `position` or `seed` is out of range.
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
        if seed is not None and not 0 <= seed < 2**31:
            raise ValueError(f"seed must be from 0 to 2^31 - 1, or None. Received: seed={seed}.")
        self.probability = probability
        self.position = position
        self.seed = seed

    def build(self, input_shape: Any = None) -> None:
        """Makes the coefficient's variable, and that of seed and forward passes."""
        super().build(input_shape)
        seed = random.randrange(2**31) if self.seed is None else self.seed
        # The first half is the seed, with room for the hash of a name (see `_uniform`).
        self._key = self.add_weight(
            name="key",
            shape=(2,),
            dtype="int64",
            trainable=False,
            experimental_autocast=False,
            initializer=keras.initializers.Constant([seed << 32, 0]),
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def rewrite(self, student: keras.Model, make: MakeCall) -> MakeCall:
        """Puts a `PerturbedInput` before every convolution.

        A convolution whose input is on no grid is named in a warning.
        """
        if self.position == "post":
            return ConvolutionInputs(student, make, self._behind, self.name)
        forked = forks.Forks(student, make, self.name)
        view = functools.partial(self._before, forked)
        return ConvolutionInputs(student, forked, view, self.name)

    def _behind(self, source: Source) -> Any:
        return self._view(source, source.join)(source.tensor)

    def _before(self, forked: forks.Forks, source: Source) -> Any:
        # A quantizer that observes must see the clean tensor, once in a step.
        if source.alone and not source.quantize.quantizer.observes:
            return self._view(source, None)(source.raw[0])
        own = forked.take(source)
        raw = source.raw if own is None else (own,)
        return self._view(source, source.join, forked=own is not None)([*raw, source.tensor])

    def _view(self, source: Source, join: Join | None, forked: bool = False) -> "PerturbedInput":
        name = f"{source.name}_{self.name}"
        return PerturbedInput(self, source.quantize, source.convolution, join, forked, name=name)

    def add_step_losses(self, step: Step) -> None:
        """Adds no loss, but counts the forward pass that is over: the next draws other noise."""
        self._key.assign_add(tf.constant([0, 1], tf.int64))

    def key(self) -> tf.Tensor:
        """What the draws of this forward pass follow from: two int64.

        They are the seed, and the number of the pass with the number of the replica from bit 48 on.
        """
        if not self.built:
            self.build()
        replica = tf.cast(distributed.replica_id(), tf.int64) * 2**48
        return tf.convert_to_tensor(self._key) + tf.stack([tf.constant(0, tf.int64), replica])

    def draw(self, key: tf.Tensor, convolution: str) -> tf.Tensor:
        """Whether the convolution of that name is perturbed in this forward pass, a boolean."""
        return _uniform([], key, f"{convolution}/gate", 0.0, 1.0) < self.coefficient("probability")

    def noise(self, like: tf.Tensor, key: tf.Tensor, step_size: tf.Tensor, name: str) -> tf.Tensor:
        """`d ~ U[-s/2, s/2]` in the shape of `like`.

        Args:
          like: The tensor to perturb.
          key: The pass' `key()`.
          step_size: `s`; it gets no gradient.
          name: Name of the place, which makes its noise independent of that elsewhere.
        """
        noise = _uniform(tf.shape(like), key, f"{name}/noise", -0.5, 0.5)
        return tf.cast(noise * tf.stop_gradient(step_size), like.dtype)

    def noisy(
        self, x: tf.Tensor, key: tf.Tensor, step_size: tf.Tensor, name: str, *, relu: bool
    ) -> tf.Tensor:
        """`x`, or with `relu` `max(x, 0)`, plus its `noise`; the same numbers by one operation."""
        if x.dtype == tf.float32 and step_size.shape.rank == 0 and tracing.may_use_native():
            seed = _seed(key, f"{name}/noise")
            return noise.add_uniform(x, tf.stop_gradient(step_size), seed, relu=relu)
        x = tf.nn.relu(x) if relu else x
        return x + self.noise(x, key, step_size, name)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {
            **super().get_config(),
            "probability": self.probability,
            "position": self.position,
            "seed": self.seed,
        }


def _uniform(shape: Any, key: tf.Tensor, name: str, low: float, high: float) -> tf.Tensor:
    """Numbers that follow from the key and the name. Under XLA they are others, always the same."""
    return tf.random.stateless_uniform(shape, _seed(key, name), low, high)


def _seed(key: tf.Tensor, name: str) -> tf.Tensor:
    return key + tf.constant([zlib.crc32(name.encode()), 0], tf.int64)


class PerturbedInput(keras.layers.Layer):
    """A convolution's own view of what it reads.

    It is perturbed in training, and the quantized tensor at inference.

    A step whose draw says no does no work for it. Where the convolution is the only reader of a
    quantizer, noise is gated before ("pre") or behind ("post") that quantizer. Elsewhere "pre"
    takes the tensors before their quantizers too, joins and quantizes them once more, but only when
    it is drawn.

    Attributes:
      forked: Whether the tensor before the quantizer comes out of a `Fork`.
      absorbs_relu: A ReLU before this layer is superfluous: the quantizer clips at zero, and noise
        is added to what a ReLU would return.
    """

    def __init__(
        self,
        perturbation: FeaturePerturbation,
        quantize: QuantizeActivation,
        convolution: str,
        join: Join | None,
        forked: bool = False,
        **kwargs: Any,
    ):
        """Creates the layer.

        Args:
          perturbation: What draws.
          quantize: The layer with the grid.
          convolution: Name of the convolution; all layers of one name are drawn together.
          join: See `Source.join`; None if the layer takes one tensor.
          forked: Whether the tensor before the quantizer comes out of a `Fork`.
          **kwargs: Arguments of `keras.layers.Layer`.
        """
        super().__init__(**{"dtype": "float32", **kwargs})
        self.convolution = convolution
        self.absorbs_relu = perturbation.position == "pre" and quantize.absorbs_relu
        # Both belong to other models.
        untracked(self, perturbation=perturbation, quantize=quantize, join=join)
        self.forked = forked

    def call(self, inputs: Any, training: Any = None) -> tf.Tensor:
        """The perturbed tensor in training, the quantized one at inference.

        "pre" takes `raw` or `[*raw, quantized]`, "post" the quantized tensor.
        """
        if self.perturbation.position == "post":
            return self._gated(inputs) if training else inputs
        if self.join is not None:
            *raw, quantized = inputs
            return self._chosen(raw, quantized) if training else quantized
        value = self._gated(inputs) if training else inputs
        variables = self.quantize.variables_of_quantizer
        return translated(self.quantize.quantizer)(value, training, variables)

    def _gated(self, tensor: tf.Tensor) -> tf.Tensor:
        """`tensor` plus noise, or `tensor` itself where the draw says no.

        The gradient is the identity, or that of an absorbed ReLU.
        """
        key, step_size = self.perturbation.key(), self._step_size()
        drawn = self.perturbation.draw(key, self.convolution)

        @tf.custom_gradient
        def gate(x: tf.Tensor):
            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                if not self.absorbs_relu:
                    return upstream
                positive = lambda: tf.raw_ops.ReluGrad(gradients=upstream, features=x)  # noqa: E731
                with tf.control_dependencies([upstream]):
                    return tf.cond(drawn, positive, lambda: upstream)

            return tf.cond(drawn, lambda: self._noisy(x, key, step_size), lambda: x), gradient

        return gate(tensor)

    def _chosen(self, raw: list[tf.Tensor], quantized: tf.Tensor) -> tf.Tensor:
        """`raw` joined plus noise, quantized, or `quantized` where the draw says no.

        The gradient goes to `raw`, or to `quantized`. It draws the same noise again.
        """
        key, step_size = self.perturbation.key(), self._step_size()
        drawn = self.perturbation.draw(key, self.convolution)
        quantizer, variables = self.quantize.quantizer, self.quantize.variables_of_quantizer
        trained = {
            n: tf.convert_to_tensor(v)
            for n, v in variables.items()
            if getattr(v, "trainable", False)
        }

        def noisy(*sources: tf.Tensor) -> tf.Tensor:
            value = self._noisy(self.join(sources[: len(raw)]), key, step_size)
            weights = {**variables, **dict(zip(trained, sources[len(raw) :], strict=True))}
            # A quantizer that observes has seen the clean tensor in this step.
            return translated(quantizer)(value, not quantizer.observes, weights)

        @tf.custom_gradient
        def chosen(quantized: tf.Tensor, *sources: tf.Tensor):
            def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
                def to_sources() -> list[tf.Tensor]:
                    with tf.GradientTape() as tape:
                        tape.watch(sources)
                        value = noisy(*sources)
                    zero = tf.UnconnectedGradients.ZERO
                    return [tf.zeros_like(upstream), *tape.gradient(value, sources, upstream, zero)]

                def to_quantized() -> list[tf.Tensor]:
                    zeros = forks.no_gradient if self.forked else tf.zeros_like
                    return [upstream, *map(zeros, sources)]

                with tf.control_dependencies([upstream]):
                    return tf.cond(drawn, to_sources, to_quantized)

            return tf.cond(drawn, lambda: noisy(*sources), lambda: quantized), gradient

        return chosen(quantized, *raw, *trained.values())

    def _noisy(self, x: tf.Tensor, key: tf.Tensor, step_size: tf.Tensor) -> tf.Tensor:
        return self.perturbation.noisy(x, key, step_size, self.name, relu=self.absorbs_relu)

    def _step_size(self) -> tf.Tensor:
        return self.quantize.quantizer.grid(self.quantize.variables_of_quantizer)[0]
