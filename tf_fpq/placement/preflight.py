"""The pre-flight: what quantization would do with every layer of a model.

Nothing is quantized for it.

`quantize_model` refuses a model for the same reasons, and lists them all at once; `check` lists the
other layers too.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import re
from typing import Any

from tf_fpq import graph, roles
from tf_fpq.conversion.prepare import prepare
from tf_fpq.graph import Call
from tf_fpq.keras_compat import AnyModel, keras
from tf_fpq.placement import grids, rule_configs
from tf_fpq.placement.rules import QuantRule, match_rules
from tf_fpq.roles import Role

QUANTIZED, PASSED_THROUGH, LEFT_FLOAT, NOT_SUPPORTED = (
    "quantized",
    "passed through",
    "left float",
    "not supported",
)
_COLUMNS = ("layer", "class", "status", "weight bits", "activation bits", "reason")


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """What becomes of one layer.

    Attributes:
      layer: Its name.
      layer_class: Its class.
      status: "quantized" (integer weights, or an output on a grid of its own), "passed through"
        (part of the operator before it, or it only moves integers), "left float" (no rule asks for
        integers: the student trains but cannot be exported), or "not supported".
      reason: Why, and for the last two what to do about it.
      weight_bits: Width of its kernel, or None.
      activation_bits: Width of what it reads, or None if that is on no grid of its own.
      has_operator: Whether an integer operator is known for it; a class that only a rule's config
        makes possible has none until the exporter is told one.
    """

    layer: str
    layer_class: str
    status: str
    reason: str = ""
    weight_bits: int | None = None
    activation_bits: int | None = None
    has_operator: bool = True


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """All layers of a model in execution order; `str` of it is a table.

        report = tf_fpq.check(model, rules)
        assert report.ok, report

    Attributes:
      model: Name of the model.
      rows: The layers, as `quantize_model` sees them: nested models and operators dissolved,
        combined layers taken apart.
    """

    model: str
    rows: tuple[LayerCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether `quantize_model` takes the model."""
        return not self.of(NOT_SUPPORTED)

    @property
    def exportable(self) -> bool:
        """Whether the student has an integer form throughout."""
        return self.ok and not self.of(LEFT_FLOAT) and all(row.has_operator for row in self.rows)

    def of(self, status: str) -> tuple[LayerCheck, ...]:
        """The rows of one status."""
        return tuple(row for row in self.rows if row.status == status)

    def to_json(self) -> str:
        """The report as JSON: `{"model": ..., "ok": ..., "exportable": ..., "rows": [...]}`."""
        rows = [_renamed(dataclasses.asdict(row)) for row in self.rows]
        return json.dumps(
            {"model": self.model, "ok": self.ok, "exportable": self.exportable, "rows": rows},
            indent=2,
        )

    def __str__(self) -> str:
        lines = [_COLUMNS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS) - 1)]
        text = [
            "  ".join([*(c.ljust(w) for c, w in zip(line, widths)), line[-1]]).rstrip()
            for line in lines
        ]
        counts = [
            f"{len(self.of(status))} {status}"
            for status in (QUANTIZED, PASSED_THROUGH, LEFT_FLOAT, NOT_SUPPORTED)
        ]
        return "\n".join([*text, f"{self.model}: {', '.join(counts)}"])


def check(model: AnyModel, rules: Sequence[QuantRule] | None = None) -> CheckReport:
    """Says what `quantize_model(model, rules)` would do with every layer; changes nothing.

        print(tf_fpq.check(model, rules))

    Args:
      model: As for `quantize_model`.
      rules: As for `quantize_model`; W8A8 everywhere by default.

    Returns:
      The report.

    Raises:
      TypeError: If `model` is no Keras model or a subclassed one.
      ValueError: If `model` is not built or parts of it cannot be copied, or a rule matches
        nothing.
    """
    model = prepare(model)
    kernels, others = rule_configs.kernels(model), rule_configs.others(model)
    chosen = (
        dict.fromkeys(kernels, QuantRule())
        if rules is None
        else match_rules(rules, kernels, others)
    )
    return CheckReport(model.name, tuple(_Checker(model, chosen).rows()))


def parse_rule(text: str) -> QuantRule:
    """The rule that `text` writes, as in "stem|logits=W8A8"; a width of 32 is float.

    Raises:
      ValueError: If it is not written so, or a width is out of range.
    """
    pattern, _, scheme = text.rpartition("=")
    widths = re.fullmatch(r"W(\d+)A(\d+)", scheme)
    if not pattern or widths is None:
        raise ValueError(f"a rule must be written PATTERN=W4A4. Received: {text!r}.")
    weight_bits, activation_bits = (None if bits == "32" else int(bits) for bits in widths.groups())
    return QuantRule(pattern, weight_bits=weight_bits, activation_bits=activation_bits)


