r"""What a training step costs, as a ratio to the step of the float network: paired, interleaved,
medians.

    python -m benchmarks.step_time --json=step_time.json --plot=step_time.png
    python -m benchmarks.step_time --threads=1,2 --widths=16,64   # ResNet-18 starts with 64
    python -m benchmarks.step_time --device=gpu --json=gpu.json   # float32, mixed_float16 and XLA

The first takes about ten minutes on a quiet machine, half of them for the memory (--nomemory).

All variants of a case (a network, its width, threads and mode) are built in one process and take
turns, `steps` steps at a time, for `rounds` rounds; the order rotates. A ratio is the median over
rounds of a variant's time divided by the float step's time in the same round, so a machine that is
busy with something else for a while disturbs both. On one thread of a CPU the ratio is of CPU time,
else of wall time. Views for CR are made beforehand: this is the step, not the input pipeline.
"""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import multiprocessing
import pathlib
import queue as queue_lib
import statistics
import sys
import time
from typing import Any

from absl import flags
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tqdm

from experiments import models, records
from experiments.evidence import process_memory
import tf_fpq
from tf_fpq import programs
from tf_fpq.keras_compat import keras
from tf_fpq.methods import presets
from tf_fpq.native import library
from tf_fpq.training.qat_model import QatModel

# Methods of each variant, by the names of `presets.methods_from_names`; None are not ours.
VARIANTS: dict[str, str | None] = {
    "float": None,
    "tfmot": None,
    "lsq": "none",
    "lsq+kd": "kd",
    "fpq": "fpq",
    "cr": "cr",
    "fpq+cr": "fpq,cr",
    "sam": "sam",
}


