"""Which layer gets which bit widths: frozen records, without TensorFlow."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any

from tf_fpq.quantizers.spec import check_bits


@dataclasses.dataclass(frozen=True)
class QuantRule:
    """Bit widths for the layers whose whole name matches a regular expression.

    Of several rules the first match wins.

    Rules choose among layers with a kernel (convolutions, Dense). `activation_bits` is the width of
    the tensor such a layer *reads*, as in the papers: the widest that any of its readers asks for.
    Tensors that no such layer reads (both inputs of a residual addition, the logits) have 8 bits,
    or stay float if every rule that matched leaves activations float.

    A rule with a `config` gives the layers it matches that tfmot `QuantizeConfig`, and chooses
    among layers of unknown classes too:

        QuantRule(layer_type=MyLayer, config=MyQuantizeConfig(weight_bits=4, activation_bits=4))

    The config's `get_weights_and_quantizers(layer)` lists the weights, which must be attributes of
    the layer, each with a `tf_fpq.quantizers.GridQuantizer`. Activations have their grids from this
    library, once per tensor: a list of quantized activations is refused, and output quantizers are
    not asked for.

        first_and_last = tf_fpq.QuantRule("stem_conv|logits")  # 8 bits
        rest = tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)
        student = tf_fpq.quantize_model(model, [first_and_last, rest])

    Attributes:
      pattern: Regular expression for `re.fullmatch`.
      layer_type: Class of the layer or its name ("DepthwiseConv2D"); None matches every class.
      weight_bits: Width of the kernel, 2 to 8, or None: it stays float, and so cannot be exported.
      activation_bits: Width of the layer's input, 2 to 8, or None: it stays float, and so cannot be
        exported.
      per_channel: One step size per channel of the kernel, or one for all; None is the quantizer's
        own (see its config).
      config: An instance of a `QuantizeConfig`, or None: the config of
        `quantize_model(quantizer=...)`. It decides the weights' widths and granularity in place of
        the rule, and if it has `activation_bits` also that.
    """

    pattern: str = ".*"
    _: dataclasses.KW_ONLY
    layer_type: type | str | None = None
    weight_bits: int | None = 8
    activation_bits: int | None = 8
    per_channel: bool | None = None
    config: Any = None

    def __post_init__(self) -> None:
        if self.config is not None:
            self._take_config()
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) is not None:
                check_bits(name, getattr(self, name))
        if isinstance(self.layer_type, type):
            object.__setattr__(self, "layer_type", self.layer_type.__name__)
        if not isinstance(self.layer_type, str | None):
            raise ValueError(
                "layer_type must be a class, its name or None. Received:"
                f" layer_type={self.layer_type!r}."
            )
        if self.per_channel not in (True, False, None):
            raise ValueError(
                "per_channel must be True, False or None. Received:"
                f" per_channel={self.per_channel!r}."
            )
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"pattern must be a regular expression ({error}). Received:"
                f" pattern={self.pattern!r}."
            ) from error

    def _take_config(self) -> None:
        """Takes over what the config decides."""
        if isinstance(self.config, type) or not hasattr(self.config, "get_weights_and_quantizers"):
            raise ValueError(
                "config must be an instance of a QuantizeConfig (tf_fpq's or a subclass of"
                f" tfmot.quantization.keras.QuantizeConfig). Received: config={self.config!r}."
            )
        decided = ["weight_bits", "per_channel"] + ["activation_bits"] * hasattr(
            self.config, "activation_bits"
        )
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name in decided and given not in (
                field.default,
                getattr(self.config, field.name, field.default),
            ):
                raise ValueError(
                    f"{field.name} is decided by config; give it to the config instead. Received:"
                    f" {field.name}={given!r}."
                )
        for name in ("weight_bits", "activation_bits"):
            object.__setattr__(self, name, getattr(self.config, name, getattr(self, name)))

    @property
    def scheme(self) -> str:
        """The widths, as in "W4A4"; "W32" and "A32" are float."""
        return f"W{self.weight_bits or 32}A{self.activation_bits or 32}"

    def matches(self, name: str, layer_type: str | None = None) -> bool:
        """Whether the rule matches a layer of this name and class."""
        return re.fullmatch(self.pattern, name) is not None and self.layer_type in (
            None,
            layer_type,
        )

    def __str__(self) -> str:
        kind = f", layer_type={self.layer_type}" if self.layer_type else ""
        config = f", config={type(self.config).__name__}" if self.config is not None else ""
        return f"{self.pattern!r}{kind}{config} -> {self.scheme}"


def check_rules(rules: Any) -> list[QuantRule]:
    """The rules as a list.

    Raises:
      TypeError: If `rules` is anything but rules in a sequence, such as one rule or a dict.
    """
    found = None if isinstance(rules, QuantRule | Mapping | str) else _listed(rules)
    if found is None or not all(isinstance(rule, QuantRule) for rule in found):
        raise TypeError(
            "rules must be a list of QuantRule, such as [QuantRule('stem|logits'), QuantRule('.*',"
            f" weight_bits=4, activation_bits=4)]. Received: rules={rules!r}."
        )
    return found


def _listed(things: Any) -> list[Any] | None:
    return list(things) if isinstance(things, Iterable) else None


def match_rules(
    rules: Iterable[QuantRule], layers: Mapping[str, str], others: Mapping[str, str] | None = None
) -> dict[str, QuantRule]:
    """Returns the first matching rule of each layer that has one.

    Args:
      rules: The rules.
      layers: Class by name of the layers with a kernel.
      others: Class by name of further layers, for rules with a config.

    Raises:
      TypeError: If `rules` is no list of rules.
      ValueError: If a rule matches no layer: most likely a typing error, and it would do nothing.
    """
    rules, others = check_rules(rules), others or {}
    idle = [
        rule
        for rule in rules
        if not any(rule.matches(*layer) for layer in _choice(rule, layers, others).items())
    ]
    if idle:
        shown = {**layers, **(others if any(rule.config is not None for rule in idle) else {})}
        listed = ", ".join(f"{name} ({kind})" for name, kind in shown.items())
        raise ValueError(
            f"These rules match no layer with a kernel: {'; '.join(map(str, idle))}. A pattern must"
            f" match the whole name. Received: layers {listed or '(none)'}."
        )
    chosen: dict[str, QuantRule] = {}
    for rule in rules:
        matched = {
            name for name, kind in _choice(rule, layers, others).items() if rule.matches(name, kind)
        }
        chosen.update(dict.fromkeys(matched - set(chosen), rule))
    return {name: chosen[name] for name in {**layers, **others} if name in chosen}


def _choice(
    rule: QuantRule, layers: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, str]:
    return {**layers, **(others if rule.config is not None else {})}


def describe_rules(
    rules: Iterable[QuantRule], layers: Mapping[str, str], others: Mapping[str, str] | None = None
) -> str:
    """What each rule decides, one line a rule.

    Behind it stand the layers with a kernel that no rule decides.
    """
    chosen = match_rules(rules, layers, others)
    lines = []
    for rule in rules:
        names = [name for name, winner in chosen.items() if winner is rule]
        lines.append(f"{rule}: {', '.join(names) or 'nothing, earlier rules match first'}")
    rest = [name for name in layers if name not in chosen]
    return "\n".join([*lines, *([f"no rule, float kernel: {', '.join(rest)}"] if rest else [])])
