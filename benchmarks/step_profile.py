r"""Where the time of a training step goes: milliseconds by kind of operation, from a trace of
TensorFlow's profiler.

    python -m benchmarks.step_profile --model=resnet20 --variants=float,lsq,fpq

One thread. The variants take turns. The time of an operation is its shortest over the steps, so
that a busy machine disturbs less; operations that do not run in every step (noise) count by how
often they ran.
"""

from collections.abc import Callable, Iterable, Sequence
import itertools
import pathlib
import re
import tempfile

from absl import flags
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks import step_time
from tf_fpq import programs

# Kinds of operations by words in their types; the first kind that fits.
KINDS: dict[str, tuple[str, ...]] = {
    "convolution, forward": ("Conv2D", "DepthwiseConv2dNative"),
    "convolution, by input": ("BackpropInput",),
    "convolution, by kernel": ("BackpropFilter",),
    "batch norm": ("FusedBatchNorm",),
    "quantize": ("QuantizeAndDequantize", "XlaLaunch"),
    "random numbers": ("RandomUniform",),
    # Before the kind of Mul: MatMul is the quantizers' sums of products, and the logits'.
    "reduce": ("Sum", "Mean", "L2Loss", "MatMul"),
    "multiply, divide": ("Mul", "RealDiv"),
    "add, subtract": ("Add", "Sub"),
    "round, clip, ReLU": ("Round", "Minimum", "Maximum", "Relu"),
    "compare, cast, select": ("Less", "Greater", "Equal", "LogicalAnd", "Cast", "Select"),
}
_GRADIENT_KINDS = ("convolution, by input", "convolution, by kernel")
# What XLA has compiled; a trace has no name of its place.
_COMPILED = "CpuExecutable::ExecuteAsyncOnStream"
# Operations that contain others, or wait for them.
_CONTAINERS = ("If", "While", "PartitionedCall", "StatefulPartitionedCall", "IteratorGetNext")


def kind_of(operation: str) -> str:
    """The kind of an operation's type."""
    order = [*_GRADIENT_KINDS, *(kind for kind in KINDS if kind not in _GRADIENT_KINDS)]
    return next((kind for kind in order if any(word in operation for word in KINDS[kind])), "other")


def by_kind(events: Iterable[tuple[str, float]], steps: int) -> dict[str, float]:
    """Milliseconds per step of each kind.

    Args:
      events: `(node name:operation type, milliseconds)` of every operation that ran in the trace.
      steps: Steps in the trace.
    """
    durations: dict[str, list[float]] = {}
    for name, duration in events:
        durations.setdefault(name, []).append(duration)
    totals = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, found in durations.items():
        totals[kind_of(name.rsplit(":", 1)[1])] += min(found) * len(found) / steps
    return totals


def _is_operation(operation: str) -> bool:
    return re.fullmatch(r"_?[A-Za-z]\w*", operation) is not None and operation not in _CONTAINERS


def _events(folder: str) -> Iterable[tuple[str, float]]:
    space = xplane_pb2.XSpace()
    space.ParseFromString(next(pathlib.Path(folder).rglob("*.xplane.pb")).read_bytes())
    compiled = itertools.count()  # in the order of a step, which is the same in each
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if name == _COMPILED:
                    name = f"compiled_{next(compiled)}:XlaLaunch"
                operation = name.rsplit(":", 1)[-1]
                if ":" in name and "::" not in name and _is_operation(operation):
                    yield name, event.duration_ps / 1e9


def profile(
    model_name: str, variants: Sequence[str], settings: step_time.Settings, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds per step of each variant by kind of operation; the variants take turns, a step
    each.
    """
    steps = {variant: step_time.make_step(model_name, variant, settings) for variant in variants}
    events: dict[str, list[tuple[str, float]]] = {variant: [] for variant in variants}
    for step in steps.values():
        step(), step()  # trace, then allocate
    for _ in range(rounds):
        for variant, step in steps.items():
            events[variant] += _trace(step)
    return {variant: by_kind(found, rounds) for variant, found in events.items()}


def _trace(step: Callable[[], float]) -> list[tuple[str, float]]:
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options=options):
            step()
        return list(_events(folder))


def table(profiles: dict[str, dict[str, float]]) -> str:
    """Markdown: a row per kind, a column per variant."""
    rows = [["ms per step", *profiles], ["---", *["---:"] * len(profiles)]]
    for kind in [*KINDS, "other"]:
        rows.append([kind, *(f"{found[kind]:.1f}" for found in profiles.values())])
    rows.append(["**sum**", *(f"**{sum(found.values()):.1f}**" for found in profiles.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(_: list[str]) -> None:
    """Profiles and prints."""
    settings = step_time.Settings(batch_size=flags.FLAGS.batch_size)
    step_time.configure(settings)
    print(table(profile(flags.FLAGS.model, flags.FLAGS.variants, settings, flags.FLAGS.rounds)))


def _define_flags() -> None:
    flags.DEFINE_string("model", "resnet20", "Network of experiments/models.")
    flags.DEFINE_list(
        "variants", ["float", "lsq", "lsq+kd", "fpq", "cr", "fpq+cr"], "Variants of step_time."
    )
    flags.DEFINE_integer("rounds", 10, "Steps of each variant.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
