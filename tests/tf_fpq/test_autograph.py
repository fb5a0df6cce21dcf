"""TensorFlow parses nothing of the library, and of users all that it always did."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.autograph.impl import conversion
import tensorflow_model_optimization as tfmot

import tf_fpq
from tf_fpq.keras_compat import keras, register
from tf_fpq.quantizers.lsq import LsqQuantizer
import tflite_export.twin.integer_twin

IMAGES = np.random.default_rng(0).random((8, 6, 6, 3), dtype=np.float32)
LABELS = np.arange(8) % 4
RULES = [tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)]


# Each of them branches in Python on a value that is known in the step alone.
@register
class BranchingConvolution(keras.layers.Conv2D):
    def call(self, inputs):
        if tf.reduce_sum(inputs) > 1e9:
            inputs = inputs * 0.0
        return super().call(inputs)


@register
class BranchingQuantizer(LsqQuantizer):
    def __call__(self, inputs, training, weights, **kwargs):
        result = super().__call__(inputs, training, weights, **kwargs)
        if tf.reduce_sum(inputs) > 1e9:
            result = result * 0.0
        return result


class BranchingMethod(tf_fpq.Method):
    def add_step_losses(self, step):
        if tf.reduce_sum(step.predictions) > 1e9:
            tf.print("large")

    def gradients(self, variables, compute):
        predictions, values = compute()
        if tf.reduce_sum(predictions) > 1e9:
            predictions = predictions * 0.0
        return tf_fpq.Gradients(predictions, values)

    def targets(self, batch):
        if tf.reduce_sum(batch.images) > 1e9:
            tf.print("large")

    def after_update(self):
        for variable in tf.range(2):
            if variable > 5:
                tf.print("large")


def branching_view(images, seed):
    if tf.reduce_sum(images) > 1e9:
        images = images * 0.0
    return images


def student_of(convolution, rules):
    image = keras.Input((6, 6, 3))
    x = convolution(4, 3, name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    network = keras.Model(image, keras.layers.Dense(4, name="logits")(x))
    student = tf_fpq.quantize_model(network, rules)
    tf_fpq.calibrate(student, IMAGES)
    return student, network


def fit(student, images, teacher=None, methods=()):
    model = tf_fpq.QatModel(student, teacher, list(methods))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(images, None if isinstance(images, tf.data.Dataset) else LABELS, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_a_layer_of_a_user_is_translated():
    kernel = tf_fpq.Kernel("kernel", (3,))
    tf_fpq.register_layer(BranchingConvolution, role=tf_fpq.Role.KERNEL, kernel=kernel)
    student, _ = student_of(BranchingConvolution, RULES)
    fit(student, IMAGES)


def test_a_quantizer_of_a_user_is_translated():
    config = tf_fpq.LsqQuantizeConfig(4, 4, quantizer=BranchingQuantizer)
    student, network = student_of(keras.layers.Conv2D, [tf_fpq.QuantRule(".*", config=config)])
    noise = tf_fpq.FeaturePerturbation(probability=1.0)
    fit(student, IMAGES, network, [noise, tf_fpq.StudentGridDistillation()])


def test_a_method_of_a_user_is_translated():
    student, network = student_of(keras.layers.Conv2D, RULES)
    fit(student, IMAGES, network, [BranchingMethod(), *tf_fpq.fpq()])


def test_a_view_of_a_user_is_translated():
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
    views = tf_fpq.two_views(batches, weak=branching_view, strong=branching_view, seed=0)
    student, _ = student_of(keras.layers.Conv2D, RULES)
    fit(student, views, methods=tf_fpq.cr())


@pytest.mark.parametrize(
    "function",
    [tf_fpq.QatModel.train_step, LsqQuantizer.__call__, tf_fpq.WeakAugmentation.__call__]
    + [tflite_export.twin.integer_twin.IntegerTwin.call],
)
def test_the_library_is_not_parsed(function):
    assert conversion.is_allowlisted(function)
    assert not conversion.is_allowlisted(branching_view)
    assert not conversion.is_allowlisted(tfmot.quantization.keras.quantize_model)
