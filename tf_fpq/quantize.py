"""`quantize_model`: a float model in, a quantized student out."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from tf_fpq import graph
from tf_fpq.calibration import grids_from_images
from tf_fpq.conversion.canonical import canonical
from tf_fpq.conversion.prepare import flat
from tf_fpq.keras_compat import AnyModel, keras
from tf_fpq.placement import grids, rule_configs
from tf_fpq.placement.quantize_configs import config_maker
from tf_fpq.placement.rules import QuantRule, check_rules, describe_rules, match_rules
from tf_fpq.student_layers.quantized_layers import QuantizeActivation
from tf_fpq.tfmot_scheme import raise_problems


def quantize_model(
    model: AnyModel, rules: Sequence[QuantRule], quantizer: Any = "lsq", *, verbose: int = 0
) -> keras.Model:
    """Returns a new model that computes `model` on the integer grids it will be deployed on.

        rules = [tf_fpq.QuantRule("stem|logits"), tf_fpq.QuantRule(".*", weight_bits=4)]
        student = tf_fpq.quantize_model(model, rules)

    Kernels are symmetric, narrow range and per channel (depthwise kernels truly so; DoReFa's and
    PACT's are per tensor unless a rule says otherwise); activations are per tensor with a zero
    point. A layer that no rule matches keeps its float kernel; with no rules at all the result is a
    float copy of `model`. Weight step sizes start from the weights; call `calibrate` to start those
    of the activations.

    Args:
      model: A built Sequential or Functional model of Keras 2 (tf_keras) or Keras 3, nested to any
        depth. It is not changed, and no variable is shared.
      rules: Bit widths by layer name and class; of several matching rules the first wins.
      quantizer: The base quantizer: its name ("lsq", "lsq_plus", "pact", "dorefa", "ewgs",
        "min_max"), its class, or the class with options, such as `functools.partial(PactQuantizer,
        l2=1e-3)`. A class of your own must be registered with Keras (`register_keras_serializable`)
        for the student to be saved.
      verbose: 1 prints what each rule matched; it is logged in any case.

    Returns:
      The student. Its layers have the names of `model`'s layers, quantized tensors come out of
      layers `<name>_quantize`.

    Raises:
      TypeError: If `model` is no Keras model or a subclassed one, `rules` no list of rules, or
        `quantizer` no name, class or partial.
      ValueError: If `model` is quantized or not built or has weights that are no numbers, if layers
        have no integer form (all are listed), if a rule matches nothing or if `quantizer` is
        unknown.
    """
    make_config, rules = config_maker(quantizer), check_rules(rules)
    model = flat(model)
    if any(isinstance(layer, QuantizeActivation) for layer in model.layers):
        raise ValueError(
            "model must be a float network; quantize the one that this student was made of."
            f" Received: model {model.name!r}, which is quantized."
        )
    graph.check_finite(model, "model")
    if not rules:
        return graph.clone(model)
    model = canonical(model)
    layers, others = rule_configs.kernels(model), rule_configs.others(model)
    if not layers and all(rule.config is None for rule in rules):
        raise_problems(
            rule_configs.plan(model, {}).problems
        )  # rather than that the rules match nothing
    chosen = match_rules(rules, layers, others)
    the_plan = rule_configs.plan(model, chosen)
    raise_problems(the_plan.problems)
    _report(describe_rules(rules, layers, others), verbose)
    configs = rule_configs.configs(model, chosen, make_config)
    student = grids.place(model, configs, lambda bits: make_config(activation_bits=bits), the_plan)
    grids_from_images.start_weights(student)
    grids_from_images.start_latents(student)
    return student


def _report(text: str, verbose: int) -> None:
    logging.info("quantize_model:\n%s", text)
    if verbose:
        print(text)
