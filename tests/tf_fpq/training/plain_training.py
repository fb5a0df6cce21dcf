"""Trains a student by `student.fit` and by a `QatModel` with no method, and prints the largest
difference of their weights.

python -m tests.tf_fpq.training.plain_training
"""

import numpy as np

import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.native import tracing

layers = keras.layers


def student_of(x: np.ndarray) -> keras.Model:
    keras.utils.set_random_seed(0)
    tensor = image = keras.Input(x.shape[1:])
    for filters in (16, 32, 32):
        tensor = layers.Conv2D(filters, 3, padding="same", use_bias=False)(tensor)
        tensor = layers.ReLU()(layers.BatchNormalization()(tensor))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(tensor))
    rule = tf_fpq.QuantRule(".*", weight_bits=4, activation_bits=4)
    student = tf_fpq.quantize_model(keras.Model(image, outputs), [rule])
    tf_fpq.calibrate(student, x[:64], verbose=0)
    return student


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((256, 16, 16, 3), np.float32), rng.integers(0, 10, 256)
    results = []
    for wrapped in (False, True):
        student = model = student_of(x)
        if wrapped:
            model = tf_fpq.QatModel(student, step_size_learning_rate_factor=1.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
        with tracing.training_step():  # the operations that a QatModel uses
            model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
        results.append(student.get_weights())
    print(max(float(np.abs(a - b).max()) for a, b in zip(*results, strict=True)))


if __name__ == "__main__":
    main()
