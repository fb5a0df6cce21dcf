"""Callbacks: what they compute, and that they change nothing else."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, fit, images, labels, network, pair
import tf_fpq
from tf_fpq import callbacks
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import KnowledgeDistillation
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.training.qat_model import QatModel


def norm_inputs(student: keras.Model, x: np.ndarray) -> list[np.ndarray]:
    names = ["stem_bn", "depthwise_bn", "pointwise_bn"]
    return keras.Model(student.inputs, [student.get_layer(name).input for name in names])(
        x, training=True
    )


def test_batch_norms_get_the_mean_statistics_of_the_batches():
    _, student = pair()
    parts = [images(16, seed=4), images(16, seed=5)]
    seen = [[value.numpy() for value in norm_inputs(student, part)] for part in parts]
    others = [w.numpy() for w in student.trainable_weights]
    callbacks.reestimate_batch_norm(student, [(part, None) for part in parts])
    for index, name in enumerate(["stem_bn", "depthwise_bn", "pointwise_bn"]):
        layer = student.get_layer(name)
        mean = np.mean([part[index].mean(axis=(0, 1, 2)) for part in seen], axis=0)
        # The fused kernel keeps the unbiased variance.
        count = seen[0][index][..., 0].size
        variance = (
            np.mean([part[index].var(axis=(0, 1, 2)) for part in seen], axis=0)
            * count
            / (count - 1)
        )
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4, atol=1e-6)
        assert layer.momentum == 0.99
    for weight, old in zip(student.trainable_weights, others):
        np.testing.assert_array_equal(weight, old)


def test_reestimation_after_training():
    results = []
    for more in ([], [callbacks.BatchNormReestimation(tf.data.Dataset.from_tensors(images()))]):
        _, student = pair()
        fit(QatModel(student), callbacks=more)
        results.append(student)
    callbacks.reestimate_batch_norm(results[0], [images()])
    for a, b in zip(results[0].get_weights(), results[1].get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("quantizer", ["lsq", "min_max"])
def test_reestimation_changes_nothing_but_moving_statistics(quantizer):
    keras.utils.set_random_seed(0)
    student = tf_fpq.quantize_model(network(), [tf_fpq.QuantRule(".*")], quantizer=quantizer)
    tf_fpq.calibrate(student, images(), verbose=0)
    student.get_layer("pointwise_bn").trainable = False
    before = {weight.name: weight.numpy() for weight in student.weights}
    nodes = len(student.get_layer("stem_bn")._inbound_nodes)
    callbacks.reestimate_batch_norm(student, [3 * images(16, seed=seed) for seed in range(3)])
    moved = {w.name for w in student.weights if (w.numpy() != before[w.name]).any()}
    assert moved == {
        f"{norm}/moving_{moment}:0"
        for norm in ("stem_bn", "depthwise_bn")
        for moment in ("mean", "variance")
    }
    assert len(student.get_layer("stem_bn")._inbound_nodes) == nodes


def test_reestimation_after_training_on_two_views_takes_the_weak_view():
    _, student = pair()
    data = tf.data.Dataset.from_tensors(({"weak": images(), "strong": images(seed=7)}, labels()))
    fit(
        QatModel(student),
        x=data,
        y=None,
        batch_size=None,
        callbacks=[callbacks.BatchNormReestimation(data)],
    )
    after = student.get_weights()
    callbacks.reestimate_batch_norm(student, [images()])
    for a, b in zip(after, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_reestimation_needs_batches():
    _, student = pair()
    with pytest.raises(ValueError, match="batches is empty"):
        callbacks.reestimate_batch_norm(student, [])
    assert student.get_layer("stem_bn").momentum == 0.99


def test_tracker_logs_the_share_of_oscillating_weights():
    shares = {}
    for learning_rate in (0.0, 0.5):
        _, student = pair(bits=2)
        tracker = callbacks.OscillationTracker(threshold=0.05, momentum=0.1)
        history = fit(QatModel(student), epochs=8, learning_rate=learning_rate, callbacks=[tracker])
        shares[learning_rate] = history["oscillating"][-1]
        assert set(tracker.shares) == {
            "stem/kernel",
            "depthwise/depthwise_kernel",
            "pointwise/kernel",
            "logits/kernel",
        }
    assert shares[0.0] == 0.0
    assert 0.0 < shares[0.5] <= 1.0


def test_tracker_follows_a_plain_student_too():
    _, student = pair()
    assert "oscillating" in fit(student, callbacks=[callbacks.OscillationTracker()])


def test_tracker_must_see_every_step():
    _, student = pair()
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        fit(QatModel(student), callbacks=[callbacks.OscillationTracker()], steps_per_execution=2)


def test_grids_are_what_the_student_computes_on():
    _, student = pair()
    layer = student.get_layer("stem_relu_quantize")
    step_size, low, high = callbacks.grids(student)["stem_relu_quantize"]
    values = layer(tf.constant([[[[-1e6, 1e6]]]])).numpy().ravel()
    np.testing.assert_allclose([low, high], values, rtol=1e-6)
    assert step_size == pytest.approx((high - low) / 15, rel=1e-6)
    assert "pointwise/kernel" in callbacks.grids(student)


def test_grid_logger_writes_events(tmp_path):
    _, student = pair()
    fit(QatModel(student), callbacks=[callbacks.GridLogger(tmp_path)])
    steps = {}
    for path in tmp_path.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                steps.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert set(steps["step_size/stem/kernel"]) == {0, 1}
    step_size, low, high = callbacks.grids(student)["image_quantize"]
    assert steps["step_size/image_quantize"][1] == pytest.approx(step_size)
    assert steps["range_low/image_quantize"][1] == pytest.approx(low)
    assert steps["range_high/image_quantize"][1] == pytest.approx(high)


def test_schedule_sets_a_coefficient_before_every_step():
    teacher, student = pair()
    method = KnowledgeDistillation(weight=1.0)
    seen = []
    schedule = callbacks.Schedule(method, "weight", lambda done: 2.0 * done)
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: seen.append(float(method.coefficient("weight")))
    )
    fit(QatModel(student, teacher, [method]), epochs=2, callbacks=[schedule, record])
    np.testing.assert_allclose(seen, [0.0, 0.5, 1.0, 1.5])


def test_a_scheduled_coefficient_changes_the_loss_without_a_new_trace():
    teacher, student = pair()
    method = KnowledgeDistillation(weight=1.0)
    model = QatModel(student, teacher, [method])
    model.compile(keras.optimizers.SGD(0.0), loss=LOSS)
    losses = {}
    for weight in (1.0, 3.0):
        method.set_coefficient("weight", weight)
        losses[weight] = model.fit(
            images(), labels(), batch_size=32, shuffle=False, verbose=0
        ).history["kd_loss"][0]
    assert losses[3.0] == pytest.approx(3 * losses[1.0], rel=1e-5)
    assert (
        model.train_tf_function is None
        or model.train_tf_function.experimental_get_tracing_count() <= 2
    )


def test_noise_is_annealed():
    _, student = pair()
    noise = FeaturePerturbation(1.0)
    fit(
        QatModel(student, methods=[noise]),
        callbacks=[callbacks.Schedule(noise, "probability", callbacks.cosine(1.0, 0.0))],
    )
    assert float(noise.coefficient("probability")) == pytest.approx(
        0.5 * (1 + np.cos(np.pi * 0.75))
    )


def test_cosine():
    curve = callbacks.cosine(1.0, 3.0)
    np.testing.assert_allclose([curve(0.0), curve(0.5), curve(1.0)], [1.0, 2.0, 3.0])


def test_unknown_coefficient():
    message = (
        "coefficient must be one of probability for FeaturePerturbation. Received:"
        " coefficient='rate'"
    )
    with pytest.raises(ValueError, match=message):
        callbacks.Schedule(FeaturePerturbation(), "rate", lambda done: done)
    with pytest.raises(
        ValueError,
        match="FeaturePerturbation has the coefficients probability. Received: name='rate'",
    ):
        FeaturePerturbation().set_coefficient("rate", 0.0)


def test_training_logger_writes_what_tensorboard_reads(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    teacher, student = pair()
    model = QatModel(student, teacher, [KnowledgeDistillation()])
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(val_twin_accuracy=0.25 * epoch)
    )
    oscillation, logger = callbacks.OscillationTracker(), callbacks.TrainingLogger(tmp_path)
    history = fit(model, epochs=2, callbacks=[oscillation, told, logger])
    reader = event_accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    written = {tag: reader.Tensors(tag) for tag in reader.Tags()["tensors"]}
    numbers = {
        tag: [float(tf.make_ndarray(event.tensor_proto)) for event in events]
        for tag, events in written.items()
    }
    assert [event.step for event in written["loss/loss"]] == [0, 1]
    for name in ("loss", "task_loss", "kd_loss"):
        np.testing.assert_allclose(numbers[f"loss/{name}"], history[name], rtol=1e-6)
    np.testing.assert_allclose(numbers["metric/oscillating"], history["oscillating"], rtol=1e-6)
    assert numbers["metric/val_twin_accuracy"] == [0.0, 0.25]
    rate = float(keras.backend.get_value(model.optimizer.learning_rate))
    np.testing.assert_allclose(numbers["learning_rate"], [rate, rate], rtol=1e-6)
    step_size, low, high = callbacks.grids(student)["stem/kernel"]
    assert numbers["step_size/stem/kernel"][1] == pytest.approx(step_size)


class Snapshots(keras.callbacks.Callback):
    """The student's trainable weights after every epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        student = callbacks.student_of(self.model)
        self.epochs.append([weight.numpy() for weight in student.trainable_weights])


