"""One Keras 3 application against its conversion to tf_keras: the difference of the logits, and of every layer by itself.

Measured three times. As the builder makes the model, from random kernels; with weights drawn at random (every weight but kernels
uniform in 0.5 .. 1, so that a forgotten or exchanged one shows); and with batch norms settled on a few random images, which divides by
tiny variances and so carries each rounding far: there the layers' differences prove the conversion, those of the logits show the
network's condition.
"""

from collections.abc import Iterator, Sequence
import time
from typing import Any

import numpy as np

from experiments import coverage_case
from experiments import memory
from tf_fpq.conversion import keras3

WAYS = ("built", "drawn", "settled")

Row = dict[str, Any]


def run(name: str) -> Iterator[Row]:
    """Measures one builder of `keras.applications`; yields the row before and after.

    `status` is "passed" if with all weights every layer is within 1e-5 of the largest element it reads or computes (or 1), so that
    `from_keras3` takes the network; `logits_ok` says whether the logits are, too.
    """
    row: Row = {"name": name, "source": "keras", "status": "unfinished", "stage": "parity", "reason": "", "seconds": {}}
    yield row
    start = time.perf_counter()
    try:
        row |= _measured(name)
        right = all(row[way]["layers_ok"] == row[way]["layers"] for way in WAYS)
        row |= {"status": "passed" if right else "failed"}
    except Exception as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    row["seconds"] = {"parity": round(time.perf_counter() - start, 2)}
    row["memory_mib"] = memory.peak_mib()
    yield row


def _measured(name: str) -> Row:
    import keras

    builder = coverage_case.builders("keras")[name]
    keras.utils.set_random_seed(coverage_case.SEED)
    model = coverage_case.smallest(lambda **arguments: builder(classifier_activation=None, **arguments))
    images = coverage_case.random_images(model)
    row: Row = {"input": model.input_shape[1], "parameters": int(model.count_params())}
    for way in WAYS:
        if way == "drawn":
            draw(model)
        elif way == "settled":
            coverage_case.settle(model, images)
        row[way] = _differences(keras3.measure(model, images[:2]))
    return row


def draw(model: Any) -> None:
    """Sets every weight of a Keras 3 model that is no kernel and no table of an input's statistics to random numbers in 0.5 .. 1."""
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
    """The rows as a Markdown table."""
    near = [sum(row.get(way, {}).get("logits_ok", False) for row in rows) for way in WAYS]
    lines = [
        f"{len(rows)} of {len(coverage_case.builders('keras'))} models run: every layer agrees in "
        f"{sum(row['status'] == 'passed' for row in rows)}, the logits in {near[0]} as built, in {near[1]} with drawn weights and in "
        f"{near[2]} with settled ones.",
        "",
        f"| model | layers | {' | '.join(f'logits, {way} | relative | worst layer' for way in WAYS)} | |",
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
    relative = found["logits_absolute"] / max(1.0, found["logits_largest"])
    layer = found["layer_absolute"] / max(1.0, found["layer_largest"])
    return [f"{number:.1e}" for number in (found["logits_absolute"], relative, layer)]
