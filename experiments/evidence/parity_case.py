"""One Keras 3 application against its conversion to tf_keras: the difference of the logits, and of
every layer by itself.

Measured three times. As the builder makes the model, from random kernels; with weights drawn at
random (every weight but kernels uniform in 0.5 .. 1, so that a forgotten or exchanged one shows);
and with batch norms settled on a few random images, which divides by tiny variances and so carries
each rounding far. Some networks carry it so far that float32 logits mean nothing (EfficientNetV2L
as built: Keras 3 disagrees with itself if the image moves by 1e-7), so each is measured in float64
too, where the logits must agree.
"""

from collections.abc import Iterator, Sequence
import contextlib
import time
from typing import Any

import numpy as np

from experiments.evidence import coverage_case, process_memory
from tf_fpq.conversion import keras3
from tf_fpq.keras_compat import keras as legacy

WAYS = ("built", "drawn", "settled")

Row = dict[str, Any]


def run(name: str) -> Iterator[Row]:
    """Measures one builder of `keras.applications`; yields the row before and after.

    `status` is "passed" if with all weights the logits in float64 are within 1e-5 of the largest
    (or 1), and every layer is within 1e-5 of the largest element it reads or computes, so that
    `from_keras3` takes the network; `logits_ok` says whether the float32 logits are, too.
    """
    row: Row = {
        "name": name,
        "source": "keras",
        "status": "unfinished",
        "stage": "parity",
        "reason": "",
        "seconds": {},
    }
    yield row
    start = time.perf_counter()
    try:
        row |= _measured(name)
        right = all(
            row[way]["layers_ok"] == row[way]["layers"] and row[way]["float64_ok"] for way in WAYS
        )
        row |= {"status": "passed" if right else "failed"}
    except Exception as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    row["seconds"] = {"parity": round(time.perf_counter() - start, 2)}
    row["memory_mib"] = process_memory.peak_mib()
    yield row


def _measured(name: str) -> Row:
    import keras

    def build() -> Any:
        builder = coverage_case.builders("keras")[name]
        return coverage_case.smallest(
            lambda **arguments: builder(classifier_activation=None, **arguments)
        )

    keras.utils.set_random_seed(coverage_case.SEED)
    model = build()
    with _float64():
        double = build()
    images = coverage_case.random_images(model)
    row: Row = {"input": model.input_shape[1], "parameters": int(model.count_params())}
    for way in WAYS:
        if way == "drawn":
            draw(model)
        elif way == "settled":
            coverage_case.settle(model, images)
        double.set_weights([weight.astype(np.float64) for weight in model.get_weights()])
        with _float64():
            (logits,) = keras3.measure(double, images[:2].astype(np.float64)).outputs
        row[way] = _differences(keras3.measure(model, images[:2]))
        row[way] |= {"float64": logits.absolute / max(1.0, logits.largest), "float64_ok": logits.ok}
    return row


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Both Keras make layers in float64."""
    import keras

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    legacy_floatx, legacy_policy = legacy.backend.floatx(), legacy.mixed_precision.global_policy()
    try:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        legacy.backend.set_floatx("float64")
        legacy.mixed_precision.set_global_policy("float64")
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        legacy.backend.set_floatx(legacy_floatx)
        legacy.mixed_precision.set_global_policy(legacy_policy)


def draw(model: Any) -> None:
    """Sets every weight of a Keras 3 model that is no kernel and no table of an input's statistics
    to random numbers in 0.5 .. 1.
    """
    generator = np.random.default_rng(coverage_case.SEED)
    for layer in model.layers:
        if type(layer).__name__ == "Normalization":
            continue
        for weight in layer.weights:
            if "kernel" not in weight.path.split("/")[-1] and weight.dtype == "float32":
                weight.assign(generator.uniform(0.5, 1.0, weight.shape))


def _differences(found: keras3.Parity) -> Row:
    (logits,) = found.outputs
    layer = max(found.layers, key=lambda each: each.absolute / each.allowed)
    return {
        "logits_absolute": logits.absolute,
        "logits_largest": logits.largest,
        "logits_ok": logits.ok,
        "layer": layer.where.split("/")[-1],
        "layer_absolute": layer.absolute,
        "layer_largest": layer.largest,
        "layers": len(found.layers),
        "layers_ok": sum(each.ok for each in found.layers),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; differences relative to the largest element, or 1."""
    near = [sum(row.get(way, {}).get("logits_ok", False) for row in rows) for way in WAYS]
    lines = [
        (
            f"{len(rows)} of {len(coverage_case.builders('keras'))} models run: every layer agrees,"
            " and the logits in float64 with all three weights, in"
            f" {sum(row['status'] == 'passed' for row in rows)}; the logits in float32 in {near[0]}"
            f" as built, in {near[1]} with drawn weights and in {near[2]} with settled ones."
        ),
        "",
        (
            "| model | layers |"
            f" {' | '.join(f'logits, {way} | in float64 | worst layer' for way in WAYS)} | |"
        ),
        f"|---|---|{'---|---|---|' * len(WAYS)}---|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        numbers = [cell for way in WAYS for cell in _cells(row.get(way))]
        layers = row.get("drawn", {}).get("layers", "")
        verdict = f"{row['status']} {row.get('reason', '')}".strip().replace("|", "\\|")
        lines.append(f"| {' | '.join([row['name'], str(layers), *numbers, verdict])} |")
    return "\n".join(lines)


def _cells(found: Row | None) -> list[str]:
    if found is None:
        return [""] * 3
    logits = found["logits_absolute"] / max(1.0, found["logits_largest"])
    layer = found["layer_absolute"] / max(1.0, found["layer_largest"])
    return [f"{number:.1e}" for number in (logits, found["float64"], layer)]
