"""What the walk over a student holds between two layers.

It is codes, or an operator that waits for its output's grid.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tflite_export.deployed import Tensor
from tflite_export.lowering.kernel import INT8_MIN, Kernel

# A constant input: int32 values, or a quantized tensor.
Constant = np.ndarray | Tensor
UNBOUNDED = (-math.inf, math.inf)
_FUSED = {UNBOUNDED: "NONE", (0.0, math.inf): "RELU", (0.0, 6.0): "RELU6"}
_FUSING = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "ADD", "SUB", "MUL")


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of the deployed graph.

    Attributes:
      name: Its name.
      nonnegative: Whether none of its values is below zero.
      low: Lowest code it can hold; a grid of few bits, or a ReLU, leaves lower ones out.
    """

    name: str
    nonnegative: bool = False
    low: int = INT8_MIN


@dataclasses.dataclass(frozen=True, eq=False)
class BiasMove:
    """What the rounding of a bias adds to the variable of the student that the bias comes from."""

    variable: tf.Variable
    move: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FloatSum:
    """How exactly a student that computes in float32 can have a kernel's sums.

    Attributes:
      move: By how much the file's rounded bias and weights move a sum at most, `[channels]`.
      magnitude: How large the student's partial sums get, in the output's unit, `[channels]`: the
        root of the sum of the squared products, at the largest inputs, and on top of that the bias
        and what batch norms add.
      terms: Products in a sum.
    """

    move: np.ndarray
    magnitude: np.ndarray
    terms: int


@dataclasses.dataclass(frozen=True)
class Pending:
    """An operator whose output grid is not known yet: the next `QuantizeActivation` brings it.

        def absolute(builder, layer, name, sources, output):  # for `register_operator`
            return tflite_export.Pending("ABS", sources)

    Attributes:
      kind: TFLite's operator name.
      sources: Its input tensors.
      options: Its options.
      clamp: Lowest and highest value of the output.
      kernel: Weights of a convolution or Dense, or None.
      constants: Constant inputs after the sources: arrays, such as the axes of a mean, become int32
        tensors; quantized ones, such as slopes, come as records.
      leading: Constant inputs before the sources.
      monotone: 0 stays 0 and order is kept, so that no output is negative if no input is.
    """

    kind: str
    sources: tuple[Codes, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    clamp: tuple[float, float] = UNBOUNDED
    kernel: Kernel | None = None
    constants: tuple[Constant, ...] = ()
    leading: tuple[Constant, ...] = ()
    monotone: bool = False

    @property
    def fuses(self) -> bool:
        """Whether the operator takes a fused activation."""
        return self.kind in _FUSING

    @property
    def fused(self) -> str:
        """The fused activation.

        A clamp at another bound than 6 is a RELU with a MINIMUM after it.
        """
        if not self.fuses:
            return "NONE"
        return _FUSED.get(self.clamp, "RELU")

    @property
    def nonnegative(self) -> bool:
        """Whether no value of the output is below zero."""
        return self.clamp[0] == 0.0 or (
            self.monotone and all(source.nonnegative for source in self.sources)
        )
