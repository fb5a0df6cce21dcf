"""Weight oscillation: how often integer weights jump back and forth, and the two cures.

M. Nagel, M. Fournarakis, Y. Bondarenko, T. Blankevoort, *Overcoming Oscillations in
Quantization-Aware Training*, ICML 2022, arXiv 2203.11086, section 4 and algorithm 1.
"""

from typing import Any

import tensorflow as tf

from tf_fpq import distributed
from tf_fpq.keras_compat import keras, register, untracked
from tf_fpq.methods.base import Method, Step
from tf_fpq.methods.checks import check_not_negative
from tf_fpq.student_layers.quantized_layers import QuantizedLayer, QuantizedWeight


def weights_of_student(student: keras.Model) -> list[QuantizedWeight]:
    """All quantized weights of a student in layer order, named "layer/weight"."""
    return [
        weight._replace(name=f"{layer.name}/{weight.name}")
        for layer in student.layers
        if isinstance(layer, QuantizedLayer)
        for weight in layer.quantized_weights()
    ]


class OscillationState(tf.Module):
    """What is remembered of one weight to see it oscillate.

    A weight oscillates in a step when its integer moves against the direction of its previous move
    (eq. 5). Its frequency is `f <- m * oscillated + (1 - m) * f` (eq. 6).

    A worked number: the codes 3, 4, 3, 3, 4 oscillate in the third and in the fifth step. With
    `m = 0.01` the frequency is then 0.01 and, after 0.0099 in between, 0.0198.

    Attributes:
      codes: Integer weights after the previous step.
      direction: Sign of the last move; 0 before the first.
      frequency: `f`, 0 to 1.
    """

    def __init__(self, weight: QuantizedWeight, momentum: float):
        super().__init__()
        self._weight = weight
        self._momentum = momentum
        codes = weight.codes()
        self.codes = _variable(codes, "codes")
        self.direction = _variable(tf.zeros_like(codes), "direction")
        self.frequency = _variable(tf.zeros_like(codes), "frequency")

    def update(self, codes: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Looks at the weight's integers after an update.

        Args:
          codes: Integers to look at in place of the weight's own.

        Returns:
          The integers, and the new frequencies.
        """
        codes = self._weight.codes() if codes is None else codes
        move = tf.sign(codes - self.codes)
        oscillated = tf.cast(move * self.direction < 0.0, tf.float32)
        frequency = self._momentum * oscillated + (1.0 - self._momentum) * self.frequency
        direction = tf.where(move != 0.0, move, tf.convert_to_tensor(self.direction))
        distributed.assign(
            [self.codes, self.direction, self.frequency], [codes, direction, frequency]
        )
        return codes, frequency


def _variable(value: tf.Tensor, name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=name)


@register
class OscillationDampening(Method):
    """Adds a loss that pulls weights to the middle of their bins (section 4.2).

        L_dampen = weight * sum over layers of || w_hat - clip(w, s * n, s * p) ||^2

    There is no gradient to `w_hat` and `s`, and none to weights that are clipped. `w` is what the
    quantizer rounds: the latent weight itself, or what DoReFa's tanh makes of it.

    Note: the paper raises the weight over training along a cosine; see `callbacks.Schedule` and
    `callbacks.cosine`.

        dampening = tf_fpq.OscillationDampening(weight=1e-3)
        model = tf_fpq.QatModel(student, methods=[dampening])
    """

    has_loss = True
    coefficients = ("weight",)

    def __init__(self, weight: float = 1e-3, name: str = "dampening", **kwargs: Any):
        """Creates the method.

        Args:
          weight: Factor of the loss. The default is chosen here; the paper tunes it for each
            network and schedule.
          name: Name of the method; the loss is logged as `<name>_loss`.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `weight` is negative.
        """
        super().__init__(name=name, **kwargs)
        check_not_negative("weight", weight)
        self.weight = weight

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Finds the student's quantized weights."""
        super().attach(student, teacher)
        untracked(self, _weights=_weights_of(student, self.name))

    def call(self, inputs: list[QuantizedWeight]) -> tf.Tensor:
        """Adds the loss of quantized weights and returns it."""
        loss = self.coefficient("weight") * tf.add_n(
            [_distance_to_bins(weight) for weight in inputs]
        )
        self.add_loss(loss)
        return loss

    def add_step_losses(self, step: Step) -> None:
        """Adds the loss of all quantized weights."""
        self(self._weights)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "weight": self.weight}


