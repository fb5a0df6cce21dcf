"""Trains the small student as `test_scale.py` asks, in a process of its own, and writes losses and
weights to a file.

python -m tests.tf_fpq.distributed_training none|mirrored|workers METHODS FILE
"""

import sys

import numpy as np
import tensorflow as tf

from tests.tf_fpq import small_student
from tf_fpq.keras_compat import keras
from tf_fpq.methods import presets
from tf_fpq.training.qat_model import QatModel


def strategy_of(kind: str) -> tf.distribute.Strategy:
    if kind == "none":
        return tf.distribute.get_strategy()
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.MultiWorkerMirroredStrategy()


def halves_twice(array: np.ndarray) -> np.ndarray:
    """Batches of 16 whose second half repeats the first: what a replica normalises over is what one
    device would."""
    return np.concatenate(
        [np.concatenate([part, part]) for part in np.split(array, len(array) // 8)]
    )


def main(kind: str, methods: str, path: str) -> None:
    strategy = strategy_of(kind)
    images, labels = halves_twice(small_student.images(32)), halves_twice(small_student.labels(32))
    with strategy.scope():
        teacher, student = small_student.pair(regularizer=1e-3)
        model = QatModel(student, teacher, presets.methods_from_names(methods, sfp={"seed": 0}))
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9), loss=small_student.LOSS, metrics=["accuracy"]
        )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    options = tf.data.Options()
    # Each global batch is cut into one piece per replica, on every worker; a worker keeps its own.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    history = model.fit(data.with_options(options), epochs=2, verbose=0).history
    arrays = {f"weight_{i}": weight for i, weight in enumerate(student.get_weights())}
    for method in model.methods:
        if method.name == "cr":
            arrays.update({f"ema_{i}": w.numpy() for i, w in enumerate(method._ema_weights)})
    np.savez(
        path, **arrays, **{f"log_{name}": np.array(values) for name, values in history.items()}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
