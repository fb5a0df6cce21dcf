"""CSD and KD: their defining properties, and use in a model of one's own."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, bytes_of, fit, images, labels, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import (
    ChannelStandardizedDistillation,
    KnowledgeDistillation,
)
from tf_fpq.methods.standardization import standardized_distance
from tf_fpq.training.qat_model import QatModel

layers = keras.layers


def features(seed: int, shape=(8, 6, 6, 5)) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def test_csd_in_a_model_of_ones_own():
    image = keras.Input((8, 8, 1))
    ours = layers.Conv2D(3, 3, name="ours")(image)
    fixed = layers.Conv2D(3, 3, trainable=False, name="theirs")
    followed = ChannelStandardizedDistillation(weight=2.0)([ours, fixed(image)])
    model = keras.Model(image, layers.GlobalAveragePooling2D()(followed))
    x = images()
    expected = 2.0 * standardized_distance(model.get_layer("ours")(x), fixed(x))
    model(x)
    assert len(model.losses) == 1
    np.testing.assert_allclose(model.losses[0], expected, rtol=1e-5)
    model.compile(keras.optimizers.SGD(0.5))  # no loss of its own: the method's is all there is
    history = model.fit(x, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_no_gradient_reaches_the_teacher():
    student, teacher = tf.Variable(features(0)), tf.Variable(features(1))
    method = ChannelStandardizedDistillation()
    with tf.GradientTape() as tape:
        method([student, teacher])
        loss = tf.add_n(method.losses)
    gradients = tape.gradient(loss, [student, teacher])
    assert gradients[0] is not None and gradients[1] is None


def test_the_loss_of_a_step_is_the_sum_over_convolutions():
    teacher, student = pair()
    model = QatModel(student, teacher, [ChannelStandardizedDistillation(weight=0.5)])
    names = ["stem", "depthwise", "pointwise"]
    ours = keras.Model(student.inputs, [student.get_layer(name).output for name in names])(
        images(), training=True
    )
    theirs = keras.Model(teacher.inputs, [teacher.get_layer(name).output for name in names])(
        images(), training=False
    )
    expected = 0.5 * sum(float(standardized_distance(a, b)) for a, b in zip(ours, theirs))
    history = fit(model, epochs=1, learning_rate=0.0, batch_size=32)
    assert history["csd_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert history["loss"][0] == pytest.approx(history["task_loss"][0] + expected, rel=1e-4)


def test_teacher_bytes_never_change():
    teacher, student = pair()
    before = bytes_of(teacher)
    ours = bytes_of(student)
    fit(QatModel(student, teacher, [ChannelStandardizedDistillation()]))
    assert bytes_of(teacher) == before
    assert bytes_of(student) != ours


def test_convolutions_that_do_not_pair_are_named():
    teacher, student = pair()
    image = keras.Input((8, 8, 1))
    other = keras.Model(
        image, layers.Dense(4)(layers.Flatten()(layers.Conv2D(3, 3, name="first")(image)))
    )
    with pytest.raises(
        ValueError, match=r"do not pair.*'depthwise', 'pointwise', 'stem'.*\['first'\]"
    ):
        QatModel(student, other, [ChannelStandardizedDistillation()])
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, padding="same", name="stem")(image)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    wide = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ValueError, match="stem: student .* teacher"):
        QatModel(student, wide, [ChannelStandardizedDistillation()])


@pytest.mark.parametrize("arguments", [{"weight": -1.0}, {"epsilon": 0.0}])
def test_bad_arguments(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name} must .*Received: {name}={value}"):
        ChannelStandardizedDistillation(**arguments)


def test_weight_zero_is_plain_training_bit_for_bit():
    teacher, student = pair()
    fit(QatModel(student))
    teacher, other = pair()
    fit(QatModel(other, teacher, [ChannelStandardizedDistillation(weight=0.0)]))
    assert bytes_of(student) == bytes_of(other)


def test_csd_config_makes_an_equal_method():
    again = ChannelStandardizedDistillation.from_config(
        ChannelStandardizedDistillation(0.3, 1e-3).get_config()
    )
    assert (again.weight, again.epsilon) == (0.3, 1e-3)


def test_labels_and_loss_helpers_fit():
    assert float(LOSS(labels(4), tf.zeros([4, 4]))) == pytest.approx(np.log(4), rel=1e-5)


def dense_teacher(classes: int = 4) -> keras.Model:
    """A teacher of another architecture."""
    image = keras.Input((8, 8, 1))
    return keras.Model(image, layers.Dense(classes)(layers.Flatten()(image)))


def test_kd_at_temperature_1_is_cross_entropy_with_soft_targets_up_to_entropy():
    student, teacher = features(0, (6, 4)), features(1, (6, 4))
    method = KnowledgeDistillation(temperature=1.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        method([student, teacher])
        soft = tf.nn.softmax(teacher)
        cross_entropy = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(soft, student))
    entropy = -tf.reduce_mean(tf.reduce_sum(soft * tf.math.log(soft), -1))
    np.testing.assert_allclose(method.losses[0], cross_entropy - entropy, rtol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(method.losses[0], student), tape.gradient(cross_entropy, student), atol=1e-7
    )


@pytest.mark.parametrize(
    "arguments", [{"weight": 0.5}, {"temperature": 2.0}, {"from_logits": False}]
)
def test_kd_equals_its_formula_for_every_argument(arguments):
    student, teacher = tf.nn.softmax(features(0, (6, 4))), tf.nn.softmax(features(1, (6, 4)))
    settings = {"weight": 1.0, "temperature": 4.0, "from_logits": True, **arguments}
    temperature = settings["temperature"]
    logits = [x if settings["from_logits"] else tf.math.log(x) for x in (student, teacher)]
    q, p = (tf.nn.softmax(x / temperature).numpy() for x in logits)
    expected = settings["weight"] * temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    method = KnowledgeDistillation(**arguments)
    method([student, teacher])
    np.testing.assert_allclose(method.losses[0], expected, rtol=1e-4)


def test_kd_follows_a_teacher_of_another_architecture():
    _, student = pair()
    teacher = dense_teacher()
    before = bytes_of(teacher)
    history = fit(QatModel(student, teacher, [KnowledgeDistillation(10.0)]), epochs=3)
    assert history["kd_loss"][-1] < history["kd_loss"][0]
    assert bytes_of(teacher) == before


def test_kd_needs_the_same_classes():
    _, student = pair()
    with pytest.raises(ValueError, match=r"Received: student \(None, 4\), teacher \(None, 3\)"):
        QatModel(student, dense_teacher(3), [KnowledgeDistillation()])


def test_kd_of_weight_zero_is_plain_training_bit_for_bit():
    teacher, student = pair()
    fit(QatModel(student))
    teacher, other = pair()
    fit(QatModel(other, teacher, [KnowledgeDistillation(0.0)]))
    assert bytes_of(student) == bytes_of(other)


@pytest.mark.parametrize("arguments", [{"weight": -1.0}, {"temperature": 0.0}])
def test_bad_arguments_of_kd(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name} must .*Received: {name}={value}"):
        KnowledgeDistillation(**arguments)
