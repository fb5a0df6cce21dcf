"""The folded teacher computes what the teacher computes, and CSD does not notice."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import bytes_of, fit, images, network, student_of
from tf_fpq import roles
from tf_fpq.keras_compat import keras
from tf_fpq.methods.distillation import ChannelStandardizedDistillation
from tf_fpq.training import folded_teacher
from tf_fpq.training import teacher as teachers
from tf_fpq.training.qat_model import QatModel

layers = keras.layers
CONVOLUTIONS = ("stem", "depthwise", "pointwise")


def trained_network(negative: bool = True) -> keras.Model:
    """Statistics, gammas (some negative) and betas as a training leaves them."""
    keras.utils.set_random_seed(0)
    model, random = network(), np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = (random.uniform(0.5, 1.5, 8) for _ in range(4))
            gamma[:3] *= -1 if negative else 1
            layer.set_weights([gamma, beta - 1, mean - 1, variance])
    return model


def kinds(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def test_predictions_are_the_teachers_without_a_batch_norm():
    teacher = trained_network()
    before = bytes_of(teacher)
    folded = folded_teacher.folded_graph(teacher, {})
    assert "BatchNormalization" in kinds(teacher) and "BatchNormalization" not in kinds(folded)
    np.testing.assert_allclose(folded(images())["predictions"], teacher(images()), atol=1e-5)
    assert bytes_of(teacher) == before and not folded(images())["features"]


@pytest.mark.parametrize("negative", [False, True])
def test_features_are_the_convolutions_up_to_positive_slopes(negative):
    teacher = trained_network(negative)
    folded = folded_teacher.folded_graph(teacher, dict.fromkeys(CONVOLUTIONS, 1e-2))
    assert "BatchNormalization" not in kinds(folded)
    assert ("Rescaling" in kinds(folded)) == negative
    outputs = folded(images())
    np.testing.assert_allclose(outputs["predictions"], teacher(images()), atol=1e-5)
    for name in CONVOLUTIONS:
        exact = keras.Model(teacher.input, teacher.get_layer(name).output)(images()).numpy()
        norm = teacher.get_layer(f"{name}_bn")
        slope = np.abs(norm.gamma.numpy()) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        moved = outputs["features"][name].numpy() - slope * exact
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0, 0, 0], moved.shape), atol=1e-5)


def test_exact_features_keep_their_batch_norms():
    teacher = trained_network()
    folded = folded_teacher.folded_graph(teacher, {"stem": None, "pointwise": 1e-2})
    assert kinds(folded).count("BatchNormalization") == 1
    stem = keras.Model(teacher.input, teacher.get_layer("stem").output)(images())
    np.testing.assert_array_equal(folded(images())["features"]["stem"], stem)


def test_a_kernel_with_one_grid_for_all_channels_keeps_its_batch_norm(monkeypatch):
    teacher = trained_network()
    one_grid = roles.Kernel("depthwise_kernel", None)
    monkeypatch.setitem(roles.KERNELS, layers.DepthwiseConv2D, one_grid)
    folded = folded_teacher.folded_graph(teacher, {})
    assert kinds(folded).count("BatchNormalization") == 1
    np.testing.assert_allclose(folded(images())["predictions"], teacher(images()), atol=1e-5)


def test_a_channel_that_does_not_vary_keeps_its_batch_norm():
    for weight, value in (("gamma", 0.0), ("gamma", 0.01), ("moving_variance", 1e-6)):
        teacher = trained_network()
        variable = getattr(teacher.get_layer("depthwise_bn"), weight)
        variable.assign(tf.tensor_scatter_nd_update(variable, [[5]], [value]))
        shown = folded_teacher.folded_graph(teacher, dict.fromkeys(CONVOLUTIONS, 1e-2))
        assert kinds(shown).count("BatchNormalization") == 1
        hidden = folded_teacher.folded_graph(teacher, {})
        assert "BatchNormalization" not in kinds(hidden)
        for folded in (shown, hidden):
            predictions = folded(images())["predictions"]
            np.testing.assert_allclose(predictions, teacher(images()), atol=1e-4)


def test_csd_has_the_same_loss_and_gradient():
    losses, weights = {}, {}
    for folds in (True, False):
        teacher = trained_network()
        keras.utils.set_random_seed(1)
        student = student_of(teacher)
        for layer in student.layers:  # away from the teacher
            if hasattr(layer, "layer") and "logits" not in layer.name:
                kernel = layer.layer.weights[0]
                kernel.assign_add(0.3 * tf.random.stateless_normal(kernel.shape, [1, 2]))
        method = ChannelStandardizedDistillation(weight=1.0)
        if not folds:
            method.affine_features_from = None
        model = QatModel(student, teacher, [method])
        assert ("BatchNormalization" in kinds(model._teacher_graph)) == (not folds)
        losses[folds] = fit(model, epochs=1, batch_size=32)["csd_loss"]
        weights[folds] = student.get_layer("stem").layer.kernel.numpy()
    assert losses[True][0] > 0.01
    np.testing.assert_allclose(losses[True], losses[False], rtol=2e-3)
    np.testing.assert_allclose(weights[True], weights[False], atol=2e-4)


def test_all_kinds_of_kernels_and_what_cannot_be_folded():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="biased")(image)
    x = layers.BatchNormalization(scale=False, name="unscaled")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="multiplied")(x)
    x = layers.BatchNormalization(center=False, name="uncentered")(x)
    x = layers.Conv2DTranspose(5, 3, name="transposed")(x)
    x = layers.BatchNormalization(name="after_transposed")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="activated")(x)
    x = layers.BatchNormalization(name="after_activation")(x)
    y = layers.Conv2D(6, 1, name="read_twice")(x)
    x = layers.Add()([layers.BatchNormalization(name="one_of_two")(y), y])
    x = layers.Dense(5, name="dense")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.BatchNormalization(name="last")(x))
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.2, 1.0, w.shape) for w in model.get_weights()])
    folded = folded_teacher.folded_graph(model, {})
    left = [x.name for x in folded.layers if isinstance(x, layers.BatchNormalization)]
    assert sorted(left) == ["after_activation", "one_of_two"]
    x = random.random((4, 8, 8, 3), np.float32)
    np.testing.assert_allclose(folded(x)["predictions"], model(x), rtol=1e-4)


def test_half_precision():
    teacher = trained_network()
    half = teachers.teacher_graph(teacher, {"stem": 1e-2}, "bfloat16")
    outputs = half(images())
    assert outputs["features"]["stem"].dtype == tf.bfloat16
    predictions = tf.cast(outputs["predictions"], tf.float32)
    np.testing.assert_allclose(predictions, teacher(images()), atol=0.05)