def test_weights_become_the_mean_of_the_last_epochs():
    teacher, student = pair()
    snapshots, averaging = Snapshots(), callbacks.WeightAveraging(None, start=0.5)
    fit(QatModel(student), epochs=4, callbacks=[snapshots, averaging])
    assert averaging.count == 2
    for weight, *values in zip(student.trainable_weights, *snapshots.epochs[2:]):
        np.testing.assert_allclose(weight, np.mean(values, axis=0), rtol=1e-5, atol=1e-7)
        if weight.shape.rank == 4:
            assert (weight.numpy() != values[-1]).any()


def test_the_mean_of_one_epoch_is_the_epoch_itself():
    results = []
    for more in ([], [callbacks.WeightAveraging(None)]):
        _, student = pair()
        fit(QatModel(student), epochs=2, callbacks=more)
        results.append(student.get_weights())
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_batch_norms_have_the_statistics_of_the_mean():
    _, student = pair()
    fit(QatModel(student), epochs=4, callbacks=[callbacks.WeightAveraging([images()], start=0)])
    moved = {w.name: w.numpy() for w in student.weights if "moving" in w.name}
    callbacks.reestimate_batch_norm(student, [images()])
    for weight in student.weights:
        if "moving" in weight.name:
            np.testing.assert_array_equal(weight, moved[weight.name])


