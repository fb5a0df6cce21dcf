"""The gate of calibration: 8 bits without any training are within half a point of float."""

import numpy as np
import pytest
import tensorflow as tf

from experiments import data
from experiments.models.resnet import resnet8
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.placement.quantize_configs import QUANTIZE_CONFIGS


def _trained(dataset: data.Dataset, epochs: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = resnet8(dataset.image_shape, dataset.num_classes, width=8)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.1, epochs * (len(dataset.train_images) // 64)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss)
    model.fit(dataset.train_batches(64, seed=0), epochs=epochs, verbose=0)
    return model


def _accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    run = tf.function(lambda batch: model(batch, training=False))
    predictions = np.concatenate([run(images[i : i + 500]) for i in range(0, len(images), 500)])
    return 100 * float((predictions.argmax(axis=1) == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, train_examples, epochs, floor",
    [("digits", None, 15, 95), ("fashion_mnist", 10000, 2, 65)],
)
def test_eight_bits_are_within_half_a_point_of_float(name, train_examples, epochs, floor):
    try:
        dataset = data.load(name, train_examples=train_examples)
    except data.DatasetMissingError as error:
        pytest.skip(str(error))
    model = _trained(dataset, epochs)
    images, labels = dataset.test
    expected = _accuracy(model, images, labels)
    assert expected > floor
    accuracies = {}
    for quantizer in QUANTIZE_CONFIGS:
        student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()], quantizer)
        tf_fpq.calibrate(student, dataset.calibration_images(100, seed=0), verbose=0)
        accuracies[quantizer] = _accuracy(student, images, labels)
    print(f"{name}: float {expected:.2f}, W8A8 {accuracies}")
    lost = {name: expected - accuracy for name, accuracy in accuracies.items()}
    assert len(lost) == 6 and all(abs(points) <= 0.5 for points in lost.values()), lost