# Mixed precision policies, and XLA at float32.
MODES = ("float32", "mixed_float16", "mixed_bfloat16", "xla")
MODES_OF_DEVICE = {"cpu": ["float32"], "gpu": ["float32", "mixed_float16", "xla"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is timed; the flags of the same names."""

    batch_size: int = 128
    image_size: int = 32
    bits: int = 4
    width: int = 16
    threads: int = 1
    device: str = "cpu"
    mode: str = "float32"
    teacher_dtype: str | None = None

    def label(self, model_name: str) -> str:
        """Name of the case in tables and files: the network's, and what is not the default."""
        parts = [model_name]
        parts += [f"width {self.width}"] * (self.width != 16)
        parts += [f"{self.threads} threads"] * (self.threads != 1)
        return ", ".join(parts + [self.mode] * (self.mode != "float32"))

    @property
    def clock(self) -> str:
        """Whose ratio is meant."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"


def make_step(model_name: str, variant: str, settings: Settings) -> Callable[[], float]:
    """A function that makes one training step of a variant and returns its loss.

    Raises:
      ValueError: If there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variants must be of {', '.join(VARIANTS)}. Received: {variant!r}.")
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("float32" if settings.mode == "xla" else settings.mode)
    shape = (settings.image_size, settings.image_size, 3)
    network = models.build(model_name, shape, 10, settings.width)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(settings.batch_size, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, settings.batch_size)
    model = _model(network, variant, images, settings)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=settings.mode == "xla",
    )
    two_views = "cr" in (VARIANTS[variant] or "")
    x = {"weak": images, "strong": images[::-1]} if two_views else images
    batches: Iterator[Any] = iter(tf.data.Dataset.from_tensors((x, labels)).repeat())
    train = model.make_train_function()
    return lambda: float(train(batches)["loss"])


def _model(
    network: keras.Model, variant: str, images: np.ndarray, settings: Settings
) -> keras.Model:
    if variant == "float":
        return network
    if variant == "tfmot":
        return tfmot.quantization.keras.quantize_model(network)
    rules = [
        tf_fpq.QuantRule("stem_conv|logits"),
        tf_fpq.QuantRule(".*", weight_bits=settings.bits, activation_bits=settings.bits),
    ]
    student = tf_fpq.quantize_model(network, rules)
    tf_fpq.calibrate(student, images[:32], verbose=0)
    methods = presets.methods_from_names(VARIANTS[variant] or "")
    return QatModel(student, network, methods, teacher_dtype=settings.teacher_dtype)


def time_variants(
    model_name: str, variants: list[str], settings: Settings, rounds: int, steps: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds per step, `{variant: {"cpu": [one per round], "wall": [...]}}`."""
    functions = {}
    for variant in tqdm.tqdm(variants, desc=f"{model_name}: tracing", file=sys.stderr):
        functions[variant] = make_step(model_name, variant, settings)
        functions[variant](), functions[variant]()  # trace, then allocate
    times: dict[str, dict[str, list[float]]] = {
        variant: {"cpu": [], "wall": []} for variant in variants
    }
    for index in tqdm.trange(rounds, desc=f"{model_name}: rounds", file=sys.stderr):
        turn = index % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(steps):
                functions[variant]()  # returns the loss, so the device has finished
            times[variant]["cpu"].append((time.process_time() - cpu) / steps)
            times[variant]["wall"].append((time.perf_counter() - wall) / steps)
    return times


def summarize(times: dict[str, dict[str, list[float]]], clock: str) -> dict[str, Any]:
    """Paired ratios to the float step with their quartiles, and median milliseconds."""
    base = times["float"][clock]
    paired = {
        v: [a / b for a, b in zip(times[v][clock], base, strict=True)]
        for v in times
        if v != "float"
    }
    milliseconds = {
        clock_name: {v: round(1000 * statistics.median(times[v][clock_name]), 2) for v in times}
        for clock_name in ("cpu", "wall")
    }
    return {
        "ratios": {
            variant: round(statistics.median(values), 3) for variant, values in paired.items()
        },
        "quartiles": {
            v: [round(float(q), 3) for q in np.quantile(x, [0.25, 0.75])] for v, x in paired.items()
        },
        "cpu_ms": milliseconds["cpu"],
        "wall_ms": milliseconds["wall"],
    }


def configure(settings: Settings) -> None:
    """Threads and device of this process; before TensorFlow's first operation.

    Raises:
      ValueError: If there is no GPU and one is asked for.
    """
    tf.config.threading.set_intra_op_parallelism_threads(settings.threads)
    tf.config.threading.set_inter_op_parallelism_threads(settings.threads)
    if settings.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise ValueError("device=gpu, but TensorFlow sees no GPU. Received: device='gpu'.")


def _peak_of_process(model_name: str, variant: str, settings: Settings) -> float:
    before = process_memory.peak_mib()
    step = make_step(model_name, variant, settings)
    for _ in range(3):
        step()
    if settings.device == "gpu":
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return process_memory.peak_mib() - before


def _call(function: Callable[..., Any], settings: Settings, arguments: Any, queue: Any) -> None:
    configure(settings)
    queue.put(function(*arguments))


def in_process(function: Callable[..., Any], settings: Settings, *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own, configured for `settings`.

    Raises:
      RuntimeError: If it fails there.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_call, args=(function, settings, arguments, queue))
    process.start()
    while True:
        try:
            result = queue.get(timeout=1.0)
            break
        except queue_lib.Empty:
            if not process.is_alive():
                raise RuntimeError(
                    f"{function.__name__}{arguments} failed with exit code {process.exitcode}."
                ) from None
    process.join()
    return result


def peak_memory(model_name: str, variant: str, settings: Settings) -> float:
    """MiB that three steps of a variant need at their peak, above an idle process that has imported
    everything.
    """
    return round(in_process(_peak_of_process, settings, model_name, variant, settings), 1)


def plot(results: dict[str, Any], path: str) -> None:
    """Bar chart of the ratios, a group of bars per network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (6 * len(results), 3.5)
    figure, axes = pyplot.subplots(1, len(results), figsize=size, squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        bars = axis.bar(list(result["ratios"]), list(result["ratios"].values()), color="steelblue")
        axis.bar_label(bars, fmt="%.2f")
        axis.margins(y=0.12)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(name)
        axis.set_ylabel("time of a step / float step")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _print_table(name: str, result: dict[str, Any]) -> None:
    print(
        f"\n{name:32}{'ratio':>8}{'quartiles':>16}{'CPU ms':>10}{'wall ms':>10}{'MiB':>10}"
        f"{'MiB/float':>10}"
    )
    for variant, cpu in result["cpu_ms"].items():
        ratio = result["ratios"].get(variant, 1.0)
        low, high = result["quartiles"].get(variant, (1.0, 1.0))
        wall = result["wall_ms"][variant]
        line = f"{variant:32}{ratio:8.3f}{low:9.3f}-{high:.3f}{cpu:11.1f}{wall:10.1f}"
        if "peak_mib" in result:
            peak = result["peak_mib"]
            line += f"{peak[variant]:10.1f}{peak[variant] / peak['float']:10.2f}"
        print(line)


def measure(model_name: str, variants: list[str], settings: Settings) -> dict[str, Any]:
    """Times, and with --memory peaks, of one case."""
    values = flags.FLAGS
    times = in_process(
        time_variants, settings, model_name, variants, settings, values.rounds, values.steps
    )
    result = summarize(times, settings.clock)
    if values.memory:
        bar = tqdm.tqdm(variants, desc=f"{settings.label(model_name)}: memory", file=sys.stderr)
        result["peak_mib"] = {name: peak_memory(model_name, name, settings) for name in bar}
    rounds = {"rounds": values.rounds, "steps": values.steps, "tensorflow": tf.__version__}
    return {**result, "settings": {**dataclasses.asdict(settings), **rounds}}


def cases() -> Iterator[tuple[str, Settings]]:
    """Network and settings of every case that the flags ask for."""
    values = flags.FLAGS
    modes = values.modes or MODES_OF_DEVICE[values.device]
    for name, mode, width, threads in itertools.product(
        values.models, modes, map(int, values.widths), map(int, values.threads)
    ):
        yield (
            name,
            Settings(
                batch_size=values.batch_size,
                image_size=values.image_size,
                bits=values.bits,
                width=width,
                threads=threads,
                device=values.device,
                mode=mode,
                teacher_dtype=values.teacher_dtype,
            ),
        )


def main(_: list[str]) -> None:
    """Times, prints, writes after every case."""
    variants = ["float", *(variant for variant in flags.FLAGS.variants if variant != "float")]
    results: dict[str, Any] = {}
    if library.operations() is None:
        print("Without the operations in C++; `python -m tf_fpq.native` compiles them.")
    for name, settings in cases():
        label = settings.label(name)
        results[label] = measure(name, variants, settings)
        _print_table(label, results[label])
        if flags.FLAGS.json:
            records.write_json(pathlib.Path(flags.FLAGS.json), results)
    if flags.FLAGS.plot:
        plot(results, flags.FLAGS.plot)


def _define_flags() -> None:
    """Defines the flags: here and not on import, as other programs have some of the same names."""
    flags.DEFINE_list(
        "models", ["resnet20", "mobilenet_v2_tiny"], "Networks of experiments/models."
    )
    flags.DEFINE_list("widths", ["16"], "Channels of the first stage; 64 is ResNet-18's.")
    flags.DEFINE_list(
        "modes",
        None,
        f"Out of {', '.join(MODES)}; by default float32, and on a GPU mixed_float16 and xla too.",
    )
    flags.DEFINE_list(
        "variants", [name for name in VARIANTS if name != "sam"], "Variants to time beside `float`."
    )
    flags.DEFINE_integer("rounds", 9, "Rounds, in which every variant has its turn.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "Steps of a turn.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
    flags.DEFINE_integer("image_size", 32, "Height and width of an image.", lower_bound=8)
    flags.DEFINE_integer(
        "bits", 4, "Bits of weights and activations; the first and the last layer have 8.", 2, 8
    )
    flags.DEFINE_list(
        "threads",
        ["1"],
        "Threads of an operation, one case each; 0 for as many as there are cores.",
    )
    flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where the step runs.")
    flags.DEFINE_enum(
        "teacher_dtype",
        None,
        ["float16", "bfloat16"],
        "Precision of the teacher's forward pass; default float32.",
    )
    flags.DEFINE_bool(
        "memory", True, "Also measure peak memory, each variant in a process of its own."
    )
    flags.DEFINE_string("json", None, "File for the results.")
    flags.DEFINE_string("plot", None, "PNG file for a bar chart.")


if __name__ == "__main__":
    _define_flags()
    programs.run(main)
