"""A convolution's or Dense layer's integer weights, and how a file stores them.

What follows a kernel and is affine folds into it. A batch norm has, for each channel,
`f = gamma / sqrt(variance + epsilon)` and the offset `beta - mean * f`. The channel keeps its codes
(negated where `f < 0`), its scale becomes `step_size * |f|`, and its bias `f * bias + offset`.
Nothing is rounded by that.

A worked number: codes (3, -7) on steps of 0.04 with bias 0.2 are followed by `f = -0.25` and offset
0.25. The file's codes are (-3, 7) on steps of 0.01, and the bias is -0.25 * 0.2 + 0.25 = 0.2.

A file holds the bias as an int32 multiple of `input scale * weight scale`: with an input scale of
0.05 that is 0.2 / (0.05 * 0.01) = 400. `Kernel.stored` finds codes and scales with which all biases
fit.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tflite_export.kernels import xnnpack_limits

INT8_MIN, INT8_MAX = -128, 127
# One past the largest sum of products and bias.
INT32_END = 2.0**31
# Where float32 begins to lose bits of a step, with room for codes that are widened.
SMALLEST_STEP = 2.0**-118
# A constant channel's steps in an output step: its value is exact in float32 and far from any tie.
# Chosen here: at most 255 * 2^16 steps, which is below 2^24, where float32 begins to skip integers.
CONSTANT_STEPS = 2.0**16
# A constant keeps the scale it has if an output step is 2^3 to 2^20 of its steps. Then the code's
# bias is off by 1/16 output step at most, and fits int32 (255 * 2^20 < 2^31). Chosen here, by
# these.
KEPT_STEPS = (2.0**3, 2.0**20)
# Rounded weights may move a sum by this much of an output step at most: no code by more than 1.
# Chosen here.
LARGEST_LOSS = 0.5


@dataclasses.dataclass(frozen=True)
class Grids:
    """The codes that a kernel reads and those that it writes.

    Attributes:
      input_scale: Scale of the codes that the weights are multiplied by.
      input_range: Lowest and highest `code - zero_point` of them; 0, which padding is, lies within.
      output_scale: Scale of the output.
      zero_point: Its zero point.
      output_range: Lowest and highest code that is left of the output behind the fused activation
        and the clips that follow.
    """

    input_scale: float
    input_range: tuple[int, int]
    output_scale: float
    zero_point: int
    output_range: tuple[int, int]

    def code(self, values: np.ndarray) -> np.ndarray:
        """The container's codes of output values."""
        levels = np.rint(values / self.output_scale) + self.zero_point
        return np.clip(levels, INT8_MIN, INT8_MAX)

    def constant_scale(self, scale: np.ndarray) -> np.ndarray:
        """Scales of channels that are constants.

        A channel keeps its own where that can hold a code (`KEPT_STEPS`). Else an output step is
        `CONSTANT_STEPS` of its steps.
        """
        fewest, most = KEPT_STEPS
        steps = self.output_scale / (self.input_scale * scale)
        fine = max(self.output_scale / CONSTANT_STEPS, SMALLEST_STEP) / self.input_scale
        return np.where((fewest <= steps) & (steps <= most), scale, fine)


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """What a file holds of a kernel.

    Attributes:
      codes: int8 codes.
      scale: float32, `[]` if all channels have the same, else `[channels]`.
      bias: int32 multiples of `input scale * scale`, `[channels]`.
      bias_move: What the rounding added to each channel's bias; 0 for a constant.
      weights_move: The most that rounded codes add to a sum; 0 but beside a bias that fills int32.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    bias_move: np.ndarray
    weights_move: np.ndarray


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Integer weights in TFLite's layout, with a scale and a float bias for each channel.

    Attributes:
      name: Name of the weights' tensor.
      codes: int8 codes.
      axis: Channel axis.
      scale: float64, `[channels]`.
      bias: float64, `[channels]`.
      offset: The student's variable that shifts the output as it is (the layer's bias, or the batch
        norm's beta), or None.
      added: Sum of the absolute values that make up the bias, `[channels]`; None for `|bias|`. A
        bias of 500 less a mean of 499 is 1, and 999 here.
    """

    name: str
    codes: np.ndarray
    axis: int
    scale: np.ndarray
    bias: np.ndarray
    offset: tf.Variable | None = None
    added: np.ndarray | None = None

    def fold(
        self, factor: np.ndarray, offset: np.ndarray, variable: tf.Variable | None = None
    ) -> "Kernel":
        """The kernel whose output is `factor * output + offset`; see the module.

        A channel with factor 0 keeps its scale, and all its codes are 0.
        """
        scale = np.where(factor == 0, self.scale, self.scale * np.abs(factor))
        sign = self._along_channels(np.broadcast_to(np.sign(factor), scale.shape).astype(np.int8))
        return dataclasses.replace(
            self,
            codes=self.codes * sign,
            scale=scale,
            bias=self.bias * factor + offset,
            offset=variable,
            added=self._added * np.abs(factor) + np.abs(offset),
        )

    @property
    def _added(self) -> np.ndarray:
        return np.abs(self.bias) if self.added is None else self.added

    def magnitude(self, grids: Grids) -> np.ndarray:
        """How large the partial sums of a float computation get, `[channels]`.

        n products of either sign wander as far as the root of the sum of their squares, here at the
        largest inputs. What is added comes on top.
        """
        largest = max(abs(end) for end in grids.input_range) * grids.input_scale
        squares = np.square(self.codes.astype(np.int64)).sum(self._others)
        return np.sqrt(squares) * self.scale * largest + self._added

    def stored(self, grids: Grids, limit: int = INT8_MAX) -> StoredKernel:
        """What a file holds of this kernel between two grids.

        A channel whose output code no input changes is a constant: zero weights, and the bias that
        is that code's value. The other channels' codes get as wide as the container and int32
        allow, which loses nothing (`scaled`).

        Note: A bias that is 2^31 steps or more, and still no constant, sits next to a tie that the
        products decide: they are at most 255 * 127 * n steps for n weights, a 2^16 / n-th part of
        the bias, which itself is on the output's grid of 256 codes. There the codes are rounded to
        fewer bits until the bias fits. That moves the sum by less than n * 2^-15 output steps.

        Note: A bias that is rounded may leave one code where there were two, as with weights of an
        output step each on a grid that clips. The result is what the rounded bias gives: the
        student's own becomes that one (`Lowered.round_biases`), and is lowered again by `verify`.

        Args:
          grids: What the kernel reads and writes.
          limit: Largest code of the container.

        Raises:
          ValueError: If a bias has no room in int32 beside weights that show in the output.
        """
        found = self._stored(grids, limit)
        for _ in self.bias:  # each round makes a channel a constant, or is the last
            moved = dataclasses.replace(self, bias=self.bias + found.bias_move)
            again = moved._stored(grids, limit)
            if np.array_equal(again.codes, found.codes):
                return found
            move = moved.bias + again.bias_move - self.bias
            found = dataclasses.replace(again, bias_move=move)
        return found

    def _stored(self, grids: Grids, limit: int) -> StoredKernel:
        """As `stored`, with the student's bias as it is."""
        constant = self.constant(grids)
        powers = self._powers(grids, limit, constant)
        scaled = self.scaled(powers)
        lost = np.where(constant, 0.0, self._lost(scaled, powers, grids))
        self._check_loss(lost, grids)
        constant |= ~scaled.codes.any(self._others)
        scale = np.where(constant, grids.constant_scale(scaled.scale), scaled.scale)
        levels = grids.code(self.bias) - grids.zero_point
        value = np.where(constant, levels * grids.output_scale, self.bias)
        # A file holds scales in float32; the bias is a multiple of the step that results.
        step = grids.input_scale * scale.astype(np.float32).astype(np.float64)
        bias = np.rint(value / step)
        # Where every sum but 0 is beyond the output's grid, a smaller scale gives the same codes,
        # and XNNPACK takes it.
        saturates = xnnpack_limits.SATURATES * grids.output_scale / grids.input_scale
        return StoredKernel(
            np.where(self._along_channels(constant), np.int8(0), scaled.codes),
            _shared(np.minimum(scale, saturates).astype(np.float32)),
            bias.astype(np.int32),
            np.where(constant, 0.0, bias * step - self.bias),
            lost,
        )

    def constant(self, grids: Grids) -> np.ndarray:
        """Whether each channel has one and the same output code for all inputs, `[channels]`.

        That is where the code at the lowest sum of products is the code at the highest. A sum in
        which padding or a transposed convolution's gaps leave products out lies between the two.
        """
        positive = np.maximum(self.codes, 0).sum(self._others, dtype=np.int64)
        negative = np.minimum(self.codes, 0).sum(self._others, dtype=np.int64)
        low, high = grids.input_range
        step = grids.input_scale * self.scale
        first = grids.code(self.bias + (positive * low + negative * high) * step)
        last = grids.code(self.bias + (positive * high + negative * low) * step)
        return np.clip(first, *grids.output_range) == np.clip(last, *grids.output_range)

    def scaled(self, powers: np.ndarray) -> "Kernel":
        """The same weights with codes `2^power` times as large and scales `2^-power` as large.

        A worked number: codes (-1, 0, 1) of 2 bits on steps of 0.64 become (-64, 0, 64) on steps of
        0.01, with the power 6. Codes up to 7, of 4 bits, become up to 112, with the power 4.

        At low widths sums of products thereby have steps as fine, beside those of their output, as
        at 8 bits. The bias, a multiple of that step, is `2^power` times as exact. And kernels that
        round twice lose their bias: they first round to a multiple of `2^-n` output steps, where n
        is what the requantization shifts by, and at n = 1 take every fraction from a quarter up to
        the next code (`kernels/rounding.py`).

        A negative power rounds the codes to fewer bits.

        Args:
          powers: Integers, `[channels]`.
        """
        factor = 2.0**powers
        codes = np.rint(self.codes * self._along_channels(factor)).astype(np.int8)
        return dataclasses.replace(self, codes=codes, scale=self.scale / factor)

    def _powers(self, grids: Grids, limit: int, constant: np.ndarray) -> np.ndarray:
        """The largest powers that keep codes, sums and steps within their limits.

        These are `limit` for codes, int32 for sums, and float32 for steps. There is one power for
        all channels where all have one scale and none must be narrower.
        """
        widest = int(np.abs(self.codes.astype(np.int16)).max(initial=1))
        step = grids.input_scale * self.scale
        sums = np.abs(self.bias) / step
        sums += 255.0 * np.abs(self.codes.astype(np.int64)).sum(self._others)
        # Rounding a code may add half a step to each product.
        end = INT32_END - 256.0 * (self.codes.size / len(step) + 1)
        room = np.minimum(end / np.maximum(sums, 1.0), np.minimum(step, self.scale) / SMALLEST_STEP)
        room = np.minimum(np.where(constant, np.inf, room), limit / widest)
        powers = np.floor(np.log2(room))
        alike = np.all(self.scale == self.scale[0]) and powers.min() >= 0
        return np.full_like(powers, powers.min()) if alike else powers

    def _lost(self, scaled: "Kernel", powers: np.ndarray, grids: Grids) -> np.ndarray:
        """The most by which the codes of `scaled` change a sum, in the output's unit."""
        rest = np.abs(self.codes - scaled.codes * self._along_channels(2.0**-powers))
        largest = max(abs(end) for end in grids.input_range)
        return rest.sum(self._others) * largest * grids.input_scale * self.scale

    def _check_loss(self, moves: np.ndarray, grids: Grids) -> None:
        lost = moves / grids.output_scale
        if lost.max() > LARGEST_LOSS:
            channel = int(lost.argmax())
            step = grids.input_scale * self.scale
            raise ValueError(
                f"The bias of channel {channel} of {self.name!r} does not fit int32 on its grid:"
                f" value {self.bias[channel]:.3g} in steps of {step[channel]:.3g}, and weights"
                f" rounded to steps that fit could move the output by {lost[channel]:.2g} of its"
                " steps. Its weights are next to nothing beside the bias: train with a larger batch"
                " norm epsilon, or prune the channel."
            )

    @property
    def _others(self) -> tuple[int, ...]:
        """All axes but the channels'."""
        return tuple(axis for axis in range(self.codes.ndim) if axis != self.axis)

    def _along_channels(self, values: np.ndarray) -> np.ndarray:
        """`[channels]` in a shape that broadcasts with the codes."""
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return values.reshape(shape)


def _shared(scale: np.ndarray) -> np.ndarray:
    """One scale for the tensor where all channels have the same."""
    return scale[0] if np.all(scale == scale[0]) else scale
