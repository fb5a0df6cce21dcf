"""The integer twin: a deployed network as a Keras model.

It computes exactly the codes that the phone computes.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tflite_export import deployed as deployed_lib
from tflite_export import kernels
from tflite_export.kernels import rounding as rounding_lib

Images: TypeAlias = tf.Tensor | np.ndarray | list | tuple | Mapping[str, tf.Tensor]


class IntegerTwin(keras.Model):
    """Executes a `DeployedModel` on integer codes.

        twin = tflite_export.IntegerTwin(exported.deployed, "double")
        twin.predict(images)  # what a microcontroller computes

    `twin(images)` quantizes float images to the input grid, `clip(round(x * (1 / s)) + z)` with
    ties to even as the student does, runs the operators on codes and returns the outputs as
    float32, so `twin.evaluate` is what the phone will score. A model with float32 borders takes and
    returns the floats themselves.
    Several inputs are given as a list in the order of `deployed.inputs` or as a dictionary by name;
    several outputs come back as a list.

    Args:
      deployed: The network.
      rounding: "single" for the default interpreter (XNNPACK), "double" for the reference kernels
        and TensorFlow Lite for Microcontrollers; see `tflite_export.kernels`.

    Raises:
      ValueError: If the rounding is unknown, an operator has no kernel, or its tensors do not suit
        it.
    """

    def __init__(self, deployed: deployed_lib.DeployedModel, rounding: kernels.Rounding = "single"):
        super().__init__(name="integer_twin")
        if rounding not in kernels.ROUNDINGS:
            raise ValueError(
                f"rounding must be one of {kernels.ROUNDINGS}. Received: rounding={rounding!r}."
            )
        unknown = sorted({op.kind for op in deployed.operators} - set(kernels.KERNELS))
        if unknown:
            raise ValueError(
                f"No integer kernel for {unknown}; the twin has {sorted(kernels.KERNELS)}."
            )
        self.deployed = deployed
        self.rounding = rounding
        # Weights become eager constants once, which every traced function captures instead of
        # copying.
        with tf.init_scope():
            self._reciprocals = {
                name: tf.constant(np.float32(1) / deployed.tensors[name].one_scale)
                for name in deployed.inputs
                if deployed.tensors[name].scale is not None
            }
            self._steps = tuple(
                _step(operator, deployed.tensors, rounding) for operator in deployed.operators
            )

    def call(self, inputs: Images) -> tf.Tensor | list[tf.Tensor]:
        """Float outputs of float inputs, batch first."""
        codes = self._run(self.quantize(inputs))
        outputs = [
            _dequantize(self.deployed.tensors[name], codes[name]) for name in self.deployed.outputs
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    def quantize(self, inputs: Images) -> dict[str, tf.Tensor]:
        """int32 codes of float inputs by input name; float32 inputs stay as they are."""
        named = self._by_name(inputs)
        return {name: self._quantize(name, tf.cast(x, tf.float32)) for name, x in named.items()}

    def codes(self, inputs: Images) -> dict[str, tf.Tensor]:
        """int32 codes of every activation tensor by name, from float inputs.

        Float32 tensors come as floats.
        """
        return self._run(self.quantize(inputs))

    def run_codes(self, codes: Images) -> dict[str, tf.Tensor]:
        """As `codes`, from the input tensors' codes themselves.

        They may have any integer dtype, and are floats for a float32 input.
        """
        named = self._by_name(codes)
        return self._run({name: self._cast(name, x) for name, x in named.items()})

    def run_operator(self, index: int, codes: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """int32 codes of what operator `deployed.operators[index]` writes, by tensor name.

        Args:
          index: Position in execution order.
          codes: Codes of the tensors that it reads, by name, batch first, of any integer dtype;
            other tensors may be there too. float32 tensors as floats.
        """
        kernel, sources, targets = self._steps[index]
        results = kernel(*(self._cast(name, codes[name]) for name in sources))
        results = results if isinstance(results, tuple) else (results,)
        return dict(zip(targets, results, strict=True))

    def _cast(self, name: str, codes: tf.Tensor) -> tf.Tensor:
        floats = self.deployed.tensors[name].dtype == "float32"
        return tf.cast(codes, tf.float32 if floats else tf.int32)

    def _quantize(self, name: str, x: tf.Tensor) -> tf.Tensor:
        tensor = self.deployed.tensors[name]
        if tensor.dtype == "float32":
            return x
        low, high = rounding_lib.RANGES[tensor.dtype]
        levels = tf.round(x * self._reciprocals[name]) + float(tensor.zero_point)
        return tf.cast(tf.clip_by_value(levels, float(low), float(high)), tf.int32)

    def _by_name(self, inputs: Images) -> dict[str, tf.Tensor]:
        names = self.deployed.inputs
        if not isinstance(inputs, Mapping):
            values = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            if len(values) != len(names):
                raise ValueError(f"The model has inputs {names}. Received: {len(values)} tensors.")
            inputs = dict(zip(names, values, strict=True))
        if set(inputs) != set(names):
            raise ValueError(f"The model has inputs {names}. Received: {sorted(inputs)}.")
        return {name: tf.convert_to_tensor(inputs[name]) for name in names}

    # The kernels have no data-dependent control flow; letting AutoGraph parse them costs seconds
    # per trace.
    @tf.autograph.experimental.do_not_convert
    def _run(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        values = dict(values)
        for index in range(len(self._steps)):
            values.update(self.run_operator(index, values))
        return values


def _step(
    operator: deployed_lib.Operator,
    tensors: Mapping[str, deployed_lib.Tensor],
    rounding: kernels.Rounding,
):
    """An operator's kernel with the names of its non-constant inputs and of its outputs."""
    kernel = kernels.KERNELS[operator.kind](operator, tensors, rounding)
    sources = tuple(name for name in operator.inputs if tensors[name].data is None)
    return kernel, sources, operator.outputs


def _dequantize(tensor: deployed_lib.Tensor, codes: tf.Tensor) -> tf.Tensor:
    if tensor.dtype == "float32":
        return codes
    return tf.cast(codes - tensor.zero_point, tf.float32) * tensor.one_scale
