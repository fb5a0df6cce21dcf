"""Which layer suffers from few bits: the damage of each one alone, everything else float.

The choice of widths that follows from it is in `tf_fpq/bit_allocation.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tf_fpq import graph, roles
from tf_fpq.calibration.calibration_images import CalibrationImages
from tf_fpq.calibration.grids_from_images import calibrate
from tf_fpq.keras_compat import AnyModel, keras, switched
from tf_fpq.placement.rules import QuantRule
from tf_fpq.quantize import quantize_model
from tf_fpq.quantizers.spec import check_bits
from tf_fpq.student_layers.deployed_rounding import source_of
from tf_fpq.student_layers.quantized_layers import QuantizedLayer, observing
from tf_fpq.summary import summary, table_lines

Part = Literal["weights", "activations"]
PARTS: tuple[Part, ...] = ("weights", "activations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What the widths of a layer are multiplied with.

    Attributes:
      kind: Class of the layer.
      reads: Name of the grid that the layer reads. Layers that share it have one width.
      weights: Number of weights in the kernel.
      bias_bytes: Bytes of its int32 biases.
      macs: Multiply-accumulate operations for one image.
    """

    kind: str
    reads: str
    weights: int
    bias_bytes: int
    macs: int

    def weight_bytes(self, bits: int) -> int:
        """Bytes of the kernel's codes at a width, and of the biases."""
        return -(-self.weights * bits // 8) + self.bias_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """What happens to the outputs when one tensor is quantized and all others are float.

    Attributes:
      layer: Name of the layer.
      part: "weights", the layer's kernel, or "activations", the tensor that it reads.
      bits: Width of the grid.
      noise: Power of the outputs' error over the power of the outputs,
        `n = sum (y' - y)^2 / sum y^2`.
      agreement: Share of images whose largest output stays the same, 0 to 1; NaN if the model has
        no output `[images, classes]` with at least two classes.
      squared_error: `sum (w' - w)^2` of a kernel; NaN for an activation.
    """

    layer: str
    part: Part
    bits: int
    noise: float
    agreement: float
    squared_error: float = math.nan

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio of the outputs in dB, `-10 log10 n`."""
        return math.inf if self.noise == 0.0 else -10.0 * math.log10(self.noise)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The damage by layer, part and width; `print(found)` shows it as a table.

        found = tf_fpq.sensitivity(model, images)
        print(found)

    Attributes:
      model: Name of the model.
      images: Number of images it was measured on.
      layers: What each layer costs, by name, in execution order.
      damages: The measurements.
    """

    model: str
    images: int
    layers: Mapping[str, LayerCost]
    damages: tuple[Damage, ...]

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths that were measured, in ascending order."""
        return tuple(sorted({damage.bits for damage in self.damages}))

    def damage(self, layer: str, part: Part, bits: int) -> Damage:
        """The one of a layer.

        Raises:
          KeyError: If it was not measured.
        """
        for found in self.damages:
            if (found.layer, found.part, found.bits) == (layer, part, bits):
                return found
        raise KeyError(f"{part} of layer {layer!r} at {bits} bits were not measured.")

    def __str__(self) -> str:
        columns = [(part, bits) for part in PARTS for bits in self.bits]
        header = ["layer", "kind", *(f"{part[0].upper()}{bits}" for part, bits in columns)]
        rows = [
            [
                name,
                cost.kind,
                *(f"{self.damage(name, part, bits).sqnr:.1f}" for part, bits in columns),
            ]
            for name, cost in self.layers.items()
        ]
        title = (
            f"model {self.model}: SQNR of the outputs in dB with one tensor quantized,"
            f" {self.images} images"
        )
        return "\n".join([title, *table_lines(header, rows)])

    def plot(self, path: str) -> None:
        """Draws the SQNR of every layer and width into an image file.

        Args:
          path: Where to write it; its ending says the format (".png", ".svg").

        Raises:
          ModuleNotFoundError: If matplotlib is not installed.
        """
        from matplotlib import figure  # half a second, for those who draw

        names = list(self.layers)
        drawn = figure.Figure(figsize=(9, 1.5 + 0.22 * len(names)), layout="constrained")
        panels = drawn.subplots(1, len(PARTS), sharey=True)
        for panel, part in zip(panels, PARTS):
            for bits in self.bits:
                values = [self.damage(name, part, bits).sqnr for name in names]
                panel.plot(values, names, marker="o", linewidth=1, label=f"{bits} bits")
            panel.set_title(part)
            panel.set_xlabel("SQNR of the outputs, dB (left is worse)")
            panel.grid(axis="x", alpha=0.3)
        panels[0].invert_yaxis()
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        drawn.suptitle(f"{self.model}: one tensor quantized, all others float")
        drawn.savefig(path, dpi=120)


def sensitivity(
    model: AnyModel,
    images: Any,
    *,
    bits: Sequence[int] = (2, 3, 4, 8),
    quantizer: Any = "lsq",
    batch_size: int = 64,
    verbose: int = 1,
) -> Sensitivity:
    """Quantizes one tensor after the other, without training, and looks at the model's outputs.

    For each width a student is made and calibrated on the images. Then every kernel, and every
    tensor that a layer with a kernel reads, is quantized alone while all others are float. The
    error of the outputs `y'` against the float model's `y` is the damage:

        n = sum (y' - y)^2 / sum y^2,        SQNR = -10 log10 n dB.

    A worked number: outputs (3, 4) that become (3, 3.5) have `n = 0.25 / 25 = 0.01`, which is
    20 dB.

    The time is that of `2 * layers * len(bits)` evaluations of the images.

        found = tf_fpq.sensitivity(model, images[:100])
        print(found)

    Args:
      model: A float model, as for `quantize_model`. It is not changed.
      images: Array, tuple or dict of arrays or dataset, as for `calibrate`; about 100 training
        images. No labels are needed.
      bits: Widths to measure, 2 to 8.
      quantizer: The base quantizer, as for `quantize_model`.
      batch_size: Images that run at once, for an array.
      verbose: 1 shows a progress bar, 0 nothing.

    Returns:
      The damages.

    Raises:
      TypeError: As `quantize_model` does.
      ValueError: If `bits` is empty or a width is not from 2 to 8, or as `quantize_model` and
        `calibrate` do.
    """
    widths = _widths(bits)
    students = {width: _student(model, images, width, quantizer, batch_size) for width in widths}
    layers = _costs(students[widths[0]])
    progress = keras.utils.Progbar(
        2 * len(layers) * len(widths), verbose=verbose, unit_name="tensor"
    )
    damages: list[Damage] = []
    for width, student in students.items():
        batches = CalibrationImages(student, images, batch_size)
        for damage in _damages(student, layers, width, batches):
            damages.append(damage)
            progress.add(1)
    count = sum(len(batch[0]) for batch in batches)
    return Sensitivity(students[widths[0]].name, count, layers, tuple(damages))


def _widths(bits: Sequence[int]) -> list[int]:
    widths = sorted(set(bits)) if isinstance(bits, Sequence) and not isinstance(bits, str) else []
    if not widths:
        raise ValueError(
            f"bits must be a list of widths such as (2, 4, 8). Received: bits={bits!r}."
        )
    for width in widths:
        check_bits("bits", width)
    return widths


def _student(
    model: AnyModel, images: Any, bits: int, quantizer: Any, batch_size: int
) -> keras.Model:
    student = quantize_model(model, [QuantRule(weight_bits=bits, activation_bits=bits)], quantizer)
    calibrate(student, images, batch_size=batch_size, verbose=0)
    return student


def _costs(student: keras.Model) -> dict[str, LayerCost]:
    """What the layers cost whose kernels are quantized, by name."""
    reads = _grids_read(student)
    return {
        row.layer: LayerCost(
            kind=row.kind,
            reads=reads[row.layer],
            weights=row.weights,
            bias_bytes=row.bytes - -(-row.weights * row.weight_bits // 8),
            macs=row.macs,
        )
        for row in summary(student).rows
        if row.layer in reads and row.weight_bits is not None
    }


def _grids_read(student: keras.Model) -> dict[str, str]:
    """Name of the activation's quantizer by name of the layer that reads its grid."""
    found: dict[str, str] = {}
    for call in graph.calls(student):
        if isinstance(call.layer, QuantizedLayer) and roles.kernel(call.layer.layer) is not None:
            source = source_of(call.inputs[0])
            if source is not None:
                found[call.layer.name] = source.name
    return found


def _damages(
    student: keras.Model, layers: Mapping[str, LayerCost], bits: int, batches: CalibrationImages
) -> Iterator[Damage]:
    with observing(student):
        expected = _outputs(student, batches)
        of_grid: dict[str, tuple[float, float]] = {}  # measured once, for all its readers
        for name, cost in layers.items():
            layer = student.get_layer(name)
            with _quantizing(layer):
                noise, agreement = _compare(expected, _outputs(student, batches))
            yield Damage(
                layer=name,
                part="weights",
                bits=bits,
                noise=noise,
                agreement=agreement,
                squared_error=_squared_error(layer),
            )
            if cost.reads not in of_grid:
                with _quantizing(student.get_layer(cost.reads)):
                    of_grid[cost.reads] = _compare(expected, _outputs(student, batches))
            noise, agreement = of_grid[cost.reads]
            yield Damage(
                layer=name, part="activations", bits=bits, noise=noise, agreement=agreement
            )


def _quantizing(layer: keras.layers.Layer) -> contextlib.AbstractContextManager[None]:
    return switched([layer], observing=False)


def _outputs(student: keras.Model, batches: CalibrationImages) -> list[np.ndarray]:
    """Every output for all images, `[images, ...]`.

    Runs eagerly: a graph would be traced anew for each tensor, which costs more than it saves.
    """
    found = [
        [value.numpy() for value in tf.nest.flatten(student(_tensors(batch), training=False))]
        for batch in batches
    ]
    return [np.concatenate(parts).astype(np.float64) for parts in zip(*found)]


def _tensors(batch: Sequence[np.ndarray]) -> list[tf.Tensor]:
    return [tf.constant(array, tf.float32) for array in batch]


def _compare(expected: list[np.ndarray], received: list[np.ndarray]) -> tuple[float, float]:
    """Relative power of the error, and the share of images that keep their largest output."""
    error = sum(np.square(b - a).sum() for a, b in zip(expected, received))
    power = sum(np.square(a).sum() for a in expected)
    scores = [
        np.mean(a.argmax(-1) == b.argmax(-1))
        for a, b in zip(expected, received)
        if a.ndim == 2 and a.shape[1] > 1
    ]
    noise = float(error / power) if power else math.inf if error else 0.0
    return noise, float(np.mean(scores)) if scores else math.nan


def _squared_error(layer: QuantizedLayer) -> float:
    """`sum (w' - w)^2` of the kernel."""
    total = 0.0
    for weight in layer.quantized_weights():
        value = tf.convert_to_tensor(weight.variable)
        exact = weight.quantizer.unrounded(value, weight.variables)
        rounded = weight.quantizer(value, False, weight.variables)
        total += float(tf.reduce_sum(tf.square(rounded - exact)))
    return total
