"""What is known, while a function is traced, about where it will run and what it is made of."""

from collections.abc import Iterator
import contextlib
import contextvars

import tensorflow as tf

from tf_fpq.native import library

# Of the thread that traces: a distributed step is traced by several that take turns.
_plain_only = contextvars.ContextVar("plain_only", default=False)
_in_training_step = contextvars.ContextVar("in_training_step", default=False)


@contextlib.contextmanager
def _within(place: contextvars.ContextVar[bool]) -> Iterator[None]:
    token = place.set(True)
    try:
        yield
    finally:
        place.reset(token)


def plain_formula() -> contextlib.AbstractContextManager[None]:
    """Within the context quantizers compute by the plain formula, `grid_kernels.PLAIN`."""
    return _within(_plain_only)


def training_step() -> contextlib.AbstractContextManager[None]:
    """Within the context operations of our own may be used.

    Elsewhere they are not: a model that is saved as a graph must load where nothing was compiled.
    """
    return _within(_in_training_step)


def wants_plain_formula() -> bool:
    """Whether this is within a `plain_formula()`."""
    return _plain_only.get()


def may_use_native() -> bool:
    """Whether what is traced now may contain operations of `tf_fpq.native`."""
    return (
        _in_training_step.get()
        and not wants_plain_formula()
        and on_cpu_kernels()
        and library.operations() is not None
    )


def on_cpu_kernels() -> bool:
    """Whether what is traced now runs by TensorFlow's own kernels for CPUs."""
    return not _under_xla() and not tf.config.list_logical_devices("GPU")


def _under_xla() -> bool:
    """Whether what is traced now is compiled by XLA (`jit_compile=True`), at any level."""
    # XLA marks the graph that it compiles by a control flow context, and TensorFlow has no public
    # question for it. A `tf.function` inside has a graph of its own, hence the way outwards.
    graph = tf.compat.v1.get_default_graph() if not tf.executing_eagerly() else None
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def is_training_batch_norm(operation: tf.Operation) -> bool:
    """Whether an operation is a batch norm by the statistics of its batch, channels last.

    On a CPU its outputs from the fourth on are mean and variance (not Bessel's) of the batch.
    """
    return (
        operation.type == "FusedBatchNormV3"
        and operation.get_attr("is_training")
        and operation.get_attr("data_format") == b"NHWC"
    )