def _distance_to_bins(weight: QuantizedWeight) -> tf.Tensor:
    step_size, zero_point = weight.quantizer.grid(weight.variables)
    step_size, spec = tf.stop_gradient(step_size), weight.quantizer.spec
    values = weight.quantizer.unrounded(tf.convert_to_tensor(weight.variable), weight.variables)
    low, high = (spec.qmin - zero_point) * step_size, (spec.qmax - zero_point) * step_size
    target = tf.stop_gradient((weight.codes() - zero_point) * step_size)
    return tf.reduce_sum(tf.math.squared_difference(target, tf.clip_by_value(values, low, high)))


@register
class OscillationFreezing(Method):
    """Freezes weights that oscillate too often (algorithm 1).

        f > threshold:    w <- s * round(EMA of integers)    from then on, whatever the gradient

    A weight is frozen for the rest of the training, at the integer that it was at on average. The
    integer is frozen, the step size still learns.

    Note: DoReFa and min-max divide by the largest weight of a channel, so `w` is then the latent
    weight whose integer this is beside the present largest one; and the largest one, which is
    always at the end of the range, is not frozen.

        freezing = tf_fpq.OscillationFreezing(threshold=0.02)
        model = tf_fpq.QatModel(student, methods=[freezing])

    Attributes:
      states: Oscillation of each quantized weight, once the method is part of a `QatModel`.
    """

    coefficients = ("threshold",)

    def __init__(
        self, threshold: float = 0.02, momentum: float = 0.01, name: str = "freezing", **kwargs: Any
    ):
        """Creates the method.

        Args:
          threshold: Frequency above which a weight freezes; 1 or more freezes none. With the
            defaults three oscillations in a few steps freeze a weight. The default is chosen here,
            in the range of the paper, which anneals it.
          momentum: Momentum `m` of the moving averages; 0.01 is the paper's.
          name: Name of the method.
          **kwargs: Arguments of `keras.layers.Layer`.

        Raises:
          ValueError: If `threshold` is negative or `momentum` is not in (0, 1].
        """
        super().__init__(name=name, **kwargs)
        check_not_negative("threshold", threshold)
        check_momentum(momentum)
        self.threshold = threshold
        self.momentum = momentum

    def attach(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Makes the state of the student's quantized weights."""
        super().attach(student, teacher)
        weights = _weights_of(student, self.name)
        untracked(self, _weights=weights)
        self.states = [OscillationState(weight, self.momentum) for weight in weights]
        # The method's own too, as Keras saves no variables of a tf.Module.
        self._state_variables = [variable for state in self.states for variable in state.variables]
        self.means = [_variable(weight.codes(), "mean_codes") for weight in weights]
        self.frozen = [
            _variable(tf.zeros(weight.variable.shape, tf.bool), "frozen") for weight in weights
        ]

    def after_update(self) -> None:
        """Looks for oscillations, freezes, and puts frozen weights back."""
        for weight, state, mean, frozen in zip(
            self._weights, self.states, self.means, self.frozen, strict=True
        ):
            quantizer, variables = weight.quantizer, weight.variables
            latent = tf.convert_to_tensor(weight.variable)
            # Frozen weights first: the optimizer has moved them, and that is no oscillation.
            latent = quantizer.held(latent, tf.round(mean), tf.convert_to_tensor(frozen), variables)
            codes, frequency = state.update(quantizer.codes(latent, variables))
            new_mean = tf.where(frozen, mean, self.momentum * codes + (1.0 - self.momentum) * mean)
            oscillating = frequency > self.coefficient("threshold")
            # A weight that sets the scale is always at the end of the range: it cannot be held.
            free = tf.logical_not(quantizer.sets_scale(latent))
            now_frozen = tf.logical_or(frozen, tf.logical_and(oscillating, free))
            latent = quantizer.held(latent, tf.round(new_mean), now_frozen, variables)
            distributed.assign([mean, frozen, weight.variable], [new_mean, now_frozen, latent])

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal method."""
        return {**super().get_config(), "threshold": self.threshold, "momentum": self.momentum}


def check_momentum(momentum: float) -> None:
    """Raises ValueError unless `momentum` is in (0, 1]."""
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"momentum must be above 0 and at most 1. Received: momentum={momentum}.")


def _weights_of(student: keras.Model, name: str) -> list[QuantizedWeight]:
    weights = weights_of_student(student)
    if not weights:
        raise ValueError(
            f"{name} needs quantized weights, and student {student.name!r} has none. Make it with"
            " tf_fpq.quantize_model."
        )
    return weights