class _Checker:
    """Looks up each layer of one prepared model in its plan."""

    def __init__(self, model: keras.Model, rules: Mapping[str, QuantRule]):
        self._model, self._rules, self._plan = model, rules, rule_configs.plan(model, rules)
        bits = {name: rule.activation_bits or grids.FLOAT for name, rule in rules.items()}
        self._widths = grids.group_widths(model, self._plan, bits)
        self._default = grids.FLOAT if bits and not any(bits.values()) else grids.DEFAULT_BITS
        self._joined: dict[int, str] = {}  # tensor without a grid -> layer that begins its operator

    def rows(self) -> list[LayerCheck]:
        rows = [
            LayerCheck(
                name,
                "InputLayer",
                QUANTIZED if self._width(tensor) else LEFT_FLOAT,
                activation_bits=self._width(tensor),
            )
            for tensor, name in zip(self._model.inputs, self._model.input_names, strict=True)
        ]
        seen = set()
        for call in graph.calls(self._model):
            row = self._row(call)
            if call.layer.name not in seen:
                rows.append(row)
            seen.add(call.layer.name)
        return rows

    def _row(self, call: Call) -> LayerCheck:
        layer, kind = call.layer, roles.role(call.layer)
        row = LayerCheck(layer.name, type(layer).__name__, QUANTIZED)
        if reason := self._plan.problems.get(layer.name):
            return dataclasses.replace(row, status=NOT_SUPPORTED, reason=reason)
        first, output = id(call.inputs[0]), call.outputs[0]
        begins = self._joined.get(first, layer.name)
        if self._is_open(call):
            self._joined[id(output)] = begins
        if begins != layer.name:
            return dataclasses.replace(
                row, status=PASSED_THROUGH, reason=f"part of the operator of {begins}"
            )
        width = max((self._width(tensor) or 0 for tensor in call.inputs), default=0) or None
        row = dataclasses.replace(row, activation_bits=width)
        rule = self._rules.get(layer.name)
        if rule is not None and rule.config is not None:
            row = dataclasses.replace(row, weight_bits=rule_configs.weight_bits(layer, rule.config))
            if kind is None:
                return dataclasses.replace(
                    row, reason=rule_configs.WITHOUT_OPERATOR, has_operator=False
                )
        if kind is Role.KERNEL:
            return self._kernel(row)
        if layer.name not in self._rules and type(layer) in roles.MINOR_KERNELS:
            return dataclasses.replace(row, weight_bits=grids.DEFAULT_BITS)
        if width is None:
            return dataclasses.replace(
                row, status=LEFT_FLOAT, reason="the rules leave what it reads float"
            )
        if kind in (Role.SAME_GRID, Role.JOINT_GRID):
            return dataclasses.replace(row, status=PASSED_THROUGH, reason=kind.value.split(":")[0])
        return row

    def _is_open(self, call: Call) -> bool:
        """Whether the operator goes on after `call`: its output is on no grid."""
        kept = roles.role(call.layer) in (Role.SAME_GRID, Role.AVERAGE, Role.JOINT_GRID)
        return not kept and id(call.outputs[0]) not in self._plan.needs_grid

    def _kernel(self, row: LayerCheck) -> LayerCheck:
        rule = self._rules.get(row.layer)
        if rule is None:
            reason = (
                "no rule matches it, so it keeps a float kernel and the student cannot be exported;"
                " add a rule"
            )
            return dataclasses.replace(row, status=LEFT_FLOAT, reason=reason)
        bits = rule.weight_bits if rule.config is None else row.weight_bits
        row = dataclasses.replace(row, weight_bits=bits)
        if bits is None or row.activation_bits is None:
            reason = f"the rule {rule} leaves it float; the student cannot be exported"
            return dataclasses.replace(row, status=LEFT_FLOAT, reason=reason)
        return row

    def _width(self, tensor: Any) -> int | None:
        return self._widths.get(self._plan.find(id(tensor)), self._default) or None


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {"class" if key == "layer_class" else key: value for key, value in row.items()}


def _cells(row: LayerCheck) -> tuple[str, ...]:
    widths = ("" if bits is None else str(bits) for bits in (row.weight_bits, row.activation_bits))
    return (row.layer, row.layer_class, row.status, *widths, row.reason)
