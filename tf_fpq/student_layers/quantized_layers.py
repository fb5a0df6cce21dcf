"""The two Keras layers a student is made of.

They are a quantized layer, and the quantization of an activation.

tfmot's own wrapper puts the weights' quantizer and the output's in one layer and breaks saving in
three ways (its variable order depends on whether the inner layer was built, it lists variables
twice, `QuantizeLayer` never counts as built). Here an activation's quantizer is a layer of its own,
so that noise can enter between a tensor and one of its readers, and both layers let Keras track
variables, so that every format saves and loads them.
"""

import contextlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tf_fpq.autograph import translated
from tf_fpq.keras_compat import deserialize, keras, register, serialize, switched
from tf_fpq.quantizers.adopted import adopt
from tf_fpq.quantizers.base import GridQuantizer, Variables
from tf_fpq.quantizers.lsq import LsqQuantizer


class QuantizedWeight(NamedTuple):
    """A weight and what quantizes it.

    Attributes:
      name: Its name.
      variable: The latent weight, which trains.
      quantizer: Its quantizer.
      variables: The quantizer's variables.
    """

    name: str
    variable: tf.Variable
    quantizer: GridQuantizer
    variables: Variables

    def codes(self) -> tf.Tensor:
        """The integer weights, as float32."""
        return self.quantizer.codes(tf.convert_to_tensor(self.variable), self.variables)


