"""CR: the EMA teacher's closed form, the ramp, the loss, views and unlabeled images."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, bytes_of, fit, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.consistency import ConsistencyRegularization, ema_decay, ramp
from tf_fpq.training.qat_model import QatModel


def record_weights(student: keras.Model, after: list) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after.append([w.numpy() for w in student.weights])
    )


def test_the_ema_teacher_equals_its_closed_form():
    _, student = pair()
    method = ConsistencyRegularization(decay=0.6)
    after: list = []
    fit(QatModel(student, methods=[method]), epochs=3, callbacks=[record_weights(student, after)])
    trained = [any(weight is w for w in student.trainable_weights) for weight in student.weights]
    # a_t = min(1 - 1/(t+1), 0.6): the weight of update t is (1 - a_t) times the product of all
    # later a.
    decays = [min(1 - 1 / (t + 1), 0.6) for t in range(len(after))]
    shares = [(1 - decays[t]) * np.prod(decays[t + 1 :]) for t in range(len(after))]
    assert sum(shares) == pytest.approx(1.0)
    ema = [
        dict(zip(map(id, student.weights), method._ema_weights))[id(weight)].numpy()
        for weight in student.weights
    ]
    for index, (weight, is_trained) in enumerate(zip(ema, trained)):
        expected = (
            sum(s * w[index] for s, w in zip(shares, after)) if is_trained else after[-1][index]
        )
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_layers_that_are_unfrozen_later_are_averaged_too():
    averages = {}
    for frozen in (False, True):
        _, student = pair()
        for layer in student.layers:
            layer.trainable = not frozen
        method = ConsistencyRegularization(decay=0.6)
        model = QatModel(student, methods=[method])
        for layer in student.layers:
            layer.trainable = True
        fit(model, epochs=2)
        averages[frozen] = {w.name: w.numpy() for w in method.ema_teacher.weights}
    for name, early in averages[False].items():
        np.testing.assert_array_equal(early, averages[True][name], name)


def test_decay_is_a_plain_mean_at_first():
    values = [float(ema_decay(tf.constant(float(t)), 0.999)) for t in (0, 1, 3, 10_000)]
    np.testing.assert_allclose(values, [0.0, 0.5, 0.75, 0.999], rtol=1e-6)


def test_ramp_equals_its_formula():
    steps = np.array([0.0, 25.0, 50.0, 100.0, 1000.0], np.float32)
    expected = [np.exp(-5), np.exp(-5 * 0.75**2), np.exp(-5 * 0.25), 1.0, 1.0]
    np.testing.assert_allclose(ramp(tf.constant(steps), tf.constant(100.0)), expected, rtol=1e-5)
    np.testing.assert_array_equal(ramp(tf.constant(steps), tf.constant(0.0)), np.ones(5))


@pytest.mark.parametrize("divergence", ["kl", "mse"])
def test_loss_equals_its_formula(divergence):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 4)).astype(np.float32)
    method = ConsistencyRegularization(
        weight=2.0, temperature=1.5, divergence=divergence, ramp_up=0
    )
    method([tf.constant(student), tf.constant(teacher)])
    q, p = (tf.nn.softmax(x / 1.5).numpy() for x in (student, teacher))
    distance = (
        (p * np.log(p / q)).sum(-1).mean() if divergence == "kl" else ((p - q) ** 2).sum(-1).mean()
    )
    np.testing.assert_allclose(method.losses[0], 2.0 * distance, rtol=1e-4)


def test_the_share_of_ramp_up_is_of_the_whole_training():
    _, student = pair()
    method = ConsistencyRegularization(ramp_up=0.5)
    fit(QatModel(student, methods=[method]), epochs=4)  # 8 steps
    assert float(method._ramp_steps) == 4.0


def test_a_share_needs_a_known_number_of_steps():
    _, student = pair()
    model = QatModel(student, methods=[ConsistencyRegularization()])
    model.compile("sgd", loss=LOSS)
    data = tf.data.Dataset.from_generator(
        lambda: iter([(images(4), labels(4))]),
        output_signature=(tf.TensorSpec([4, 8, 8, 1]), tf.TensorSpec([4], tf.int64)),
    )
    with pytest.raises(
        ValueError, match="ramp_up=0.15 is a share of the training steps.*steps_per_epoch"
    ):
        model.fit(data, epochs=2, verbose=0)


def two_view_data(weak: np.ndarray, strong: np.ndarray, **more: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(
        ({"weak": weak, "strong": strong, **more}, labels(len(weak)))
    )


def losses_of(student: keras.Model, data: tf.data.Dataset, **arguments) -> dict[str, float]:
    """Losses of one step from the student as it is; the learning rate is 0."""
    model = QatModel(student, methods=[ConsistencyRegularization(ramp_up=0, **arguments)])
    model.compile(keras.optimizers.SGD(0.0), loss=LOSS, metrics=["accuracy"])
    return {name: value[0] for name, value in model.fit(data, verbose=0).history.items()}


def test_student_sees_the_strong_view_and_the_ema_teacher_the_weak_one():
    _, student = pair()
    weak, strong = images(16, seed=2), images(16, seed=3)
    ours = student(strong, training=True).numpy()
    _, student = pair()
    theirs = tf.nn.softmax(student(weak, training=False)).numpy()
    expected = (theirs * np.log(theirs / tf.nn.softmax(ours).numpy())).sum(-1).mean()
    logs = losses_of(student, two_view_data(weak, strong))
    assert logs["cr_loss"] == pytest.approx(expected, rel=1e-3)
    assert logs["task_loss"] == pytest.approx(float(LOSS(labels(16), ours)), rel=1e-5)


def test_unlabeled_images_join_the_consistency_and_never_the_supervised_loss():
    weak, strong = images(16, seed=2), images(16, seed=3)
    unlabeled = {"unlabeled_weak": images(24, seed=4), "unlabeled_strong": images(24, seed=5)}
    _, student = pair()
    outputs = student(
        np.concatenate([strong, unlabeled["unlabeled_strong"]]), training=True
    ).numpy()
    _, student = pair()
    ema = tf.nn.softmax(
        student(np.concatenate([weak, unlabeled["unlabeled_weak"]]), training=False)
    ).numpy()
    logs = losses_of(student, two_view_data(weak, strong, **unlabeled))
    assert logs["task_loss"] == pytest.approx(float(LOSS(labels(16), outputs[:16])), rel=1e-5)
    assert logs["accuracy"] == pytest.approx((outputs[:16].argmax(-1) == labels(16)).mean())
    all_images = (ema * np.log(ema / tf.nn.softmax(outputs).numpy())).sum(-1).mean()
    assert logs["cr_loss"] == pytest.approx(all_images, rel=1e-3)


def test_a_float_ema_teacher_computes_without_grids():
    weak = images(16, seed=2)
    teacher, student = pair(bits=2)
    ours = student(weak, training=True).numpy()
    results = {}
    for quantized, model in ((True, "student"), (False, "teacher")):
        teacher, student = pair(bits=2)
        p = tf.nn.softmax(
            {"student": student, "teacher": teacher}[model](weak, training=False)
        ).numpy()
        results[quantized] = (p * np.log(p / tf.nn.softmax(ours).numpy())).sum(-1).mean()
        logs = losses_of(student, two_view_data(weak, weak), quantized_teacher=quantized)
        assert logs["cr_loss"] == pytest.approx(results[quantized], rel=1e-3)
    assert results[True] != pytest.approx(results[False], rel=1e-2)


@pytest.mark.parametrize("layer", [None, "stem_relu"])
def test_latent_consistency(layer):
    weak, strong = images(16, seed=2), images(16, seed=3)
    name = layer or "pool_quantize"

    def latent(training, x):
        _, student = pair()
        return keras.Model(student.inputs, student.get_layer(name).output)(
            x, training=training
        ).numpy()

    expected = 3.0 * ((latent(True, strong) - latent(False, weak)) ** 2).mean()
    _, student = pair()
    logs = losses_of(
        student, two_view_data(weak, strong), weight=0.0, latent_weight=3.0, latent_layer=layer
    )
    assert logs["cr_loss"] == pytest.approx(expected, rel=1e-3)


def test_weight_zero_is_plain_training_bit_for_bit():
    _, student = pair(regularizer=1e-3)
    fit(QatModel(student))
    _, other = pair(regularizer=1e-3)
    fit(QatModel(other, methods=[ConsistencyRegularization(weight=0.0)]))
    assert bytes_of(student) == bytes_of(other)


def test_the_ema_teacher_is_in_checkpoints_but_not_trained(tmp_path):
    _, student = pair(regularizer=1e-3)
    method = ConsistencyRegularization()
    model = QatModel(student, methods=[method])
    assert len(model.losses) == len(student.losses)
    assert [w.name for w in model.trainable_weights] == [w.name for w in student.trainable_weights]
    fit(model)
    model.save_weights(str(tmp_path / "checkpoint"))
    _, other = pair()
    again = ConsistencyRegularization()
    restored = QatModel(other, methods=[again])
    restored.load_weights(str(tmp_path / "checkpoint")).expect_partial()
    assert bytes_of(again.ema_teacher) == bytes_of(method.ema_teacher)
    assert float(again._updates) == 4.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight": -1.0},
        {"decay": 1.0},
        {"temperature": 0.0},
        {"divergence": "js"},
        {"ramp_up": -0.5},
        {"latent_weight": -1.0},
    ],
)
def test_bad_arguments(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name} must .*Received: {name}={value!r}"):
        ConsistencyRegularization(**arguments)


def test_unknown_latent_layer():
    _, student = pair()
    with pytest.raises(
        ValueError,
        match="latent_layer must be a layer of the student. Received: latent_layer='pol'",
    ):
        QatModel(
            student, methods=[ConsistencyRegularization(latent_weight=1.0, latent_layer="pol")]
        )


def test_config_makes_an_equal_method():
    arguments = {
        "weight": 0.5,
        "decay": 0.9,
        "temperature": 2.0,
        "divergence": "mse",
        "ramp_up": 7,
        "quantized_teacher": False,
        "latent_weight": 0.1,
        "latent_layer": "pool",
        "from_logits": False,
    }
    again = ConsistencyRegularization.from_config(
        ConsistencyRegularization(**arguments).get_config()
    )
    assert {name: getattr(again, name) for name in arguments} == arguments
