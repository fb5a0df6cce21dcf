"""What the conformance tests share: a quantizer with its variables and data, and the row it is
checked against."""

import numpy as np
import tensorflow as tf

from tests.tf_fpq.quantizers.quantizer_rows import Case
from tf_fpq.calibration import grids_from_images
from tf_fpq.keras_compat import keras
from tf_fpq.quantizers.range_estimators import Samples

SHAPES = {"weight": (3, 3, 2, 4), "activation": (5, 4, 4, 3)}
# Granularities: per tensor, a convolution's, a depthwise convolution's, a Dense layer's;
# activations per tensor or channel.
GRIDS = [
    ("weight", None),
    ("weight", (3,)),
    ("weight", (2, 3)),
    ("activation", None),
    ("activation", (-1,)),
]


class Built:
    """A quantizer with its variables."""

    def __init__(self, quantizer, shape, of_weight):
        self.quantizer, self.layer, self.of_weight = quantizer, keras.layers.Layer(), of_weight
        build_shape = shape if of_weight else (None, *shape[1:])
        self.variables = quantizer.build(tf.TensorShape(build_shape), "x", self.layer)

    @classmethod
    def of(cls, row, kind, axis=None, num_bits=4, shape=None):
        of_weight = kind == "weight"
        quantizer = row.weight(num_bits, axis) if of_weight else row.activation(num_bits, axis)
        return cls(quantizer, shape or SHAPES[kind], of_weight)

    def set(self, s, z):
        self.quantizer.set_grid(
            self.variables, np.asarray(s, np.float32), np.asarray(z, np.float32)
        )
        return self

    def __call__(self, x, training=False):
        return self.quantizer(tf.convert_to_tensor(x), training, self.variables)

    def codes(self, x):
        return self.quantizer.codes(tf.convert_to_tensor(x), self.variables).numpy()

    def grid(self):
        return tuple(np.asarray(part) for part in self.quantizer.grid(self.variables))

    def gradients(self, x, g, training=False):
        """Value, and gradients of `sum(g * quantizer(x))` by name."""
        x = tf.convert_to_tensor(x)
        learned = {name: v for name, v in self.variables.items() if v.trainable}
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self(x, training)
        found = tape.gradient(y, {"x": x, **learned}, output_gradients=tf.cast(g, y.dtype))
        return y.numpy(), {name: value.numpy() for name, value in found.items()}


def data(kind, seed=0, shape=None):
    random = np.random.default_rng(seed)
    shape = shape or SHAPES[kind]
    return random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(
        np.float32
    )


def case(row, kind, axis, num_bits=4, shape=None):
    """A quantizer on a grid of its own for every channel that clips some values on both sides, and
    its data."""
    x, g = data(kind, shape=shape)
    built = Built.of(row, kind, axis, num_bits, x.shape)
    spec = built.quantizer.spec
    places = spec.step_shape(x.shape)
    s = (
        np.random.default_rng(1).uniform(1.0, 1.5, places).astype(np.float32)
        / spec.qmax
        * (1 if kind == "weight" else 2)
    )
    z = (
        np.zeros(places)
        if kind == "weight"
        else np.random.default_rng(2).integers(1, spec.qmax, places)
    )
    built.set(s, z)
    return built, x, g


def reference_case(row, built, x, g):
    s, z = (part.astype(np.float64) for part in built.grid())
    variables = {name: v.numpy().astype(np.float64) for name, v in built.variables.items()}
    x, g, z = x.astype(np.float64), g.astype(np.float64), np.broadcast_to(z, s.shape)
    return Case(x, g, s, z, built.quantizer.spec, built.of_weight, variables, row.options)


def assert_gradients(row, built, x, g, gradients):
    expected = row.gradients(reference_case(row, built, x, g))
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def start(built, x, estimator="mse"):
    spec = built.quantizer.spec
    samples = Samples.of(grids_from_images._by_grid(x, spec))
    s, z = grids_from_images.estimate(samples, built.quantizer, estimator)
    built.quantizer.set_grid(
        built.variables, s.reshape(spec.step_shape(x.shape)), z.reshape(spec.step_shape(x.shape))
    )
