"""Variables that are made before the first step are those that Keras makes in it."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fpq.keras_compat import keras
from tf_fpq.training import first_trace

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def model(outputs):
    inputs = keras.Input((3,))
    return keras.Model(inputs, [keras.layers.Dense(2, name=f"out{i}")(inputs) for i in outputs])


def compiled(outputs, labels):
    result = model(outputs)
    result.compile(
        keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    return result, tf.data.Dataset.from_tensors((X, labels))


CLASSES = np.arange(8) % 2
CASES = pytest.mark.parametrize(
    "outputs, labels",
    [([0], CLASSES), ([0, 1], (CLASSES, CLASSES[:, np.newaxis]))],
    ids=["one output", "two outputs"],
)


def traces_of_first_step(keras_model, data):
    traces = []

    @tf.function
    def step(batch):
        traces.append(1)
        return keras_model.train_step(batch)

    step(next(iter(data)))
    return len(traces)


def made(keras_model, data):
    first_trace.make_variables(keras_model, keras_model.output, data.element_spec)


@CASES
def test_a_step_needs_one_trace(outputs, labels):
    before, data = compiled(outputs, labels)
    assert traces_of_first_step(before, data) == 2
    after, _ = compiled(outputs, labels)
    made(after, data)
    assert traces_of_first_step(after, data) == 1


@CASES
def test_the_metrics_are_those_that_keras_makes(outputs, labels):
    ours, data = compiled(outputs, labels)
    made(ours, data)
    theirs, _ = compiled(outputs, labels)
    theirs.set_weights(ours.get_weights())
    expected, logs = (m.fit(data, epochs=2, verbose=0).history for m in (theirs, ours))
    assert logs == expected


def test_labels_may_be_absent():
    ours = model([0])
    ours.compile(keras.optimizers.SGD(0.1))
    made(ours, tf.data.Dataset.from_tensors(X))
    assert ours.optimizer._built