def test_an_averaging_that_goes_on_from_its_state_ends_with_the_same_bits(tmp_path):
    whole, parts = (pair()[1] for _ in range(2))
    fit(QatModel(whole), epochs=4, callbacks=[callbacks.WeightAveraging([images()], start=0.25)])
    first = callbacks.WeightAveraging([images()], start=0.25)
    first.on_train_end = lambda logs=None: None  # killed before it
    model = QatModel(parts)
    fit(model, epochs=4, callbacks=[first, StopAfter(2)])
    path = tf.train.Checkpoint(state=first.state(model)).write(str(tmp_path / "averaging"))
    second = callbacks.WeightAveraging([images()], start=0.25)
    tf.train.Checkpoint(state=second.state(model)).read(path).assert_consumed()
    arguments = {"batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": [second]}
    model.fit(images(), labels(), epochs=4, initial_epoch=2, **arguments)
    assert second.count == 3
    for a, b in zip(whole.get_weights(), parts.get_weights()):
        np.testing.assert_array_equal(a, b)


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epochs):
        super().__init__()
        self._epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self._epochs


@pytest.mark.parametrize("start", [-0.1, 1.0])
def test_the_share_from_which_weights_count_is_checked(start):
    with pytest.raises(ValueError, match=f"start must be at least 0 and below 1.*{start}"):
        callbacks.WeightAveraging(None, start=start)
