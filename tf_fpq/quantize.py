"""`quantize_model`: a float model in, a quantized student out."""

from collections.abc import Sequence

from tf_fpq import calibration, graph, placement, roles
from tf_fpq.canonical import canonical
from tf_fpq.keras_compat import keras
from tf_fpq.quantize_config import GridQuantizeConfig, LsqQuantizeConfig
from tf_fpq.scheme import raise_problems
from tf_fpq.spec import QuantRule, match_rules

QUANTIZE_CONFIGS: dict[str, type[GridQuantizeConfig]] = {"lsq": LsqQuantizeConfig}


def quantize_model(model: keras.Model, rules: Sequence[QuantRule], quantizer: str = "lsq") -> keras.Model:
    """Returns a new model that computes `model` on the integer grids it will be deployed on.

    Kernels are symmetric, narrow range and per channel (depthwise kernels truly so); activations are per tensor with a zero
    point. A layer that no rule matches keeps its float kernel; with no rules at all the result is a float copy of `model`.
    Weight step sizes start from the weights; call `calibrate` to start those of the activations.

    Args:
      model: A built Keras 2 (tf_keras) Sequential or Functional model. It is not changed, and no variable is shared.
      rules: Bit widths by layer name; of several matching rules the first wins.
      quantizer: Name of the base quantizer.

    Returns:
      The student. Its layers have the names of `model`'s layers, quantized tensors come out of layers `<name>_quantize`.

    Raises:
      TypeError: If `model` is a Keras 3 model or no Keras model.
      ValueError: If `model` is subclassed, nested or not built, if layers have no integer form (all are listed), if a rule
        matches nothing or if `quantizer` is unknown.
    """
    check_model(model)
    if quantizer not in QUANTIZE_CONFIGS:
        raise ValueError(f"quantizer must be one of {', '.join(QUANTIZE_CONFIGS)}. Received: quantizer={quantizer!r}.")
    if not rules:
        return _float_copy(model)
    model = canonical(model)
    config_class = QUANTIZE_CONFIGS[quantizer]
    the_plan = placement.plan(model)
    raise_problems(the_plan.problems)
    kernels = [layer.name for layer in model.layers if roles.role(layer) is roles.Role.KERNEL]
    chosen = match_rules(rules, kernels)
    configs = {name: config_class(rule.weight_bits, rule.activation_bits) for name, rule in chosen.items()}
    student = placement.place(model, configs, lambda bits: config_class(activation_bits=bits), the_plan)
    calibration.start_weights(student)
    return student


def check_model(model: object) -> None:
    """Raises an error that says the way out if `model` is not a flat, functional Keras 2 model."""
    if not isinstance(model, keras.Model):
        if type(model).__module__.startswith("keras.") or any(
            c.__module__.startswith("keras.") for c in type(model).__mro__
        ):
            raise TypeError(
                "model is a Keras 3 model; tfmot and tf_fpq work on Keras 2. Build it with `import tf_keras as keras`. "
                f"Received: model={model!r}."
            )
        raise TypeError(f"model must be a tf_keras Model. Received: model={model!r}.")
    if not graph.is_functional(model):
        raise ValueError(
            f"model {model.name!r} is subclassed or not built, so its graph cannot be read. Write it with the functional API, "
            f"or call it on a keras.Input and wrap that in keras.Model. Received: {type(model).__name__}."
        )
    nested = [layer.name for layer in model.layers if isinstance(layer, keras.Model)]
    if nested:
        raise ValueError(
            f"model {model.name!r} contains nested models: {', '.join(nested)}. Call their layers in one functional model."
        )


def _float_copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy
