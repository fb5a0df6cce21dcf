"""Mixtures, averages, weights of losses and stages: what changes a training with any method."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from experiments import fitting, models, pipeline
from experiments.checkpoints import Checkpoints
from experiments.config import Config
import tf_fpq
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import quantized_weights

SHORT = Config(
    **{"train_examples": 64, "width": 4, "batch_size": 32, "epochs": 2, "methods": ("kd",)},
    **{"weight_bits": 2, "activation_bits": 2},
)


@pytest.fixture(scope="module")
def dataset(digits):
    first = slice(0, 64)
    return dataclasses.replace(
        digits,
        train_images=digits.train_images[first],
        train_labels=digits.train_labels[first],
        test_images=digits.test_images[first],
        test_labels=digits.test_labels[first],
    )


@pytest.fixture(scope="module")
def teacher(dataset):
    keras.utils.set_random_seed(0)
    model = models.build("resnet8", dataset.image_shape, 10, 4)
    tf_fpq.callbacks.reestimate_batch_norm(model, dataset.plain_train_batches())
    return model


def train(teacher, dataset, tmp_path=None, **changes):
    config = dataclasses.replace(SHORT, **changes)
    pipeline.seed_everything(config)
    student = pipeline.quantized_student(config, teacher, dataset)
    saved = Checkpoints(tmp_path) if tmp_path else None
    history = pipeline.train_student(
        config, student, teacher, dataset, watch=False, checkpoints=saved
    )
    return student, history


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_the_labels_loss_labels_have_no_say(teacher, dataset):
    other = dataclasses.replace(dataset, train_labels=(dataset.train_labels + 1) % 10)
    results = [train(teacher, images, task_weight=0.0) for images in (dataset, other)]
    for a, b in zip(*(student.get_weights() for student, _ in results)):
        np.testing.assert_array_equal(a, b)
    assert results[0][1]["task_loss"] == [0.0, 0.0] and min(results[0][1]["kd_loss"]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mixtures_train_and_are_watched_with_labels_of_their_kind(teacher, dataset):
    config = dataclasses.replace(SHORT, mixup=1.0, methods=("kd", "cr"), epochs=1)
    student = pipeline.quantized_student(config, teacher, dataset)
    history = pipeline.train_student(config, student, teacher, dataset)
    assert np.isfinite(history["loss"]).all() and "val_accuracy" in history
    (images, labels), *_ = fitting._train_batches(None, config, dataset).as_numpy_iterator()
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    assert labels.shape == (32, 10) and 0.05 < (labels.max(axis=1) < 0.99).mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_averaged_weights_survive_a_kill(teacher, dataset, tmp_path):
    whole, _ = train(teacher, dataset, average_from=0.0, epochs=3)

    class Kill(Exception):
        pass

    class Killer(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Kill

    config = dataclasses.replace(SHORT, average_from=0.0, epochs=3)
    pipeline.seed_everything(config)
    student = pipeline.quantized_student(config, teacher, dataset)
    with pytest.raises(Kill):
        pipeline.train_student(
            *(config, student, teacher, dataset),
            watch=False,
            callbacks=[Killer()],
            checkpoints=Checkpoints(tmp_path),
        )
    resumed, history = train(teacher, dataset, tmp_path, average_from=0.0, epochs=3)
    assert len(history["loss"]) == 3
    for a, b in zip(whole.get_weights(), resumed.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
def test_a_student_without_rounding_is_the_network_it_came_from(teacher, dataset, quantizer):
    config = dataclasses.replace(SHORT, quantizer=quantizer)
    student = pipeline.quantized_student(config, teacher, dataset)
    again = pipeline.unquantized(student, teacher)
    for ours, theirs in zip(again.get_weights(), teacher.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert again.get_layer("stem_conv") is not teacher.get_layer("stem_conv")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_stage_hands_on_the_weights_that_it_trained(teacher, dataset, tmp_path):
    config = dataclasses.replace(SHORT, stages=("W4A4",), epochs=3)
    before = [weight.copy() for weight in teacher.get_weights()]
    pipeline.seed_everything(config)
    network, last = pipeline.after_stages(
        config, teacher, dataset, lambda name: Checkpoints(tmp_path / name)
    )
    assert (last.epochs, last.weight_bits, last.stages) == (2, 2, ())
    changes = {"weight_bits": 4, "activation_bits": 4, "epochs": 1}
    expected, _ = train(teacher, dataset, **changes)
    student = pipeline.quantized_student(last, network, dataset)
    for layer in student.layers:
        for name, weight, _, _ in quantized_weights(layer):
            (theirs,) = [
                w.variable
                for w in quantized_weights(expected.get_layer(layer.name))
                if w.name == name
            ]
            np.testing.assert_array_equal(weight, theirs)
    for ours, theirs in zip(before, teacher.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert tf.io.gfile.exists(str(tmp_path / "stage0"))
