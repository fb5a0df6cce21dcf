"""The public way to give a layer class of your own its TFLite operator."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from tflite_export import kernels
from tflite_export.flatbuffer import operator_options, operator_versions
from tflite_export.kernels import base
from tflite_export.lowering import operators
from tflite_export.lowering.network import Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorKind:
    """A kind of TFLite operator that this package does not have.

    Attributes:
      name: TFLite's name, such as "ABS".
      kernel: `kernel(operator, tensors, rounding)`, the operator's integer arithmetic as the
        runtimes have it; see `tflite_export.kernels`. Verification compares it with the
        interpreter, code for code.
      options_class: Class of its options in TFLite's schema, such as "AbsOptions", or None.
      options: Names of its options with their defaults, see
        `tflite_export.flatbuffer.operator_options`.
      int8_version: Lowest version of the operator that takes int8 tensors.
      runtime: Oldest TensorFlow Lite release that has this version.
    """

    name: str
    kernel: Callable[..., base.Kernel]
    options_class: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    int8_version: int = 2
    runtime: str = operator_versions.OLDEST_RUNTIME


def register_operator(layer_class: type, lower: Start, kind: OperatorKind | None = None) -> None:
    """Gives a layer class of your own its operator, so that `export` takes it.

        def hard_swish(builder, layer, name, sources, output):
            return tflite_export.Pending("HARD_SWISH", sources)

        tflite_export.register_operator(HardSwish, hard_swish)

    Args:
      layer_class: The class. `quantize_model` knows it by `tf_fpq.register_layer`, or by the config
        of a rule.
      lower: `lower(builder, layer, name, sources, output)` returns a `tflite_export.Pending`, or
        where codes only move `builder.add_moved(...)`; arguments as of
        `tflite_export.lowering.network.Start`.
      kind: The operator's kind, if the package does not have it.

    Raises:
      TypeError: If `layer_class` is no class.
      ValueError: If `kind` is one that the package has.
    """
    if not isinstance(layer_class, type):
        raise TypeError(f"layer_class must be a class. Received: layer_class={layer_class!r}.")
    if kind is not None:
        _add_kind(kind)
    operators.STARTS[layer_class] = lower


# Kinds that came by `register_operator`, which may be registered again.
_ADDED: set[str] = set()


def _add_kind(kind: OperatorKind) -> None:
    if kind.name in kernels.KERNELS and kind.name not in _ADDED:
        raise ValueError(
            f"kind must be one that the package does not have; leave it out to use the package's."
            f" Received: kind {kind.name!r}."
        )
    _ADDED.add(kind.name)
    kernels.KERNELS[kind.name] = kind.kernel
    operator_options.OPTIONS[kind.name] = (kind.options_class, dict(kind.options))
    operator_versions.INT8_VERSIONS[kind.name] = kind.int8_version
    operator_versions.RUNTIMES[kind.name, kind.int8_version] = kind.runtime