class StudentLayer(keras.layers.Layer):
    """What the layers of a student share.

    Variables have the same names, whoever builds the layer: a call or a `.keras` file. Keras builds
    layers of one's own from such a file outside of their name scope; two `step_size:0` then cannot
    be saved as HDF5.

    Attributes:
      symbolic: While True the layer is called for its output's shape and type alone. It need not
        quantize then: a quantizer changes neither, and its operations are many.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Creates the layer."""
        super().__init__(*args, **kwargs)
        self.symbolic = False

    def _infer_output_signature(self, *args: Any) -> Any:
        # Keras' way to make the graph of a functional model: each layer is called on placeholders,
        # whose operations it throws away. That is most of the time that a student takes to make.
        with switched([self], symbolic=True):
            return super()._infer_output_signature(*args)

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer for the input shape it was saved with."""
        with tf.name_scope(self._name_scope()):
            super().build_from_config(config)


@register
class QuantizeActivation(StudentLayer):
    """Puts a tensor on an integer grid: `y = quantizer(x)`.

    Called on several tensors (a shared layer), all of them share one grid.

    Attributes:
      quantizer: The `GridQuantizer`.
      variables_of_quantizer: Its variables, after the layer is built.
      observing: While True the layer passes its input through; `calibrate` looks at float
        activations so.
    """

    def __init__(self, quantizer: GridQuantizer, **kwargs: Any):
        """Creates the layer.

        Args:
          quantizer: What quantizes, a `GridQuantizer` or another tfmot `Quantizer`.
          **kwargs: Arguments of `keras.layers.Layer`.
        """
        super().__init__(
            **{"dtype": "float32", **kwargs}
        )  # whatever the global policy: grids are exact in float32 only
        if not isinstance(quantizer, tfmot.quantization.keras.quantizers.Quantizer):
            raise TypeError(
                "quantizer must be a tf_fpq.quantizers.GridQuantizer, or another tfmot Quantizer."
                f" Received: quantizer={quantizer!r}."
            )
        self.quantizer = adopt(quantizer)
        self.observing = False

    def build(self, input_shape: Any) -> None:
        """Adds the quantizer's variables."""
        # A fixed batch size would make the shape look like a weight's.
        self.variables_of_quantizer = self.quantizer.build(
            (None, *input_shape[1:]), "activation", self
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """Returns `inputs` on the grid."""
        if self.observing or self.symbolic:
            return inputs
        return translated(self.quantizer)(inputs, training, self.variables_of_quantizer)

    @property
    def absorbs_relu(self) -> bool:
        """Whether a ReLU before this layer is superfluous: no code is below 0, at zero point 0.

        The zero point of LSQ is frozen, and it stays 0 when such a tensor is calibrated again: it
        has no negative values.
        """
        if type(self.quantizer) is not LsqQuantizer or self.quantizer.spec.qmin != 0:
            return False
        return not np.any(self.variables_of_quantizer["zero_point"].numpy())

    def codes(self, values: tf.Tensor) -> tf.Tensor:
        """Integer codes of `values` in `[qmin, qmax]`."""
        return self.quantizer.codes(values, self.variables_of_quantizer)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        return {**super().get_config(), "quantizer": serialize(self.quantizer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeActivation":
        """Makes a layer from `get_config()`."""
        return cls(**{**config, "quantizer": deserialize(config["quantizer"])})


@register
class QuantizedLayer(StudentLayer, tfmot.quantization.keras.QuantizeWrapperV2):
    """A layer that computes with quantized weights; its name is the inner layer's.

    A subclass of tfmot's wrapper, so `quantize_apply` leaves it alone. It has no output quantizer:
    that is a `QuantizeActivation` after it.

    Attributes:
      layer: The Keras layer inside.
      quantize_config: The tfmot `QuantizeConfig` that names the weights and their quantizers.
      observing: While True the layer computes with float weights.
    """

    def __init__(self, layer: keras.layers.Layer, quantize_config: Any, **kwargs: Any):
        """Wraps `layer`; see the class. A frozen layer's step sizes are frozen too."""
        kwargs = {"dtype": "float32", "trainable": layer.trainable, **kwargs}
        super().__init__(layer, quantize_config, name_prefix="", **kwargs)
        self._activity_regularizer = (
            layer.activity_regularizer
        )  # only a layer's own __call__ applies it
        self.observing = False

    def build(self, input_shape: Any) -> None:
        """Builds the inner layer first, then its quantizers' variables."""
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self._quantized: list[tuple[Any, str, GridQuantizer, Variables]] = []
        for weight, quantizer in self.quantize_config.get_weights_and_quantizers(self.layer):
            owner, name = owner_and_attribute(self.layer, weight)
            variables = quantizer.build(weight.shape, name, self)
            self._quantized.append((owner, name, quantizer, variables))
        keras.layers.Layer.build(self, input_shape)

    def quantized_weights(self) -> list[QuantizedWeight]:
        """The quantized weights, each by the name of its attribute."""
        return [
            QuantizedWeight(name, getattr(owner, name), quantizer, variables)
            for owner, name, quantizer, variables in self._quantized
        ]

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Calls the inner layer with its weights on their grids."""
        if self.symbolic:
            return self._call_inner(inputs, training, kwargs)
        with contextlib.ExitStack() as stack:
            for owner, name, quantizer, variables in self._quantized:
                weight = getattr(owner, name)
                value = (
                    quantizer.unrounded(weight, variables)
                    if self.observing
                    else translated(quantizer)(weight, training, variables)
                )
                stack.enter_context(switched([owner], **{name: value}))
            return self._call_inner(inputs, training, kwargs)

    def _call_inner(self, inputs: Any, training: Any, kwargs: dict[str, Any]) -> Any:
        if self.layer._expects_training_arg:
            kwargs = {**kwargs, "training": training}
        return translated(self.layer.call)(inputs, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The inner layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal layer."""
        base = keras.layers.Wrapper.get_config(self)
        return {**base, "quantize_config": serialize(self.quantize_config)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QuantizedLayer":
        """Makes a layer from `get_config()`."""
        config = dict(config)
        inner = config.pop("layer")
        layer = keras.layers.deserialize(
            inner, custom_objects, use_legacy_format="module" not in inner
        )
        return cls(layer, deserialize(config.pop("quantize_config")), **config)

    # tfmot's wrapper lists weights by hand; Keras' own tracking counts each once, in an order that
    # does not change.
    trainable = keras.layers.Layer.trainable
    trainable_weights = keras.layers.Layer.trainable_weights
    non_trainable_weights = keras.layers.Layer.non_trainable_weights
    losses = keras.layers.Layer.losses
    updates = keras.layers.Layer.updates


def owner_and_attribute(layer: keras.layers.Layer, weight: Any) -> tuple[Any, str]:
    """The layer that holds a weight, `layer` or one inside it, and the name it holds it by.

    Raises:
      ValueError: If it is no attribute of any.
    """
    for owner in (layer, *layer.submodules):
        for name, value in vars(owner).items():
            if value is weight and hasattr(value, "shape"):
                return owner, name
    raise ValueError(
        f"{getattr(weight, 'name', weight)!r}, which is no weight that is an attribute of the layer"
        f" {layer.name!r} or of one inside it"
    )


def observing(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Within the context `model`'s quantizers pass values through.

    So it computes what the float model computes.
    """
    layers = [
        layer for layer in model.layers if isinstance(layer, QuantizeActivation | QuantizedLayer)
    ]
    return switched(layers, observing=True)


def quantizer_variables(model: keras.Model) -> list[tf.Variable]:
    """The trainable variables of all quantizers of `model`, step sizes and the like.

    Each is there once, in layer order. Those of frozen layers are left out.
    """
    found: dict[int, tf.Variable] = {}
    for layer in model.layers:
        if not layer.trainable:
            continue
        for _, variables in _quantizers(layer):
            for variable in variables.values():
                if isinstance(variable, tf.Variable) and variable.trainable:
                    found[id(variable)] = variable
    return list(found.values())


def moved_by_forward_pass(model: keras.Model) -> list[tf.Variable]:
    """The variables that a forward pass in training may change.

    They are those that no optimizer trains, such as the moving statistics of a batch norm. The
    variables of a quantizer that observes nothing are left out, such as the zero points of LSQ.
    """
    quantizers = [pair for layer in model.layers for pair in _quantizers(layer)]
    still = {
        id(variable)
        for quantizer, variables in quantizers
        if not quantizer.observes
        for variable in variables.values()
    }
    # Not the weights of frozen layers, which a forward pass does not move.
    weights = [weight for weight in model.non_trainable_weights if not weight.trainable]
    return [weight for weight in weights if id(weight) not in still]


def _quantizers(layer: keras.layers.Layer) -> list[tuple[GridQuantizer, Variables]]:
    """The quantizers of a layer with their variables."""
    if isinstance(layer, QuantizeActivation):
        return [(layer.quantizer, layer.variables_of_quantizer)]
    if isinstance(layer, QuantizedLayer):
        weights = layer.quantized_weights()
        return [(weight.quantizer, weight.variables) for weight in weights]
    return []


def quantized_weights(layer: keras.layers.Layer) -> list[QuantizedWeight]:
    """The quantized weights of a layer.

    The layer may be a `QuantizedLayer` or tfmot's own wrapper; others have none.
    """
    if isinstance(layer, QuantizedLayer):
        return layer.quantized_weights()
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        return [
            QuantizedWeight(weight.name, weight, quantizer, variables)
            for weight, quantizer, variables in layer._weight_vars
            if isinstance(quantizer, GridQuantizer)
        ]
    return []
