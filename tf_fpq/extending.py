"""The public way to make a layer class of your own known to the library."""

from typing import Any

from tf_fpq import roles
from tf_fpq.conversion import canonical
from tf_fpq.conversion.rewriter import Rewrite


def register_layer(
    layer_class: type,
    *,
    rewrite: Rewrite | None = None,
    role: roles.Role | None = None,
    kernel: roles.Kernel | None = None,
) -> None:
    """Makes a layer class of your own known to `quantize_model` and `check`, in one of two ways.

    1.  It computes what a few Keras layers compute: `rewrite` says how. It then is those layers, in
        the student and in the file, and nothing else is needed.

            def gate(rewriter, layer, name, x):
                part = rewriter.name(name, "mask")
                mask = rewriter.make(keras.layers.Activation, part, activation="sigmoid")(x)
                return rewriter.make(keras.layers.Multiply, name)([x, mask])

            tf_fpq.register_layer(Gate, rewrite=gate)

    2.  It is an operator that TFLite has and Keras has not: `role` says what it does to the grid of
        its input. To be exported it needs its operator, `tflite_export.register_operator`.

            tf_fpq.register_layer(HardSwish, role=tf_fpq.Role.FUNCTION)

    A layer that is only to be trained with its weights on grids needs neither, but a config:
    `QuantRule(layer_type=Mine, config=...)`.

    Args:
      layer_class: The class; subclasses are classes of their own. Its instances must be copies of
        their `get_config()`, and the class registered with Keras for the student to be saved. A
        class that is registered again changes its ways.
      rewrite: `rewrite(rewriter, layer, name, x)` returns what `layer(x)` returns, made by
        `rewriter.make(layer_class, name, weights, **config)`, where `weights` are the arrays the
        new layer starts with. Names are `name`, that of the call, and `rewriter.name(name, part)`;
        a layer with a kernel should have `layer.name`, which rules and the teacher's features go
        by.
      role: A `tf_fpq.Role`.
      kernel: For `Role.KERNEL`: the weights that rules quantize.

    Raises:
      TypeError: If `layer_class` is no class.
      ValueError: Unless exactly one of `rewrite` and `role` is given, and `kernel` with
        `Role.KERNEL` only.
    """
    if not isinstance(layer_class, type):
        raise TypeError(f"layer_class must be a class. Received: layer_class={layer_class!r}.")
    if (rewrite is None) == (role is None):
        raise ValueError(
            "Give rewrite, how the layer is written in Keras layers, or role, what it does to a"
            f" grid, and not both. Received: rewrite={rewrite!r}, role={role!r}."
        )
    if (role is roles.Role.KERNEL) != (kernel is not None):
        raise ValueError(
            f"kernel is needed for Role.KERNEL and for no other. Received: role={role},"
            f" kernel={kernel}."
        )
    tables: dict[str, tuple[dict[type, Any], Any]] = {
        "rewrite": (canonical.LAYERS, rewrite),
        "role": (roles.ROLES, role),
        "kernel": (roles.KERNELS, kernel),
    }
    for table, row in tables.values():
        table.pop(layer_class, None)
        if row is not None:
            table[layer_class] = row
